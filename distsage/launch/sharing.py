"""Hosts that write parts together: one MPI job of one rank a host. Runs on every rank of it.

Rank 0 leads: it does all that one host would do alone, and has the others write their shares of the
parts. Each step is a collective of all ranks: rank 0 says what is to be done, everybody does it,
and rank 0 gets what came of it. The graph does not go through MPI: the others read what rank 0 has
left on the file system that all share.

A watcher stands beside every rank (`distsage.launch.watch`): it bounds all waits, and a rank that
fails, is stuck, or whose host is lost ends the job with one sentence that names it.
"""

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from distsage.config import JobOptions, PartitionConfig, TrainConfig
from distsage.errors import UserError
from distsage.files import explain_write_errors
from distsage.launch import hosts as host_lists
from distsage.launch.keys import derive_key
from distsage.launch.watch.progress import State, Watched
from distsage.launch.watch.ring import Ring
from distsage.launch.watch.watcher import run_watched
from distsage.limits import hold_to

if TYPE_CHECKING:
    from distsage.launch.world import World
    from distsage.partitioning.shares import Hosts, Plan, Share

T = TypeVar("T")

Lead = Callable[[PartitionConfig, Callable[[Path], "Hosts"]], None]
"""Partitions on rank 0. Told the folder of the stages once it is there, it gets the hosts."""

# The watchers bound the waits for ranks that compute.
_LONGEST_WAIT = timedelta(days=7)


def partition_on_hosts(read_config: Callable[[], PartitionConfig], lead: Lead) -> None:
    """Be one rank of a job that partitions, watched by a process beside it.

    Args:
        read_config: reads the configuration; called on rank 0 only.
        lead: called on rank 0 only.

    Raises:
        SystemExit: with the rank's exit status.
    """
    run_watched(partial(_be_a_rank, read_config, lead), JobOptions.startup_timeout)


@dataclass(frozen=True)
class _Join:
    """Join the ring of watchers; the stages lie in `folder`."""

    folder: Path


@dataclass(frozen=True)
class _End:
    """All is done, or rank 0 has met a user's mistake."""

    mistake: str | None


def _be_a_rank(read_config: Callable[[], PartitionConfig], lead: Lead, watched: Watched) -> None:
    # Imports MPI, which initialises it: only after the fork.
    from distsage.launch.agreement import join_mpi

    world, config = join_mpi(read_config, watched)
    hold_to(config.memory_bytes)
    if world.rank == 0:
        mistake = None
        try:
            lead(config, partial(_Leader, world, config, watched))
        except UserError as error:
            mistake = str(error)
        world.broadcast("the end", _End(mistake))
    else:
        mistake = _follow(world, config, watched)
    if mistake is not None:
        world.leave(mistake)


class _Leader:
    """`Hosts`, as rank 0 of the job sees them. Made where the folder of the stages is there."""

    def __init__(
        self, world: "World", config: PartitionConfig, watched: Watched, folder: Path
    ) -> None:
        self._world = world
        self._watched = watched
        world.broadcast("the folder", _Join(folder.resolve()))
        _join_ring(world, config, watched, folder.resolve())
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        logging.info(f"{world.size} hosts write the parts: {', '.join(world.host_of)}")
        watched.mark("reading and assigning", State.COMPUTING)

    @property
    def num_hosts(self) -> int:
        """See `Hosts`."""
        return self._world.size

    def begin(self, plan: "Plan", own: "Share") -> None:
        """See `Hosts`."""
        self._own = own
        self._world.broadcast("the plan", plan)

    def each(self, work: "Callable[[Share], T]") -> list[T]:
        """See `Hosts`."""
        self._world.broadcast("the work", work)
        result = work(self._own)
        self._watched.mark("waiting for the other hosts", State.WAITING)
        results = self._world.gather_all("the hosts' shares", result)
        self._watched.mark("putting the shares together", State.COMPUTING)
        return results


