"""Where rounds happen: an emulated Slurm of two hosts, a small disk, the parts of a graph."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.slurm_cluster import jobs
from tools.slurm_cluster.cluster import REPOSITORY, RUN, Cluster
from tools.slurm_cluster.packages import install_missing
from tools.slurm_cluster.settings import CONTROLLER

GRAPH = "synthetic:3000:10"
_PREFIX = "chaos-"
_DISK_BYTES = 64 * 2**20
_NEW_MOUNT_NAMESPACE = 0x20000  # CLONE_NEWNS
# Processes end, and their shared memory goes, shortly after Slurm says that a job has ended.
_CLEAN_SECONDS = 20.0


class ChaosError(Exception):
    """Rounds cannot go on, for a reason that is no fault of distsage's."""


@dataclass(frozen=True)
class Site:
    """What all rounds share.

    Attributes:
        cluster: it is up.
        hosts: two of them.
        shared: a directory that all hosts see.
        disk: a small file system of its own that all hosts see, for run directories.
        parts: of `GRAPH`, one for each host.
    """

    cluster: Cluster
    hosts: Sequence[str]
    shared: Path
    disk: Path
    parts: Path

    def slurm(
        self, *words: str, directory: Path | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a command of Slurm as on a login host; return what it prints.

        Raises:
            ChaosError: it failed.
        """
        answer = subprocess.run(
            self.cluster.command(CONTROLLER, words, directory or self.shared),
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if answer.returncode != 0:
            raise ChaosError(f"{' '.join(words)}: {answer.stderr.strip()}")
        return answer.stdout.strip()

    def living(self) -> list[str]:
        """Return the hosts that have power."""
        up = self.cluster.first_processes()
        return [host for host in self.hosts if host in up]

    def left(self) -> list[str]:
        """Return what jobs have left on the living hosts, once they have had time to end."""
        deadline = time.monotonic() + _CLEAN_SECONDS
        while True:
            left = [
                f"{host}: {name}"
                for host in self.living()
                for name in sorted(jobs.left_on(self.cluster, host))
            ]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """Bring everything up for as long as the block runs; needs root, takes half a minute.

    This process leaves the machine's mounts and takes a copy of its own, so that the disk is gone
    when it and the hosts have ended, however they do.
    """
    install_missing()
    _sweep()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNT_NAMESPACE) != 0:
        raise ChaosError(f"no mounts of its own: {os.strerror(ctypes.get_errno())}")
    _run("mount", "--make-rprivate", "/")
    with contextlib.ExitStack() as undo:
        base = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="distsage-chaos-")))
        shared, disk = base / "shared", base / "disk"
        shared.mkdir()
        disk.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "disk", str(disk))
        undo.callback(_run, "umount", "--lazy", str(disk))
        parts = shared / "parts"
        program = [sys.executable, "-m", "distsage", "partition", f"--dataset={GRAPH}"]
        _run(*program, "--num-parts=2", f"--output={parts}")
        cluster = Cluster(f"{_PREFIX}{os.getpid()}")
        undo.callback(cluster.down)
        cluster.up(2, cpus=4, rate=None, shm_size="1g", shared=[shared, disk])
        yield Site(cluster, cluster.running().hosts, shared, disk, parts)


def _sweep() -> None:
    """End the clusters of rounds that were killed."""
    for state in RUN.glob(f"distsage-cluster-{_PREFIX}*"):
        pid = state.name.rpartition("-")[2]
        if not Path("/proc", pid).exists():
            Cluster(f"{_PREFIX}{pid}").down()


def _run(*words: str) -> None:
    answer = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    if answer.returncode != 0:
        raise ChaosError(f"{' '.join(words)}: {answer.stderr.strip()}")


def clear(directory: Path) -> None:
    """Remove a directory that may be there."""
    shutil.rmtree(directory, ignore_errors=True)
