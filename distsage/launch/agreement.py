"""Agree on who runs where, before anything is started. Runs on every rank of an MPI job.

The steps of the preflight, in the same order on all ranks: rank 0 reads the configuration, MPI
carries it to the others, every rank learns its role and address, and each host is asked what
`distsage.launch.preflight` has to ask. A step ends well on all ranks, or the job ends with one
sentence.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distsage.config import JobOptions, PreflightConfig, RankOptions, job_name
from distsage.errors import UserError
from distsage.kernels import level
from distsage.kernels.level import Level
from distsage.launch import hosts as host_lists
from distsage.launch import preflight
from distsage.launch.roles import Assignment, assign, emulated_layout
from distsage.launch.stage import sweep_staged
from distsage.launch.watch.progress import State, Watched
from distsage.launch.world import World
from distsage.limits import usable_cores
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.parts import Parts
from distsage.partitioning.verify import verify

T = TypeVar("T")
Config = TypeVar("Config", bound=JobOptions)


@dataclass(frozen=True)
class Agreement(Generic[Config]):
    """What the ranks have agreed on: who runs where, on which addresses, with which parts.

    Attributes:
        config: the same on every rank.
        name: of the job; no other job has it.
        assignment: of this rank.
        hosts: names of the hosts, in the order of the parts.
        everyone: the assignment of every rank.
        addresses: one per host.
        watchers: (ip, port) of every rank's watcher.
        is_first: whether this is its host's first rank, which acts for the host.
        trainer_on_machine: number of this rank's pair among those of its machine. A machine that
            acts as several hosts has more pairs than each of them.
        parts: the parts to work on.
    """

    config: Config
    name: str
    assignment: Assignment
    hosts: list[str]
    everyone: list[Assignment]
    addresses: list[host_lists.Address]
    watchers: list[tuple[str, int]]
    is_first: bool
    trainer_on_machine: int
    parts: HostParts

    @property
    def own_address(self) -> host_lists.Address:
        """The address of this rank's host."""
        return self.addresses[self.assignment.host]


@dataclass(frozen=True)
class _RankFacts:
    """What each rank tells the others of its host.

    Attributes:
        system_name: what the host calls itself.
        slurm_name: SLURMD_NODENAME.
        nodelist: Slurm's list of the job's hosts.
        addresses: of the host's interfaces.
        versions: of what has to be equal everywhere.
    """

    system_name: str
    slurm_name: str | None
    nodelist: str | None
    addresses: list[host_lists.Address]
    versions: dict[str, str]
    level: Level


def check(world: World, config: PreflightConfig, watched: Watched) -> None:
    """`distsage preflight`: agree on everything that training needs, and say so. Collective."""
    started = time.monotonic()
    agreed = reach_agreement(world, config, watched)
    if world.rank == 0:
        print(
            f"preflight: {agreed.parts.manifest.graph_name} on {len(agreed.hosts)} hosts "
            f"({', '.join(agreed.hosts)}), {agreed.assignment.pairs_per_host} pairs each, over "
            f"{agreed.own_address.interface}: ready to train "
            f"(checked in {time.monotonic() - started:.1f} s)",
            flush=True,
        )


def join_mpi(read_config: Callable[[], T], watched: Watched) -> tuple[World, T]:
    """Join the other ranks, and learn the configuration. Collective over all ranks; blocks.

    The default start-up timeout bounds this.

    Args:
        read_config: reads the configuration; called on rank 0 only.
        watched: notes progress.

    Raises:
        SystemExit: the user got something wrong; rank 0 has said what, and the status is 2.
        TimeoutError: a rank did not answer in time; the message names it.
    """
    watched.mark("joining MPI")
    from mpi4py import MPI

    world = World(MPI.COMM_WORLD, JobOptions.startup_timeout, watched.mark)
    return world, _read_on_rank_0(world, read_config)


def _read_on_rank_0(world: World, read_config: Callable[[], T]) -> T:
    """Have rank 0 read the configuration, and give it to all. Ends the job if that fails."""
    outcome: Any = None
    if world.rank == 0:
        try:
            outcome = read_config()
        except UserError as error:
            outcome = error
        except SystemExit as leaving:  # --help, or an option's error that is printed already
            outcome = leaving
    outcome = world.broadcast("configuration", outcome)
    if isinstance(outcome, UserError):
        world.leave(str(outcome))
    if isinstance(outcome, SystemExit):
        world.leave_quietly(outcome.code)
    config: T = outcome
    return config


