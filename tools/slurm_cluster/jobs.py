"""What a training job has on the hosts of an emulated cluster, seen from the machine under it.

Process ids are the machine's: `os.kill` reaches them, whichever host they run on.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cluster import Cluster

# In PYTHONPATH of a job, it makes the job's ranks slow or fail; see its sitecustomize.py.
FAULTS = Path(__file__).resolve().with_name("faults")
# A rank's command line, after the interpreter's name, and where each MPI says which rank it is.
_RANK = ["-m", "mpi4py", "-m", "distsage"]
_RANK_NUMBERS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
# What an idle host runs: host.sh and its daemons.
_DAEMONS = {"bash", "sleep", "munged", "slurmd"}
# Where jobs leave shared memory and staged copies.
_PLACES = ("dev/shm", "tmp/stage")


@dataclass(frozen=True)
class Process:
    """One process on a host.

    Attributes:
        host: it runs on.
        pid: of it, as the machine sees it.
        parent: its parent's, as the machine sees it.
        name: of its program, as `ps -o comm` shows it.
        words: of its command line.
        settings: its environment at its start.
    """

    host: str
    pid: int
    parent: int
    name: str
    words: Sequence[str]
    settings: dict[str, str]


@dataclass(frozen=True)
class RankProcesses:
    """Where a rank runs: its watcher and, forked from that, the rank itself."""

    host: str
    watcher: int
    rank: int


def processes(cluster: Cluster, hosts: Sequence[str]) -> Iterator[Process]:
    """Yield the processes that run on living hosts, without dead ones that nobody has reaped."""
    living = cluster.first_processes()
    host_of = {_pid_namespace(living[host]): host for host in hosts if host in living}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            pid = int(entry.name)
            host = host_of.get(_pid_namespace(pid))
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            state, parent = rest.split()[:2]
            if host is None or state in "ZX":
                continue
            values = (entry / "environ").read_bytes().split(b"\0")
            pairs = [os.fsdecode(value).split("=", 1) for value in values if b"=" in value]
            words = os.fsdecode((entry / "cmdline").read_bytes()).split("\0")
            settings = {pair[0]: pair[1] for pair in pairs}
            yield Process(host, pid, int(parent), name, words, settings)


def ranks(cluster: Cluster, hosts: Sequence[str], job: int) -> dict[int, RankProcesses]:
    """Return the processes of each rank of a job that has its watcher beside it, by rank."""
    own = [
        process
        for process in processes(cluster, hosts)
        if process.words[1:5] == _RANK and process.settings.get("SLURM_JOB_ID") == str(job)
    ]
    watchers = {process.pid for process in own}
    found = {}
    for process in own:
        number = next(filter(None, map(process.settings.get, _RANK_NUMBERS)), None)
        if number is not None and process.parent in watchers:
            found[int(number)] = RankProcesses(process.host, process.parent, process.pid)
    return found


def left_on(cluster: Cluster, host: str) -> set[str]:
    """Return what jobs have on a host: names of programs, shared memory and staged copies."""
    left = {process.name for process in processes(cluster, [host])} - _DAEMONS
    root = Path(f"/proc/{cluster.first_process(host)}/root")
    for place in _PLACES:
        with contextlib.suppress(FileNotFoundError):
            left |= {f"/{place}/{name}" for name in os.listdir(root / place)}
    return left


def _pid_namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")
