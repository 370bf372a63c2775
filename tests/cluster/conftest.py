"""Emulated Slurm clusters for the tests of this directory, ended whatever happens."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from slurm_login import MPIS, REPOSITORY, STATES, SlurmCluster, run_tool


def sweep() -> None:
    """End the clusters of test runs that were killed."""
    for state in STATES.glob("distsage-cluster-test-*"):
        name = state.name.removeprefix("distsage-cluster-")
        if not Path("/proc", name.split("-")[1]).exists():
            run_tool("--name", name, "down")


@contextlib.contextmanager
def start_cluster(purpose: str, hosts: int, shared: Path) -> Iterator[SlurmCluster]:
    """A cluster of `hosts` hosts of four CPUs that share the directory `shared`."""
    if os.geteuid() != 0:
        pytest.fail("tests/cluster starts a Slurm cluster on this machine and needs root for it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `timeout` cleans up, too
    sweep()
    name = f"test-{os.getpid()}-{purpose}"
    with contextlib.ExitStack() as undo:
        undo.callback(run_tool, "--name", name, "down")
        shares = [word for path in (shared, *MPIS) for word in ("--share", path)]
        answer = run_tool("--name", name, "up", "--hosts", str(hosts), *shares, timeout=300)
        assert answer.returncode == 0, answer.stderr
        yield SlurmCluster(name, [f"node{k}" for k in range(1, hosts + 1)])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Four hosts; a test that changes them (crash) puts them right again."""
    with start_cluster("main", 4, tmp_path_factory.getbasetemp()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def parts_of(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """The parts of a small graph, by their number: 1, 2 and 4."""
    directory = tmp_path_factory.mktemp("parts")
    for count in (1, 2, 4):
        subprocess.run(
            [
                *(sys.executable, "-m", "distsage", "partition"),
                *("--dataset=synthetic:3000:10", f"--num-parts={count}"),
                f"--output={directory}/parts-{count}",
            ],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            timeout=120,
        )
    return {count: directory / f"parts-{count}" for count in (1, 2, 4)}
