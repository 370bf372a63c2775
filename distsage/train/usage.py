"""What each host takes, sends and waits for, counted over an epoch. Runs on trainer ranks."""

import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch

from distsage.limits import SHARED_MEMORY
from distsage.train.collectives import Collectives
from distsage.train.energy import POWERCAP, Energy

_COUNTED = (
    "trainer_bytes",
    "server_bytes",
    "shared_bytes",
    "trainer_cpu_seconds",
    "server_cpu_seconds",
)
_BY_HOST = ("received_bytes_from", "sent_bytes_to", "fetch_wait_seconds_for")


class Traffic(Protocol):
    """What a trainer has asked of the servers so far, float64 `[hosts]` each."""

    received_bytes: np.ndarray
    sent_bytes: np.ndarray
    wait_seconds: np.ndarray


@dataclass(frozen=True)
class NoTraffic:
    """Of a run on one machine."""

    received_bytes: np.ndarray = field(default_factory=lambda: np.zeros(1))
    sent_bytes: np.ndarray = field(default_factory=lambda: np.zeros(1))
    wait_seconds: np.ndarray = field(default_factory=lambda: np.zeros(1))


class Usage:
    """Counts for one trainer and its server.

    Args:
        trainers: of the job.
        hosts: of each trainer, by rank: the index of its host.
        server: the process of this trainer's server; None without one.
        traffic: between this trainer and the servers.
        powercap: where the kernel counts energy.
    """

    def __init__(
        self,
        trainers: Collectives,
        hosts: Sequence[int] = (0,),
        server: int | None = None,
        traffic: Traffic | None = None,
        powercap: Path = POWERCAP,
    ) -> None:
        self._trainers = trainers
        self._hosts = np.asarray(hosts)
        self._num_hosts = int(self._hosts.max()) + 1
        self._processes = [os.getpid()] + ([] if server is None else [server])
        self._traffic = NoTraffic() if traffic is None else traffic
        self._before = self._counts(self._families())
        # One trainer of each host counts for all.
        counts = list(hosts).index(hosts[trainers.rank]) == trainers.rank
        self._energy = Energy(powercap) if counts else None
        self._joules = 0.0

    def of_epoch(self, busy_seconds: Sequence[float]) -> dict[str, Any]:
        """What the hosts have taken, sent and waited for since the last call; collective.

        Args:
            busy_seconds: of each step, from the end of the last sum of gradients to the start of
                the next one. As many on every trainer.

        Returns:
            A record for each host, as docs/run-directory.md has it, under `hosts`.
        """
        families = self._families()
        now = self._counts(families)
        own = [_own_bytes(family) for family in families] + [0]
        row = [
            self._joules_since(),
            *own[:2],
            _shared_bytes(),
            *np.maximum(now - self._before, 0),
        ]
        self._before = now
        trainers = self._trainers
        table = trainers.concatenate(torch.tensor([row], dtype=torch.float64)).numpy()
        joules, of_trainers = table[:, 0], table[:, 1:]
        busy = trainers.concatenate(torch.tensor([list(busy_seconds)], dtype=torch.float64))
        waits = waits_for(busy.numpy(), self._hosts)
        hosts = []
        for host in range(self._num_hosts):
            rows = of_trainers[self._hosts == host]
            total = rows.sum(0)
            total[2] = rows[:, 2].max()  # the host's trainers map the same segments
            counted, by_host = total[: len(_COUNTED)], total[len(_COUNTED) :]
            hosts.append(
                {
                    **{
                        name: _number(name, value)
                        for name, value in zip(_COUNTED, counted, strict=True)
                    },
                    **{
                        name: [_number(name, value) for value in values]
                        for name, values in zip(
                            _BY_HOST, by_host.reshape(len(_BY_HOST), -1), strict=True
                        )
                    },
                    "energy_joules": _known(joules[self._hosts == host]),
                    "step_wait_seconds_for": [round(float(value), 6) for value in waits[host]],
                }
            )
        return {"hosts": hosts}

    def _joules_since(self) -> float:
        """Of this host since the last call; NaN if another trainer or nobody knows them."""
        joules = None if self._energy is None else self._energy.joules()
        if joules is None:
            return float("nan")
        before, self._joules = self._joules, joules
        return joules - before

    def _families(self) -> list[list[psutil.Process]]:
        return [_family(process) for process in self._processes]

    def _counts(self, families: list[list[psutil.Process]]) -> np.ndarray:
        """What grows: CPU-seconds of trainer and server, then `_BY_HOST` host by host."""
        trainers, traffic = self._trainers, self._traffic
        cpu = [_cpu_seconds(family) for family in families] + [0.0]
        received = traffic.received_bytes + self._per_host(trainers.received_bytes)
        sent = traffic.sent_bytes + self._per_host(trainers.sent_bytes)
        return np.concatenate([cpu[:2], received, sent, traffic.wait_seconds])

    def _per_host(self, of_trainers: Sequence[int]) -> np.ndarray:
        return np.bincount(self._hosts, of_trainers, self._num_hosts)


def waits_for(busy: np.ndarray, hosts: np.ndarray) -> np.ndarray:
    """Who waited for whom when gradients were added up.

    In each step all trainers wait for the one that was busy longest.

    Args:
        busy: float64 `[T, steps]`, seconds that each trainer was busy before it added up.
        hosts: int `[T]`, the host of each trainer.

    Returns:
        float64 `[H, H]`: seconds that the trainers of a row's host waited for one of a column's.
    """
    num_hosts = int(hosts.max()) + 1
    waits = np.zeros((num_hosts, num_hosts))
    if busy.size:
        slowest = busy.argmax(0)
        waited = busy.max(0) - busy
        np.add.at(waits, (hosts[:, None], hosts[slowest][None, :]), waited)
    return waits


def _known(joules: np.ndarray) -> float | None:
    known = joules[~np.isnan(joules)]
    return round(float(known[0]), 3) if len(known) else None


def _number(name: str, value: float) -> float | int:
    return int(value) if "bytes" in name else round(float(value), 6)


def _family(process: int) -> list[psutil.Process]:
    """A process and those that it has started; none if it cannot be seen."""
    try:
        parent = psutil.Process(process)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:  # another namespace, or it has ended
        return []


def _cpu_seconds(family: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in family:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _own_bytes(family: Sequence[psutil.Process]) -> int:
    """Memory that is theirs alone: without files and shared memory.

    Pages that processes have had in common since a fork are counted once, which takes the kernel
    longer.
    """
    file, name = ("status", "RssAnon:") if len(family) == 1 else ("smaps_rollup", "Pss_Anon:")
    total = 0
    for process in family:
        try:
            lines = Path(f"/proc/{process.pid}/{file}").read_text().splitlines()
        except OSError:  # has ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    return total


def _shared_bytes() -> int:
    """Shared memory of distsage's that this process has mapped; whole segments."""
    ends: dict[str, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith(f"{SHARED_MEMORY}/distsage."):
            low, high = (int(address, 16) for address in words[0].split("-"))
            end = int(words[2], 16) + high - low
            ends[words[4]] = max(ends.get(words[4], mmap.PAGESIZE), end)
    return sum(ends.values())
