"""A job of sbatch/train.sh on some hosts of a cluster, and what a test can do to it."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from slurm_login import ENDED, MPIS, REPOSITORY, SlurmCluster

from tools.slurm_cluster import jobs
from tools.slurm_cluster.cluster import Cluster
from tools.slurm_cluster.jobs import RankProcesses

SITE = {"DISTSAGE_MPI": "site"}
WHEEL = {"DISTSAGE_MPI": "wheel"}
SRUN = {"DISTSAGE_MPI": "site", "DISTSAGE_LAUNCHER": "srun"}


def module(prefix: Path) -> dict[str, str]:
    """What a module of an MPI that `make mpis` has installed would set."""
    return {"DISTSAGE_MPI": "site", "PATH": f"{prefix}/bin:{os.environ['PATH']}"}


MPICH, MPICH4, INTEL = (module(prefix) for prefix in MPIS)

# No job of these tests takes so long unless it hangs.
HANGS = 120.0
SMALL = ["--num-hidden=8", "--fan-out=3,3", "--num-workers=1"]
# SIGNALING is said for a moment when Slurm sends a warning.
_UNDER_WAY = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING")


@dataclass
class TrainingJob:
    """One job of sbatch/train.sh, from its submission to its end."""

    cluster: SlurmCluster
    hosts: Sequence[str]
    directory: Path
    id: int
    struck_at: float | None = None
    seconds: float = field(default=float("nan"))
    cause: str = ""

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    def output(self) -> str:
        """What the job has printed."""
        path = self.directory / f"job-{self.id}.out"
        return path.read_text(errors="replace").replace("\0", "") if path.exists() else ""

    def said(self) -> list[str]:
        """distsage's own lines in the output, without those that open a run or report progress."""
        lines = [line for line in self.output().splitlines() if "distsage: " in line]
        return [
            line.partition("distsage: ")[2]
            for line in lines
            if not re.search(r"distsage: job \d+ on ", line)
        ]

    def wait_until(
        self, what: str, condition: Callable[[], object], seconds: float = HANGS
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self.cluster.job(self.id)["JobState"] in ENDED:
                self.cluster.exec("controller", "scancel", str(self.id))
                pytest.fail(f"job {self.id}: no {what}\n{self.output()}")
            time.sleep(0.1)

    def trains(self) -> None:
        """Wait until the first epochs are done."""
        self.wait_until("training", lambda: "epoch   2/" in self.output())

    def processes(self) -> dict[int, RankProcesses]:
        """Every rank's processes, by rank."""
        return jobs.ranks(Cluster(self.cluster.name), self.hosts, self.id)

    def strike(self) -> None:
        """Note that the fault happens now."""
        self.struck_at = time.monotonic()

    def signal(self, pid: int, which: signal.Signals) -> None:
        self.strike()
        os.kill(pid, which)

    def ends(self, seconds: float = HANGS) -> tuple[str, str]:
        """Wait until the job has left RUNNING; return its state and exit code, `"FAILED", "1:0"`.

        A hang guard, not a measurement: that is in `seconds` afterwards.
        """
        started = time.monotonic() if self.struck_at is None else self.struck_at
        deadline = time.monotonic() + seconds
        while (facts := self.cluster.job(self.id))["JobState"] in _UNDER_WAY:
            if time.monotonic() > deadline:
                self.cluster.exec("controller", "scancel", str(self.id))
                pytest.fail(f"job {self.id} has not ended after {seconds} s\n{self.output()}")
        self.seconds = time.monotonic() - started
        while (facts := self.cluster.job(self.id))["JobState"] == "COMPLETING":
            pass
        return facts["JobState"], facts["ExitCode"]

    def completes(self, seconds: float = 2 * HANGS) -> None:
        """The job has to end as COMPLETED with status 0, without a word but its progress."""
        assert (self.ends(seconds), self.said()) == (("COMPLETED", "0:0"), []), self.output()
        assert (self.run_dir / "summary.json").exists()

    def fails_with(self, cause: str, code: str | None = None, seconds: float = HANGS) -> None:
        """The job has to end as FAILED, with one line that matches `cause` and no other noise."""
        state, exit_code = self.ends(seconds)
        assert state == "FAILED", f"{state}\n{self.output()}"
        assert code is None or exit_code == code, f"{exit_code}\n{self.output()}"
        self.says(cause)

    def says(self, cause: str) -> None:
        """There has to be one line of distsage's, which matches `cause`, and no C++ traces."""
        self.wait_until_written()
        said = self.said()
        assert len(said) == 1, self.output()
        self.cause = said[0]
        assert re.search(cause, said[0]), f"{said[0]!r} is not {cause!r}\n{self.output()}"
        lines = [
            line for line in self.output().splitlines() if not line.startswith(("epoch ", "step "))
        ]
        assert len(lines) < 60, self.output()

    def wait_until_written(self) -> None:
        """Output may arrive shortly after the state."""
        deadline = time.monotonic() + 3
        while not self.said() and time.monotonic() < deadline:
            time.sleep(0.1)


def submit(
    cluster: SlurmCluster,
    hosts: Sequence[str],
    directory: Path,
    *arguments: str | Path,
    request: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    fault: Mapping[str, object] | None = None,
    script: Sequence[str | Path] = (REPOSITORY / "sbatch" / "train.sh",),
    pairs: int = 1,
) -> TrainingJob:
    """Submit train.sh (or another script) to exactly these hosts, from a new directory.

    The arguments are the script's; `fault` is for tools/slurm_cluster/faults/sitecustomize.py.
    """
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"DISTSAGE_VENV": sys.prefix, "OMP_NUM_THREADS": "1", **(env or {})}
    if fault is not None:
        settings["DISTSAGE_TEST_FAULT"] = json.dumps(fault)
        settings["PYTHONPATH"] = str(jobs.FAULTS)
    job = cluster.submit(
        f"--nodelist={','.join(hosts)}",
        f"--nodes={len(hosts)}",
        f"--ntasks-per-node={2 * pairs}",
        "--cpus-per-task=1",
        "--output=job-%j.out",
        *request,
        *script,
        *arguments,
        cwd=directory,
        env=settings,
    )
    return TrainingJob(cluster, hosts, directory, job)


def left_on(cluster: SlurmCluster, host: str) -> set[str]:
    """Commands that run on a host beside its daemons, shared memory and staged copies."""
    return jobs.left_on(Cluster(cluster.name), host)


def nothing_left(cluster: SlurmCluster, hosts: Sequence[str], seconds: float = 20) -> None:
    """No rank, launcher, shared-memory segment or staged copy may be left on the hosts."""
    deadline = time.monotonic() + seconds
    for host in hosts:
        while left := left_on(cluster, host):
            assert time.monotonic() < deadline, f"left on {host}: {sorted(left)}"
            time.sleep(0.3)
