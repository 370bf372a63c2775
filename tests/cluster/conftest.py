"""One emulated Slurm cluster for all tests of this directory, ended whatever happens."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_login import STATES, SlurmCluster, run_tool


def sweep() -> None:
    """End the clusters of test runs that were killed."""
    for state in STATES.glob("distsage-cluster-test-*"):
        name = state.name.removeprefix("distsage-cluster-")
        if not Path("/proc", name.split("-")[1]).exists():
            run_tool("--name", name, "down")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Four hosts of four CPUs; a test that changes them (crash) puts them right again."""
    if os.geteuid() != 0:
        pytest.fail("tests/cluster starts a Slurm cluster on this machine and needs root for it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `timeout` cleans up, too
    sweep()
    name = f"test-{os.getpid()}"
    with contextlib.ExitStack() as undo:
        undo.callback(run_tool, "--name", name, "down")
        shared = tmp_path_factory.getbasetemp()
        answer = run_tool("--name", name, "up", "--share", shared, timeout=300)
        assert answer.returncode == 0, answer.stderr
        yield SlurmCluster(name, [f"node{k}" for k in range(1, 5)])
