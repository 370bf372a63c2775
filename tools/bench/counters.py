"""What processes have cost so far, read from /proc by the machine that carries the hosts."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICK = 1 / os.sysconf("SC_CLK_TCK")

Hosts = Callable[[], list[list[int]]]
"""Finds the process ids of each host."""


@dataclass(frozen=True)
class Reading:
    """Counters that only grow.

    Attributes:
        time: seconds, monotonic.
        cpu: CPU-seconds of all processes of all hosts, and of their children that ended.
        received: bytes that the hosts' interfaces received, the loopback ones left out.
        machine: CPU-seconds of the whole machine, other people's work included.
    """

    time: float
    cpu: float
    received: int
    machine: float


def read(hosts: Hosts) -> Reading:
    """Read all counters now."""
    now = time.monotonic()
    cpu, received = 0, 0
    for pids in hosts():
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                cpu += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
        received += _received(pids)
    busy = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, soft_irq = map(int, busy[:7])
    return Reading(now, cpu * _TICK, received, (user + nice + system + irq + soft_irq) * _TICK)


def memory(hosts: Hosts) -> list[int]:
    """Bytes in use by each host's processes now; a page that several map counts once.

    Walks page tables: do not call it while times are taken.
    """
    return [sum(map(_proportional_bytes, pids)) for pids in hosts()]


def of_namespaces(namespaces: list[str]) -> Hosts:
    """Hosts known by their process namespaces, as `readlink /proc/self/ns/pid` shows them."""

    def find() -> list[list[int]]:
        pids: dict[str, list[int]] = {namespace: [] for namespace in namespaces}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):  # it ended while we looked
                    namespace = os.readlink(f"/proc/{entry}/ns/pid")
                    if namespace in pids:
                        pids[namespace].append(int(entry))
        return list(pids.values())

    return find


def of_tree(root: int) -> Hosts:
    """One host: a process of this machine and its descendants."""

    def find() -> list[list[int]]:
        try:
            process = psutil.Process(root)
            return [[root, *(child.pid for child in process.children(recursive=True))]]
        except psutil.NoSuchProcess:
            return [[]]

    return find


def _received(pids: list[int]) -> int:
    """Bytes received in the network namespace of the first of `pids` that is still there."""
    for pid in pids:
        with contextlib.suppress(OSError):
            total = 0
            for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]:
                name, _, counts = line.partition(":")
                if name.strip() != "lo":
                    total += int(counts.split()[0])
            return total
    return 0


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
