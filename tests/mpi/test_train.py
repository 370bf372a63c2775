"""`distsage train` from the first rank to what the run directory holds."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import safetensors.numpy
import yaml
from conftest import Partitioned, planted
from jobs import (
    Job,
    epochs,
    losses,
    mpirun,
    summary,
    train,
    train_arguments,
)

from distsage.train.records import read_run
from tests.unit.report.schema import strangers

# Several jobs a test, perhaps on a busy machine.
pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]

QUICK = ("--num-epochs", 4, "--num-hidden", 16, "--batch-size", 40, "--lr", 0.02)
QUICK += ("--fan-out", "4,6", "--eval-every", 2)


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run_dir / "model.safetensors")


@dataclass(frozen=True)
class Run:
    """A run that has ended, and what the job said."""

    directory: Path
    said: CompletedProcess[str]


@pytest.fixture(scope="module")
def run_of(
    partitioned: Partitioned, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, int], Run]:
    """`run_of(ranks, hosts)`: a run, made once, that tests look at and hold others against."""

    @cache
    def made(ranks: int, hosts: int) -> Run:
        run_dir = tmp_path_factory.mktemp(f"run-{ranks}-{hosts}")
        parts = partitioned(planted(), hosts)
        return Run(run_dir, train(ranks, parts, run_dir, *QUICK, "--tensorboard", hosts=hosts))

    return made


@pytest.mark.parametrize(("ranks", "hosts"), [(2, 1), (4, 2), (8, 4), (8, 2)], ids=lambda n: str(n))
def test_a_job_trains_and_leaves_a_whole_run_directory(
    ranks: int, hosts: int, run_of: Callable[[int, int], Run]
) -> None:
    run_dir, ended = run_of(ranks, hosts).directory, run_of(ranks, hosts).said
    assert len(re.findall(r"^epoch +\d/4 ", ended.stdout, re.MULTILINE)) == 4
    assert ended.stderr == ""

    servers = (run_dir / "ip_config.txt").read_text().splitlines()
    assert len(servers) == hosts
    ips, ports = zip(*(line.split() for line in servers), strict=True)
    assert ips == tuple(f"127.0.0.{host + 1}" for host in range(hosts))
    assert all(1024 <= int(port) < 65536 for port in ports)
    assert sorted(path.name for path in (run_dir / "logs").iterdir()) == [
        f"rank-{rank}.txt" for rank in range(ranks)
    ]

    records = epochs(run_dir)
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    assert ["val" in record for record in records] == [False, True, False, True]
    assert records[-1]["loss"] < records[0]["loss"]
    steps = records[0]["steps"]["per_trainer"]
    assert len(steps) == ranks // 2
    assert len(set(steps)) == 1, "all trainers take the same number of steps"

    assert len(list((run_dir / "tensorboard").glob("events.out.tfevents.*"))) == 1
    run = read_run(run_dir)
    assert list(strangers(run)) == []
    assert len(run.hosts) == hosts
    need = run.about["expected"]["memory_bytes"]  # nobody has planned: the preflight says
    assert len(need) == hosts
    taken = [host["trainer_bytes"] + host["server_bytes"] for host in records[-1]["hosts"]]
    assert all(0.3 < each / took < 3 for each, took in zip(need, taken, strict=True))
    for at, host in enumerate(records[0]["hosts"]):
        others = [other for other in range(hosts) if other != at]
        assert all(host["received_bytes_from"][other] > 0 for other in others)
        assert all(host["sent_bytes_to"][other] > 0 for other in others)
        assert host["server_bytes"] > 10 * 2**20
        assert host["shared_bytes"] > 0
    waits = [sum(host["step_wait_seconds_for"]) for host in records[0]["hosts"]]
    assert (sum(waits) > 0) == (ranks > 2)

    result = summary(run_dir)
    assert set(result) >= {"train", "val", "test", "epochs", "seconds", "hosts", "trainers"}
    assert (result["hosts"], result["trainers"], result["epochs"]) == (hosts, ranks // 2, 4)
    assert (result["edge_cut"] > 0) == (hosts > 1)
    assert result["seconds"] > 0
    for mask in ("train", "val", "test"):
        assert 0.4 < result[mask]["accuracy"] <= 1  # a guess gets 0.33
        assert set(result[mask]) == {"accuracy"}
    best = records[result["best_epoch"]]
    assert best["val"] == result["val"]
    assert best["val"]["accuracy"] == max(r["val"]["accuracy"] for r in records if "val" in r)
    assert all(np.isfinite(array).all() for array in weights(run_dir).values())


def test_no_rank_reads_the_list_of_servers_that_is_there_for_people(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    program = Path(__file__).with_name("stale_list_program.py")
    options = ["--parts", partitioned(planted(), 2), "--run-dir", tmp_path / "run", *QUICK]
    mpirun(4, program, *options, "--emulated-hosts", 2)
    assert summary(tmp_path / "run")["epochs"] == 4


@pytest.fixture
def first(run_of: Callable[[int, int], Run]) -> Path:
    """A run of 2 hosts, one worker per trainer, that others are held against."""
    return run_of(4, 2).directory


def test_the_configuration_of_a_run_repeats_it_to_the_last_bit(
    first: Path, partitioned: Partitioned, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    written = yaml.safe_load((first / "config.yaml").read_text())
    assert written["fan_out"] == "4,6"
    assert written["parts"] == str(partitioned(planted(), 2))
    again = ["--config", first / "config.yaml", "--run-dir", second]
    mpirun(4, "-m", "distsage", "train", *again)
    assert losses(first) == losses(second)
    assert len(set(losses(first))) == 4
    a, b = weights(first), weights(second)
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name])
    changed = {"run_dir": str(second)}
    assert yaml.safe_load((second / "config.yaml").read_text()) == written | changed


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing_but_time(
    workers: int, first: Path, partitioned: Partitioned, tmp_path: Path
) -> None:
    train(4, partitioned(planted(), 2), tmp_path, *QUICK, "--num-workers", workers, hosts=2)
    assert yaml.safe_load((first / "config.yaml").read_text())["num_workers"] == 1
    assert losses(tmp_path) == losses(first)
    np.testing.assert_equal(weights(tmp_path), weights(first))


def test_an_earlier_run_is_kept(
    run_of: Callable[[int, int], Run], partitioned: Partitioned, tmp_path: Path
) -> None:
    earlier = run_of(2, 1).directory
    run_dir = Path(shutil.copytree(earlier, tmp_path / "run"))
    train(2, partitioned(planted(), 1), run_dir, *QUICK, "--seed", 1, hosts=1)
    assert not set(losses(run_dir)) & set(losses(earlier))  # another seed, another run
    assert losses(run_dir / "earlier-1") == losses(earlier)
    np.testing.assert_equal(weights(run_dir / "earlier-1"), weights(earlier))
    assert len(epochs(run_dir)) == 4


def test_two_jobs_with_graphs_of_one_name_do_not_meet(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    # Of the same size too, so that a mix-up would go unnoticed by DGL.
    parts = [partitioned(planted(seed=seed), 2) for seed in (0, 1)]
    alone = tmp_path / "alone"
    longer = (*QUICK, "--num-epochs", 100)
    train(4, parts[0], alone, *longer, hosts=2)
    together = [tmp_path / "together-0", tmp_path / "together-1"]
    jobs = [
        Job(4, *train_arguments(directory, run_dir, *longer, hosts=2))
        for directory, run_dir in zip(parts, together, strict=True)
    ]
    for job in jobs:
        job.wait()
    assert losses(together[0]) == losses(alone)
    np.testing.assert_equal(weights(together[0]), weights(alone))
    assert not set(losses(together[0])) & set(losses(together[1]))