def _follow(world: "World", config: PartitionConfig, watched: Watched) -> str | None:
    """Do what rank 0 says, until the end. Returns the mistake that it has met, if any."""
    from distsage.partitioning.shares import Plan

    share: Share | None = None
    folder = Path()
    while True:
        said: Any = world.broadcast("what to do next", None)
        watched.mark("writing its share", State.COMPUTING)
        if isinstance(said, _End):
            return said.mistake
        if isinstance(said, _Join):
            folder = said.folder
            _join_ring(world, config, watched, folder)
        elif isinstance(said, Plan):
            share = said.share(world.rank)
        else:
            with explain_write_errors(folder, "--output"):
                result = said(share)
            watched.mark("waiting for rank 0", State.WAITING)
            world.gather_all("the hosts' shares", result)
        watched.mark("waiting for rank 0", State.WAITING)


def _join_ring(world: "World", config: PartitionConfig, watched: Watched, folder: Path) -> None:
    """Learn who is on which host, and have the watchers know each other. Collective.

    Raises:
        SystemExit: the hosts differ, do not reach each other or do not share the file system; rank
            0 has said so, and the status is 2.
        TimeoutError: a rank did not answer in time; the message names it.
    """
    from distsage.launch import preflight

    # Of this run and no other, so that no host remembers it as missing.
    probe = folder / "logs" / f".{world.broadcast('run', secrets.token_hex(8))}"
    note = os.environ.get("DISTSAGE_FAILURE_NOTE") or str(folder / "failure.txt")
    if world.rank == 0:
        probe.parent.mkdir(exist_ok=True)
        probe.touch()
        with suppress(FileNotFoundError):
            os.unlink(note)  # of an earlier run
    facts = world.gather_all(
        "hosts",
        (
            socket.gethostname(),
            os.environ.get("SLURMD_NODENAME"),
            host_lists.own_addresses(),
            preflight.versions(),
        ),
    )
    preflight.release_mpich_segments()  # everybody has come up
    system_names, slurm_names, addresses_of, versions = map(list, zip(*facts, strict=True))
    nodelist = world.gather_all("hosts", os.environ.get("SLURM_JOB_NODELIST"))[0]
    world.host_of = world.agree(
        "hosts", lambda: host_lists.name_hosts(system_names, slurm_names, nodelist)
    )
    by_host = dict(zip(world.host_of, versions, strict=True))
    world.agree("versions", lambda: preflight.check_versions(by_host))
    hosts = list(dict.fromkeys(world.host_of))
    chosen = world.agree(
        "addresses",
        lambda: host_lists.choose_addresses(
            hosts, dict(zip(world.host_of, addresses_of, strict=True)), config.interface
        ),
    )
    ips = [chosen[hosts.index(host)].ip for host in world.host_of]
    port = watched.listen(ips[world.rank], caller_ip=ips[world.rank - 1])
    ports = world.gather_all("ports", port)
    targets = {host: (ip, [port]) for host, ip, port in zip(world.host_of, ips, ports, strict=True)}
    world.agree("network", lambda: preflight.check_reach(world.host_of[world.rank], targets))
    world.agree("shared directory", lambda: _check_shared(probe, folder))
    if world.rank == 0:
        probe.unlink()  # all ranks have seen it
    secret = world.broadcast("job secret", secrets.token_bytes(32))
    ring = Ring(
        rank=world.rank,
        labels=[f"rank {rank} on {host}" for rank, host in enumerate(world.host_of)],
        addresses=list(zip(ips, ports, strict=True)),
        key=derive_key(secret, "ring of watchers").hex(),
        note=note,
        log_directory=str(folder / "logs"),
        stall_timeout=TrainConfig.stall_timeout,
    )
    world.agree("logs", lambda: watched.join(ring, "--output"))
    world.timeout = _LONGEST_WAIT.total_seconds()


def _check_shared(probe: Path, folder: Path) -> None:
    """See that this host sees what rank 0 has made.

    Raises:
        UserError: it does not.
    """
    if not probe.exists():
        raise UserError(
            f"what this job makes beside the --output, {folder}, is not visible on "
            f"{socket.gethostname()}; choose one on a file system that all hosts share"
        )
