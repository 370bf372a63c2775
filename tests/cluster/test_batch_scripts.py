"""sbatch/*.sh on a real Slurm: ranks sit where they should with every launcher, and jobs end.

A small MPI program stands in for distsage here, so that these tests are about the scripts alone.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_login import REPOSITORY, SlurmCluster

pytestmark = pytest.mark.cluster

LAUNCHERS = {
    "site mpirun": {"DISTSAGE_MPI": "site"},
    "wheel mpirun": {"DISTSAGE_MPI": "wheel"},
    "srun": {"DISTSAGE_MPI": "site", "DISTSAGE_LAUNCHER": "srun"},
}

# Writes who is where, or waits to be ended, or leaves a failure note and hangs.
PROGRAM = """
import json, os, sys, time
from pathlib import Path

from mpi4py import MPI

world = MPI.COMM_WORLD
hosts = world.gather(MPI.Get_processor_name())
case = sys.argv[4]  # after train --resume auto
if case == "place":
    if world.rank == 0:
        Path("place.json").write_text(json.dumps([hosts, sys.argv[1:], sys.path]))
    sys.exit()
Path(f"rank-{world.rank}").touch()
if case == "fail" and world.rank == 2:
    Path(os.environ["DISTSAGE_FAILURE_NOTE"]).write_text("a sentence")
time.sleep(300)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the real batch scripts and a program in distsage's place."""
    root = tmp_path / "checkout"
    (root / "distsage").mkdir(parents=True)
    (root / "distsage" / "__main__.py").write_text(PROGRAM)
    (root / "sbatch").symlink_to(REPOSITORY / "sbatch")
    return root


def submit_all(
    cluster: SlurmCluster, checkout: Path, request: list[str], *arguments: str
) -> dict[str, int]:
    """Submit train.sh once per launcher, side by side, each from a directory of its own."""
    jobs = {}
    for launcher, settings in LAUNCHERS.items():
        directory = directory_of(checkout, launcher)
        directory.mkdir()
        jobs[launcher] = cluster.submit(
            *request,
            "--cpus-per-task=1",
            checkout / "sbatch" / "train.sh",
            *arguments,
            cwd=directory,
            env={
                **settings,
                "DISTSAGE_ROOT": str(checkout),
                "DISTSAGE_VENV": sys.prefix,
                "OMP_NUM_THREADS": "1",
            },
        )
    return jobs


def directory_of(checkout: Path, launcher: str) -> Path:
    return checkout.parent / launcher


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def wait_until_nothing_is_left(cluster: SlurmCluster) -> None:
    """No rank or launcher runs on any host, and no shared-memory segment lies there."""
    daemons = {"bash", "munged", "slurmd", "sleep", "sh", "ps"}
    for host in cluster.hosts:

        def left(host: str = host) -> set[str]:
            words = cluster.exec(host, "sh", "-c", "ps ax -o comm=; ls /dev/shm").split()
            return set(words) - daemons

        wait_for(f"{host} empty", lambda: not left(), seconds=20)


@pytest.mark.parametrize(("hosts", "pairs"), [(1, 1), (2, 2), (4, 1)])
def test_pairs_sit_on_their_hosts(
    cluster: SlurmCluster, checkout: Path, hosts: int, pairs: int
) -> None:
    request = [f"-N{hosts}", f"--ntasks-per-node={2 * pairs}"]
    jobs = submit_all(cluster, checkout, request, "place", "a b", "*")
    for launcher, job in jobs.items():
        log = cluster.complete(job)
        result = (directory_of(checkout, launcher) / "place.json").read_text()
        names, arguments, path = json.loads(result)
        assert names[:: 2 * pairs] == cluster.hosts_of(job), launcher
        assert names == sorted(names), launcher
        assert len(names) == 2 * pairs * hosts, launcher
        assert arguments == ["train", "--resume", "auto", "place", "a b", "*"], launcher
        assert str(checkout) in path, launcher
        assert f"{2 * pairs * hosts} ranks" in log
    wait_until_nothing_is_left(cluster)


def test_scancel_ends_jobs_within_seconds(cluster: SlurmCluster, checkout: Path) -> None:
    jobs = submit_all(cluster, checkout, [], "wait")
    for launcher in jobs:
        directory = directory_of(checkout, launcher)
        wait_for(launcher, lambda d=directory: len(list(d.glob("rank-*"))) == 4)  # type: ignore[misc]
    cluster.exec("controller", "scancel", *map(str, jobs.values()))
    for launcher, job in jobs.items():
        assert cluster.wait(job, seconds=20) == "CANCELLED", launcher
        wait_for(launcher, lambda job=job: "ended by SIGTERM" in cluster.log(job), 20)  # type: ignore[misc]
    wait_until_nothing_is_left(cluster)
    for launcher in jobs:
        assert list((directory_of(checkout, launcher) / "logs").iterdir()) == [], launcher


def test_launcher_that_does_not_see_the_failure_is_ended(
    cluster: SlurmCluster, checkout: Path
) -> None:
    for launcher, job in submit_all(cluster, checkout, [], "fail").items():
        assert cluster.wait(job, seconds=60) == "FAILED", launcher
    wait_until_nothing_is_left(cluster)
