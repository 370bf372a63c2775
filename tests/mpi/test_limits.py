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
LIMITS = ("--startup-timeout", 20, "--stall-timeout", 10)
QUICK = ("--num-epochs", 2, "--num-hidden", 16, "--batch-size", 40, "--fan-out", "4,6")
QUICK += ("--eval-every", 1)


@pytest.fixture
def start(partitioned: Partitioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`start(what, *options)`: a job that is slow so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no checksum is known
    parts = partitioned(planted(), 2)
    train(4, parts, tmp_path / "compiled", *QUICK, hosts=2)  # which may take longer than the limits

    def job(what: str, *options: object) -> Job:
        where = ("--parts", parts, "--run-dir", tmp_path / what, "--emulated-hosts", 2)
        return Job(4, PROGRAM, what, *where, *LIMITS, *QUICK, *options)

    return job


def test_a_healthy_job_outlives_its_limits(start, tmp_path: Path) -> None:
    jobs = start("files", "--stage", tmp_path / "scratch"), start("work")
    for job in jobs:
        assert job.wait().stderr == ""
    for what in ("files", "work"):
        assert summary(tmp_path / what)["epochs"] == 2


def test_a_stuck_rank_is_named(start, tmp_path: Path) -> None:
    causes = {
        "hung-load": ("rank 0 (server on ", "no progress for 10 s (loading its part)"),
        "hung-layer": ("rank 1 (trainer on ", "no progress for 10 s (computing layer "),
    }
    jobs = {what: start(what) for what in causes}
    for what, words in causes.items():
        said = jobs[what].wait(status=1).stderr
        (line,) = [line for line in said.splitlines() if line.startswith("distsage: ")]
        for word in words:
            assert word in line
