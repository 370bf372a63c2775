"""A plan counts what a job counts: the same batches, to the last row and byte."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import Partitioned, planted
from jobs import epochs, train

from distsage.config import TrainConfig
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.kept_plans import Expectation, keep
from distsage.partitioning.parts import Parts
from distsage.plan.evaluation import exchange
from distsage.plan.replay import replay, train_nodes
from distsage.train.records import read_run

pytestmark = pytest.mark.mpi

HOSTS, PAIRS = 2, 2


def test_the_records_of_a_job_are_what_was_planned(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    """Two trainers on each of two hosts with two parts each. The last epoch is evaluated, too.

    Where the topology is partitioned, answers hold picks, too; the rows are those of any topology.
    """
    topology = "partitioned"
    path = partitioned(planted(), 4)
    values = {"fan_out": "3,4", "batch_size": 20, "num_hidden": 8, "cache_ratio": 0.1, "seed": 3}
    values |= {"num_epochs": 2, "eval_every": 2, "num_workers": 0, "topology": topology}
    words = [word for name, value in values.items() for word in (f"--{name}", value)]
    kept = Expectation("a plan", [1 << 29] * HOSTS, edges=7.0)
    keep(Parts.open(path), TrainConfig(parts=path, **values), PAIRS, {HOSTS: kept})
    train(2 * HOSTS * PAIRS, path, tmp_path, *words, hosts=HOSTS)
    first, last = epochs(tmp_path)
    assert read_run(tmp_path).about["expected"] == asdict(kept)

    parts = HostParts.deal(Parts.open(path), ["a", "b"])
    config = TrainConfig(parts=path, **values)
    planned = replay(parts, config, train_nodes(parts), PAIRS, most_batches=1000)
    assert planned.num_sampled == planned.num_steps == first["steps"]["per_trainer"][0] > 1
    assert planned.error(topology) == 0
    for name in ("edges", "input_nodes", "local_rows", "cached_rows"):
        assert getattr(planned, name).sum(1).tolist() == first[name]["per_trainer"], name
    for name, counts in (
        ("missed_rows", planned.missed_rows),
        ("received_bytes", planned.missed_bytes),
    ):
        assert counts.sum((1, 2)).tolist() == first[name]["per_trainer"], name
        assert counts.sum() > 0

    def by_host(name: str, record: dict) -> np.ndarray:
        return np.array([host[name] for host in record["hosts"]])

    for name, counts in (
        ("received_bytes_from", planned.received_bytes(topology)),
        ("sent_bytes_to", planned.sent_bytes(topology)),
    ):
        wanted = planned.by_host(planned.of_epoch(counts))
        np.testing.assert_array_equal(by_host(name, first), wanted)

    exchanged = exchange(parts, config, PAIRS)
    again = planned.by_host(exchanged.halo_bytes)
    again = again + planned.by_host(planned.by_host(exchanged.hidden_bytes).T).T
    rest = by_host("received_bytes_from", last) - again
    batches = planned.by_host(planned.of_epoch(planned.received_bytes(topology)))
    assert (np.diag(rest) == np.diag(batches)).all()
    np.testing.assert_allclose(rest, batches, rtol=0.2)  # another epoch's batches