def reach_agreement(world: World, config: Config, watched: Watched) -> Agreement[Config]:
    """Agree on hosts, roles, addresses and parts. Collective over all ranks.

    The configuration's start-up timeout bounds from here on what the ranks do together, each step
    of this for a start, unless a rank gets on with the step. The watcher has it, too.

    Args:
        world: of the job.
        config: the same on every rank.
        watched: notes progress.

    Raises:
        SystemExit: the user got something wrong; rank 0 has said what, and the status is 2.
        TimeoutError: a rank did not answer in time; the message names it.
    """
    world.timeout = config.startup_timeout
    watched.allow_startup(config.startup_timeout)
    if world.size == 1:
        world.leave(
            "this runs under an MPI launcher with 2 ranks per pair: mpirun -n 2 ... python -m "
            "mpi4py -m distsage train ... (on a cluster: sbatch sbatch/train.sh; on one machine "
            "without MPI: python -m distsage local)"
        )
    watched.mark("preflight")
    own_level = world.agree("kernels", level.chosen)
    facts = world.gather_all(
        "hosts",
        _RankFacts(
            socket.gethostname(),
            os.environ.get("SLURMD_NODENAME"),
            os.environ.get("SLURM_JOB_NODELIST"),
            host_lists.own_addresses(),
            preflight.versions(),
            own_level,
        ),
    )
    preflight.release_mpich_segments()  # everybody has come up
    clocks = world.gather_all("clocks", time.time())
    world.host_of = [fact.system_name for fact in facts]
    machines = world.agree("hosts", lambda: _machines(config, facts))
    world.host_of = machines
    nodelist = facts[0].nodelist  # not every launcher passes it to all ranks
    hosts, rank_hosts = world.agree("hosts", lambda: _layout(config, machines, nodelist))
    everyone = world.agree(
        "pairing", lambda: [assign(rank, rank_hosts, hosts) for rank in range(world.size)]
    )
    assignment = everyone[world.rank]
    firsts = [rank_hosts.index(host) for host in range(len(hosts))]
    is_first = firsts[assignment.host] == world.rank
    _set_threads(assignment, machines)
    _set_level(world, machines, facts)

    def by_host(values: list[Any]) -> dict[str, Any]:
        return {host: values[first] for host, first in zip(hosts, firsts, strict=True)}

    world.agree(
        "versions",
        lambda: preflight.check_versions(by_host([fact.versions for fact in facts])),
    )
    world.agree("clocks", lambda: preflight.check_clocks(by_host(clocks)))
    addresses = world.agree("addresses", lambda: _addresses(config, hosts, rank_hosts, facts))
    name = world.broadcast("job name", f"{job_name()}.{secrets.token_hex(4)}")
    ip_of = [addresses[one.host].ip for one in everyone]
    own_ip = ip_of[world.rank]
    watcher_port = watched.listen(own_ip, caller_ip=ip_of[world.rank - 1])
    with ExitStack() as listeners:
        own_ports: list[int] = []
        if is_first:
            own_ports = listeners.enter_context(preflight.reachable_ports(own_ip, name))
        listening = world.gather_all("network", (watcher_port, own_ports))
        targets = {
            host: (address.ip, listening[first][1])
            for host, address, first in zip(hosts, addresses, firsts, strict=True)
        }
        own_host = hosts[assignment.host]
        world.agree(
            "network", lambda: preflight.check_reach(own_host, targets) if is_first else None
        )

    watched.mark("checking the parts", State.WAITING)
    parts = world.agree("parts", lambda: HostParts.deal(Parts.open(config.parts_dir), hosts))
    if world.rank == 0 and parts.parts.num_parts > len(hosts):
        held = (f"{parts.names(host)} on {name}" for host, name in enumerate(hosts))
        print(f"{parts.parts.num_parts} parts on {len(hosts)} hosts: {', '.join(held)}", flush=True)
    world.agree(
        "number of nodes",
        lambda: preflight.check_num_nodes(parts, assignment.host, config) if is_first else None,
    )
    world.agree(
        "checksums",
        lambda: (
            verify(parts.parts, parts.held(assignment.host), world.progress) if is_first else None
        ),
    )
    watched.mark("preflight")
    # Where emulated hosts share a machine, its first rank checks for all of them.
    hosted = [host for host, first in enumerate(firsts) if machines[first] == machines[world.rank]]
    acts_for_machine = firsts[hosted[0]] == world.rank
    if acts_for_machine:
        preflight.sweep_leftovers()
        if isinstance(config, RankOptions) and config.stage is not None:
            sweep_staged(config.stage)
    world.agree(
        "memory",
        lambda: (
            preflight.check_memory(parts, hosted, config, 2 * assignment.pairs_per_host)
            if acts_for_machine
            else None
        ),
    )
    return Agreement(
        config=config,
        name=name,
        assignment=assignment,
        hosts=hosts,
        everyone=everyone,
        addresses=addresses,
        watchers=[(ip, port) for ip, (port, _) in zip(ip_of, listening, strict=True)],
        is_first=is_first,
        trainer_on_machine=sum(
            machines[rank] == machines[world.rank]
            for rank in range(0, world.rank - world.rank % 2, 2)
        ),
        parts=parts,
    )


