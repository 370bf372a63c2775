"""What makes a run fast changes what it costs, and nothing else unless it says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Partitioned, planted
from jobs import distsage, epochs, losses, mpirun, summary, train

from distsage.config import EvaluateConfig
from distsage.data.graph import Graph
from distsage.partitioning.parts import Parts
from distsage.prediction.scores import evaluate

pytestmark = pytest.mark.mpi

QUICK = ("--num-epochs", 3, "--num-hidden", 16, "--batch-size", 40, "--lr", 0.02)
QUICK += ("--fan-out", "4,6", "--eval-every", 3)
RANKED_FOR = "the cache holds the rows that pay for "


def numbered(largest: float = 0.0) -> Graph:
    """The planted graph; the features of the node with row v are (v, 3v - 1000, v mod 7)."""
    graph = planted()
    v = np.arange(graph.num_nodes)
    features = np.stack((v, 3 * v - 1000, v % 7), 1).astype(np.float32)
    features[17, 2] += largest
    return replace(graph, name="numbered", features=features, original_ids=v)


@pytest.mark.parametrize(
    ("ranks", "hosts", "dtype", "cache", "share"),
    [
        (4, 2, "float32", ("--cache-ratio", 0), 0),
        (8, 2, "float32", ("--cache-ratio", 0.3), 0.3),
        (6, 3, "float16", ("--cache-ratio", 1), 1),
        (4, 2, "bfloat16", ("--cache-bytes", 6 * 101), None),
        (4, 2, "int8", ("--cache-bytes", 3 * 101), None),
    ],
    ids=lambda value: str(value),
)
def test_every_row_is_its_nodes_wherever_it_comes_from(
    ranks: int,
    hosts: int,
    dtype: str,
    cache: tuple[object, ...],
    share: float | None,
    partitioned: Partitioned,
    tmp_path: Path,
) -> None:
    path = partitioned(numbered(), hosts)
    program = Path(__file__).with_name("rows_view.py")
    options = ["--parts", path, "--run-dir", tmp_path, "--emulated-hosts", hosts]
    mpirun(ranks, program, *options, "--feat-dtype", dtype, *cache)
    parts = Parts.open(path)
    v = np.asarray(parts.original_ids()).astype(np.float64)
    exact = np.stack((v, 3 * v - 1000, v % 7), 1)
    if dtype == "int8":
        exact = exact.astype(np.float32)
        exact = np.rint(exact / (np.abs(exact).max(0) / np.float32(127)))
    eps = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0}[dtype]
    for trainer in range(ranks // 2):
        view = dict(np.load(tmp_path / f"rows-{trainer}.npz"))
        assert str(view["dtype"]) == f"torch.{dtype}"
        assert sorted(view["mixed"]) == list(range(len(v)))
        np.testing.assert_allclose(view["fetched"], exact[view["mixed"]], rtol=eps)

        low, high = view["part"]
        ranking = parts.cache_ranking(trainer * hosts // (ranks // 2))
        expected = 101 if share is None else int((len(v) - (high - low)) * share)
        np.testing.assert_array_equal(view["cached_gid"], ranking[:expected])
        assert len(view["cached_gid"]) == min(expected, len(ranking))
        np.testing.assert_allclose(view["cached"], exact[view["cached_gid"]], rtol=eps)


def test_the_cache_changes_what_is_received_and_nothing_else(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    parts = partitioned(planted(), 2)
    received = []
    for ratio in (0, 0.3, 1):
        run_dir = tmp_path / str(ratio)
        said = train(4, parts, run_dir, *QUICK, "--cache-ratio", ratio, hosts=2).stdout
        # The rows are ranked for the batches that are usual, and the run has others.
        usual = f"{RANKED_FOR}--fan-out 10,25 --batch-size 1000,"
        assert said.count(usual) == said.count(RANKED_FOR) == (0 if ratio == 0 else 1)
        assert losses(run_dir) == losses(tmp_path / "0")
        for record in epochs(run_dir):
            total = {name: record[name]["total"] for name in record if "_rows" in name}
            assert sum(total.values()) == record["input_nodes"]["total"]
            assert record["received_bytes"]["total"] == 4 * 5 * total["missed_rows"]
        received.append(sum(r["received_bytes"]["total"] for r in epochs(run_dir)))
    assert received[0] > received[1] > received[2] == 0


def test_the_cache_is_ranked_for_the_batches_that_were_named(tmp_path: Path) -> None:
    """From the command line to the rows that are kept."""
    parts = tmp_path / "parts"
    named = ("--fan-out", "4,6", "--batch-size", 40)
    where = ("--num-parts", 2, "--output", parts)
    distsage("partition", "--dataset", "synthetic:1000", *where, *named)
    assert RANKED_FOR not in train(4, parts, tmp_path / "run", *QUICK, hosts=2).stdout


def test_labor_and_half_precision_learn_as_well(partitioned: Partitioned, tmp_path: Path) -> None:
    parts = partitioned(planted(), 2)
    longer = (*QUICK, "--num-epochs", 15)
    plain, labor, half = tmp_path / "plain", tmp_path / "labor", tmp_path / "half"
    train(4, parts, plain, *longer, hosts=2)
    train(4, parts, labor, *longer, "--sampler", "labor", hosts=2)
    train(4, parts, half, *longer, "--feat-dtype", "float16", hosts=2)
    for other in (labor, half):
        assert losses(other) != losses(plain)
        assert abs(summary(other)["val"]["accuracy"] - summary(plain)["val"]["accuracy"]) < 0.06

    def total(run_dir: Path, name: str) -> float:
        return sum(record[name]["total"] for record in epochs(run_dir))

    assert total(labor, "edges") < 1.01 * total(plain, "edges")
    assert total(labor, "input_nodes") < total(plain, "input_nodes")
    assert total(half, "received_bytes") == total(plain, "received_bytes") / 2


def test_features_that_do_not_fit_the_type_end_the_job(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    parts = partitioned(numbered(99_997), 1)
    ended = train(2, parts, tmp_path, *QUICK, "--feat-dtype", "float16", hosts=1, status=2)
    assert "a feature of 100000 is too large for --feat-dtype float16" in ended.stderr


@pytest.mark.parametrize(("sampler", "ranks"), [("neighbor", 8), ("labor", 4)])
def test_partitioned_topology_gives_the_same_run(
    sampler: str, ranks: int, partitioned: Partitioned, tmp_path: Path
) -> None:
    parts = partitioned(planted(), 2)
    options = (*QUICK, "--sampler", sampler, "--num-workers", 2)
    whole, slices = tmp_path / "replicated", tmp_path / "partitioned"
    first = train(ranks, parts, whole, *options, hosts=2)
    second = train(ranks, parts, slices, *options, "--topology", "partitioned", hosts=2)
    assert "\ntopology replicated (" in first.stdout
    assert "\ntopology partitioned, as asked for (" in second.stdout
    assert losses(whole) == losses(slices)
    assert summary(whole)["test"] == summary(slices)["test"]
    scores, _ = evaluate(EvaluateConfig(run_dir=slices))
    assert scores == {mask: summary(slices)[mask] for mask in ("train", "val", "test")}
