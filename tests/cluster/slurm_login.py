"""A cluster under test, as a user on its login host sees it."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "cluster"
STATES = Path("/run")
MPIS = [REPOSITORY / ".mpis" / name for name in ("mpich", "mpich4", "intel")]  # `make mpis`
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}


def run_tool(
    *words: str | Path,
    timeout: float = 60,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `tools/cluster`; its output is in .stdout and .stderr, nothing is checked."""
    return subprocess.run(
        [sys.executable, TOOL, *words],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


class SlurmCluster:
    """A cluster that is up, as a user on its login host sees it.

    Jobs run in the directory they are submitted from, which has to be a test's `tmp_path`
    (pytest's base directory is shared by all hosts), and write their log there.
    """

    def __init__(self, name: str, hosts: list[str]) -> None:
        self.name = name
        self.hosts = hosts
        self.state = STATES / f"distsage-cluster-{name}"
        self._jobs: dict[int, dict[str, str]] = {}
        self._listing = threading.Condition()
        self._lister: subprocess.Popen[str] | None = None

    def tool(self, verb: str, *words: str | Path, **options: object) -> str:
        """Run a sub-command of `tools/cluster` on this cluster; return what it prints."""
        answer = run_tool("--name", self.name, verb, *words, **options)  # type: ignore[arg-type]
        assert answer.returncode == 0, f"{verb} {words}: {answer.stdout}{answer.stderr}"
        return answer.stdout

    def exec(self, host: str, *words: str | Path, **options: object) -> str:
        """Run a command on a host; return what it prints."""
        return self.tool("exec", host, *words, **options)

    def submit(self, *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> int:
        """Submit a job with sbatch's arguments from directory `cwd`; return its id."""
        return int(self.tool("submit", *words, cwd=cwd, env=env))

    def job(self, job: int) -> dict[str, str]:
        """Return what Slurm knows about a job: JobState, ExitCode, StdOut, NodeList, ...

        One process on the controller lists the jobs for all threads of the tests, twice a second;
        the answer is from a listing that began after the call.
        """
        with self._listing:
            if self._lister is None:
                self._lister = self._list_jobs()
            for _ in range(2):
                if self._jobs.get(job, {}).get("JobState") in ENDED:
                    break  # it stays so
                assert self._listing.wait(timeout=30), "the controller lists no jobs"
            return self._jobs[job]

    def _list_jobs(self) -> subprocess.Popen[str]:
        script = "while sleep 0.4; do scontrol show job -o && echo; done"
        words = ["--name", self.name, "exec", "controller", "sh", "-c", script]
        lister = subprocess.Popen(
            [sys.executable, TOOL, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

        def read() -> None:
            jobs = {}
            assert lister.stdout is not None
            for line in lister.stdout:  # until the cluster is taken down
                if line.strip():
                    facts = dict(re.findall(r"([\w/:]+)=(.*?)(?= [\w/:]+=|\s*$)", line))
                    jobs[int(facts["JobId"])] = facts
                else:
                    with self._listing:
                        self._jobs = jobs
                        self._listing.notify_all()
                    jobs = {}

        threading.Thread(target=read, daemon=True).start()
        return lister

    def log(self, job: int) -> str:
        """Return what a job has printed so far."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text(errors="replace").replace("\0", "") if path.exists() else ""

    def hosts_of(self, job: int) -> list[str]:
        """Return the hosts that a job has, or had."""
        names = self.job(job)["NodeList"]
        return self.exec("controller", "scontrol", "show", "hostnames", names).split()

    def wait(self, job: int, seconds: float = 60) -> str:
        """Wait until a job has ended; return its state, or fail with its log after `seconds`."""
        deadline = time.monotonic() + seconds
        while (state := self.job(job)["JobState"]) not in ENDED:
            if time.monotonic() > deadline:
                self.exec("controller", "scancel", str(job))
                pytest.fail(f"job {job} is {state} after {seconds} s:\n{self.log(job)}")
        return state

    def complete(self, job: int, seconds: float = 60) -> str:
        """Wait for a job that has to end as COMPLETED with status 0; return its log."""
        state = self.wait(job, seconds)
        code = self.job(job)["ExitCode"]
        log = self.log(job)
        assert (state, code) == ("COMPLETED", "0:0"), f"job {job}: {state} {code}\n{log}"
        return log

    def node_state(self, host: str) -> str:
        """Return a host's state in Slurm's short form: "idle", "alloc", "idle*", "down*"."""
        return self.exec("controller", "sinfo", "-h", "-n", host, "-o", "%t").strip()
