"""Time limits end a job that is stuck, and no other: inputs that are slow, limits of seconds."""

from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from conftest import Partitioned, planted
from jobs import Job, summary, train

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]
PROGRAM = Path(__file__).with_name("slow_program.py")
# The ranks import PyTorch within the start-up timeout, and compute a step within the other one, on
# a machine that may be busy. A rank that waits gives up after 10 + 10 + 4 s without progress.
LIMITS = ("--startup-timeout", 60, "--stall-timeout", 10)
QUICK = ("--num-epochs", 2, "--num-hidden", 16, "--batch-size", 40, "--fan-out", "4,6")
QUICK += ("--eval-every", 1)
STUCK = {
    "hung-load": ("rank 0 (server on ", "no progress for 10 s (loading its parts)"),
    "hung-layer": ("rank 1 (trainer on ", "no progress for 10 s (computing layer "),
}
HEALTHY = ("files", "work")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all run directories, which are named as what is slow in the job."""
    return tmp_path_factory.mktemp("limits")


@pytest.fixture(scope="module")
def ended(partitioned: Partitioned, runs: Path) -> Mapping[str, CompletedProcess[str]]:
    """All jobs at once, since most of their time is waiting."""
    # Compiling may take longer than the limits.
    train(4, partitioned(planted(), 2), runs / "compiled", *QUICK, hosts=2)

    def start(what: str, *options: object, hosts: int = 2) -> Job:
        parts = partitioned(planted(), hosts)
        where = ("--parts", parts, "--run-dir", runs / what, "--emulated-hosts", hosts)
        return Job(2 * hosts, PROGRAM, what, *where, *LIMITS, *QUICK, *options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(runs / "cache"))  # no checksum is known
        jobs = {
            "files": start("files", "--stage", runs / "scratch"),
            "work": start("work"),
            # The server of a second host would have loaded: killed before a trainer has mapped its
            # segments, it leaves them to the next job's sweep.
            "hung-load": start("hung-load", hosts=1),
            "hung-layer": start("hung-layer"),
        }
    statuses = dict.fromkeys(HEALTHY, 0) | dict.fromkeys(STUCK, 1)
    # Those that end first are waited for first.
    return {what: jobs[what].wait(statuses[what]) for what in (*STUCK, *HEALTHY)}


@pytest.mark.parametrize("what", HEALTHY)
def test_a_healthy_job_outlives_its_limits(
    what: str, ended: Mapping[str, CompletedProcess[str]], runs: Path
) -> None:
    said = ended[what].stderr.splitlines()
    assert [line for line in said if not line.startswith("evaluating: ")] == []
    assert summary(runs / what)["epochs"] == 2


@pytest.mark.parametrize("what", STUCK)
def test_a_stuck_rank_is_named(what: str, ended: Mapping[str, CompletedProcess[str]]) -> None:
    lines = ended[what].stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("distsage: ")]
    for word in STUCK[what]:
        assert word in line