def _machines(config: JobOptions, facts: list[_RankFacts]) -> list[str]:
    """The name of the machine that each rank runs on."""
    return host_lists.name_hosts(
        [fact.system_name for fact in facts],
        [fact.slurm_name for fact in facts],
        None if config.emulated_hosts is not None else facts[0].nodelist,
    )


def _layout(
    config: JobOptions, machines: list[str], nodelist: str | None
) -> tuple[list[str], list[int]]:
    """Names of the hosts in the order of the parts, and every rank's host index."""
    if config.emulated_hosts is not None:
        if len(set(machines)) != 1:
            raise UserError(
                "--emulated-hosts acts as several hosts on one machine, but the ranks run on "
                f"{', '.join(dict.fromkeys(machines))}; leave it out on a cluster"
            )
        layout = emulated_layout(len(machines), config.emulated_hosts)
        return [f"{machines[0]}#{host}" for host in range(config.emulated_hosts)], layout
    order = host_lists.order_hosts(machines, nodelist)
    return order, [order.index(name) for name in machines]


def _set_threads(assignment: Assignment, machines: list[str]) -> None:
    """Share the cores that this rank may use among the trainers that share them.

    Must come before torch and DGL are imported. A value that the user set stays.
    """
    if assignment.role == "server":
        threads = 1
    else:
        trainers_here = assignment.num_trainers // len(set(machines))
        threads = max(1, usable_cores() // trainers_here)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def _set_level(world: World, machines: list[str], facts: list[_RankFacts]) -> None:
    """Have all ranks compute at one level, the lowest of their processors'.

    Must come before numba, torch and DGL are imported.
    """
    lowest = min(fact.level for fact in facts)
    level.hold_to(lowest)
    if world.rank == 0 and any(fact.level > lowest for fact in facts):
        those = dict.fromkeys(
            machine for machine, fact in zip(machines, facts, strict=True) if fact.level == lowest
        )
        print(
            f"kernels {lowest} on all hosts, because {', '.join(those)} can run no higher level; "
            "hosts of one kind would be faster",
            flush=True,
        )


def _addresses(
    config: JobOptions, hosts: list[str], rank_hosts: list[int], facts: list[_RankFacts]
) -> list[host_lists.Address]:
    if config.emulated_hosts is not None:
        chosen = host_lists.emulated_addresses(config.emulated_hosts)
        available = {host: [a.ip] for host, a in zip(hosts, chosen, strict=True)}
    else:
        of_host = {name: facts[rank_hosts.index(host)].addresses for host, name in enumerate(hosts)}
        chosen = host_lists.choose_addresses(hosts, of_host, config.interface)
        available = {name: [a.ip for a in addresses] for name, addresses in of_host.items()}
    if config.ip_config is None:
        return chosen
    listed = host_lists.read_ip_config(config.ip_config)
    host_lists.check_ip_config(config.ip_config, listed, hosts, available)
    if config.emulated_hosts is not None:
        return chosen
    return [
        next(a for a in of_host[host] if a.ip == ip) for ip, host in zip(listed, hosts, strict=True)
    ]
