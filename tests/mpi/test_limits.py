"""Time limits end a job that is stuck, and no other: inputs that are slow, limits of seconds."""

from pathlib import Path

import pytest
from conftest import Partitioned, planted
from jobs import Job, summary, train

# Jobs run side by side, since most of their time is waiting.
pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]
PROGRAM = Path(__file__).with_name("slow_program.py")
# The ranks import PyTorch within the start-up timeout, and compute a step within the other one, on
# a machine that may be busy. A rank that waits gives up after 10 + 10 + 4 s without progress.
LIMITS = ("--startup-timeout", 60, "--stall-timeout", 10)
QUICK = ("--num-epochs", 2, "--num-hidden", 16, "--batch-size", 40, "--fan-out", "4,6")
QUICK += ("--eval-every", 1)


@pytest.fixture
def start(partitioned: Partitioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`start(what, *options)`: a job that is slow so."""
    train(
        4, partitioned(planted(), 2), tmp_path / "compiled", *QUICK, hosts=2
    )  # which may take longer than the limits
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no checksum is known

    def job(what: str, *options: object, hosts: int = 2) -> Job:
        parts = partitioned(planted(), hosts)
        where = ("--parts", parts, "--run-dir", tmp_path / what, "--emulated-hosts", hosts)
        return Job(2 * hosts, PROGRAM, what, *where, *LIMITS, *QUICK, *options)

    return job


def test_a_healthy_job_outlives_its_limits(start, tmp_path: Path) -> None:
    jobs = start("files", "--stage", tmp_path / "scratch"), start("work")
    for job in jobs:
        said = job.wait().stderr.splitlines()
        assert [line for line in said if not line.startswith("evaluating: ")] == []
    for what in ("files", "work"):
        assert summary(tmp_path / what)["epochs"] == 2


def test_a_stuck_rank_is_named(start, tmp_path: Path) -> None:
    causes = {
        "hung-load": ("rank 0 (server on ", "no progress for 10 s (loading its parts)"),
        "hung-layer": ("rank 1 (trainer on ", "no progress for 10 s (computing layer "),
    }
    # A server that has loaded, and is killed before a trainer has mapped it, leaves its segments to
    # the next job's sweep.
    jobs = {"hung-load": start("hung-load", hosts=1), "hung-layer": start("hung-layer")}
    for what, words in causes.items():
        said = jobs[what].wait(status=1).stderr
        (line,) = [line for line in said.splitlines() if line.startswith("distsage: ")]
        for word in words:
            assert word in line
