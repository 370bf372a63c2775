"""One training run in one run directory, through as many jobs of sbatch/train.sh as it takes."""

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tools.slurm_cluster.cluster import REPOSITORY
from tools.slurm_cluster.jobs import FAULTS, RankProcesses, ranks
from tools.slurm_cluster.settings import SCAVENGER

from .site import Site

Found = TypeVar("Found")

NUM_EPOCHS = 60
CHECKPOINT_SECONDS = 3.0
_OPTIONS = (
    *("--num-hidden=32", "--fan-out=5,5", "--batch-size=100", "--num-workers=1"),
    *(f"--num-epochs={NUM_EPOCHS}", "--eval-every=10"),
)
_MINUTES = 30  # no job takes so long
# All others pass, SIGNALING among them, which Slurm says for a moment when it sends a warning.
_OVER = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"),
    *("BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"),
}
# Slurm lists a job; a rank writes a file.
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job.

    Attributes:
        name: "RUNNING", ...
        exit_code: "1:0"
        restarts: so far.
        minutes: that it has run, rounded down.
    """

    name: str
    exit_code: str
    restarts: int
    minutes: int

    @property
    def over(self) -> bool:
        """Whether it will never run again."""
        return self.name in _OVER


@dataclass
class Run:
    """A training run.

    Attributes:
        site: where.
        directory: of its jobs' output.
        run_dir: what is passed as --run-dir.
        staged: whether its jobs copy their part to the host's own disk first.
        job_ids: of those submitted so far.
    """

    site: Site
    directory: Path
    run_dir: Path
    staged: bool = False
    job_ids: list[int] = field(default_factory=list)

    def submit(self, fault: dict[str, float] | None = None) -> None:
        """Submit a job that begins the run, or goes on with it.

        Args:
            fault: what makes the ranks slow, see tools/slurm_cluster/faults/sitecustomize.py.
        """
        self.directory.mkdir(exist_ok=True)
        env = {
            "DISTSAGE_VENV": sys.prefix,
            "DISTSAGE_MPI": "wheel",
            "DISTSAGE_LOGS": str(self.directory / "logs"),
            "OMP_NUM_THREADS": "1",
        }
        if fault is not None:
            env |= {"DISTSAGE_TEST_FAULT": json.dumps(fault), "PYTHONPATH": str(FAULTS)}
        words = [
            *("sbatch", "--parsable", f"--partition={SCAVENGER}", f"--time={_MINUTES}"),
            *(f"--nodelist={','.join(self.site.hosts)}", f"--nodes={len(self.site.hosts)}"),
            *("--ntasks-per-node=2", "--cpus-per-task=1", f"--output={self.directory}/job-%j.out"),
            str(REPOSITORY / "sbatch" / "train.sh"),
            *(f"--parts={self.site.parts}", f"--run-dir={self.run_dir}", *_OPTIONS),
            f"--checkpoint-minutes={CHECKPOINT_SECONDS / 60:g}",
            *(["--stage=/tmp/stage"] if self.staged else []),
        ]
        self.job_ids.append(int(self.site.slurm(*words, directory=self.directory, env=env)))

    @property
    def job(self) -> int:
        """The latest job."""
        return self.job_ids[-1]

    def state(self) -> JobState:
        """Ask Slurm how the latest job is."""
        line = self.site.slurm("scontrol", "show", "job", "-o", str(self.job))
        facts = dict(re.findall(r"([\w/:]+)=(\S*)", line))
        hours, minutes, _ = facts["RunTime"].split(":")  # no job here runs for a day
        return JobState(
            name=facts["JobState"],
            exit_code=facts["ExitCode"],
            restarts=int(facts["Restarts"]),
            minutes=60 * int(hours) + int(minutes),
        )

    def limit(self, minutes: int = _MINUTES) -> None:
        """Change the latest job's time limit."""
        self.site.slurm("scontrol", "update", f"JobId={self.job}", f"TimeLimit={minutes}")

    def output(self) -> str:
        """What all jobs have printed, in their order."""
        texts = []
        for job in self.job_ids:
            path = self.directory / f"job-{job}.out"
            if path.exists():
                texts.append(path.read_text(errors="replace").replace("\0", ""))
        return "".join(texts)

    def said(self) -> list[str]:
        """distsage's own lines in the output."""
        return re.findall(r"distsage: (?!job \d+ on )(.*)", self.output())

    def ranks(self) -> dict[int, RankProcesses]:
        """The processes of the latest job's ranks."""
        return ranks(self.site.cluster, self.site.hosts, self.job)

    def epochs(self) -> int:
        """How many epochs are recorded."""
        path = self.run_dir / "epochs.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def checkpoints(self) -> list[Path]:
        """The checkpoints that are whole, oldest first."""
        return sorted((self.run_dir / "checkpoints").glob("[0-9]*.safetensors"))

    def temporary_files(self) -> list[Path]:
        """Files that are being written, or were when their writer was killed."""
        return sorted(self.run_dir.rglob(".*.tmp"))

    def wait_for(self, what: Callable[[], Found], seconds: float) -> Found | None:
        """Wait until `what` is there; None when `seconds` have passed or the job is over."""
        deadline = time.monotonic() + seconds
        while True:
            if found := what():
                return found
            if time.monotonic() > deadline or self.state().over:
                return None
            time.sleep(POLL_SECONDS)

    def cancel(self) -> None:
        """End the latest job, if it is not over."""
        if self.job_ids and not self.state().over:
            self.site.slurm("scancel", str(self.job))
