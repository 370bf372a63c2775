"""Bring one MPI job up, from `mpirun` to servers that serve and trainers that can train.

Runs on every rank of `distsage train`. The order matters and is the same everywhere: rank 0 reads
the configuration, MPI carries it to the others, every rank learns its role and address, the
servers start, the trainers connect to them, and only then torch.distributed comes up among the
trainers.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from distsage.config import JobOptions, PreflightConfig, TrainConfig
from distsage.errors import UserError
from distsage.files import atomic_file
from distsage.launch import hosts as host_lists
from distsage.launch import preflight
from distsage.launch.ports import find_free_ports
from distsage.launch.roles import Assignment, assign, emulated_layout
from distsage.launch.stage import stage_part, staged_path, sweep_staged
from distsage.launch.watch import WAIT_SECONDS, Ring, State, Watched
from distsage.launch.world import World
from distsage.partition.parts import Parts

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from distsage.launch.dgl_seam import DGLJob, GraphStore

Config = TypeVar("Config", bound=JobOptions)


@dataclass(frozen=True)
class Place:
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
        parts: the parts to work on.
    """

    config: JobOptions
    name: str
    assignment: Assignment
    hosts: list[str]
    everyone: list[Assignment]
    addresses: list[host_lists.Address]
    watchers: list[tuple[str, int]]
    is_first: bool
    parts: Parts

    @property
    def own_address(self) -> host_lists.Address:
        """Of this rank's host."""
        return self.addresses[self.assignment.host]


@dataclass(frozen=True)
class Job:
    """One rank's view of a training job that is up.

    Attributes:
        config: the same on every rank.
        assignment: of this rank.
        hosts: names of the hosts, in the order of the parts.
        addresses: one per host.
        port: of this host's main server; its backups follow.
        parts: the parts to train on, this host's copy if they are staged.
        staged: directory of that copy, on the host's first rank's pair only.
        dgl: what DGL has to know.
        store: torch.distributed's rendezvous; trainers only.
    """

    config: TrainConfig
    assignment: Assignment
    hosts: list[str]
    addresses: list[host_lists.Address]
    port: int
    parts: Parts
    staged: Path | None
    dgl: "DGLJob"
    store: "TCPStore | None"


@dataclass(frozen=True)
class _RankFacts:
    """What each rank tells the others of its host."""

    host: str
    addresses: list[host_lists.Address]
    watcher_port: int
    versions: dict[str, str]


def check(read_config: Callable[[], PreflightConfig], watched: Watched) -> None:
    """`distsage preflight`: agree on everything that training needs, and say so. Collective."""
    world = _world(watched)
    started = time.monotonic()
    config = _read_on_rank_0(world, read_config)
    place = _agree_on_place(world, config, watched)
    if world.rank == 0:
        print(
            f"preflight: {place.parts.manifest.graph_name} on {len(place.hosts)} hosts "
            f"({', '.join(place.hosts)}), {place.assignment.pairs_per_host} pairs each, over "
            f"{place.own_address.interface}: ready to train "
            f"(checked in {time.monotonic() - started:.1f} s)",
            flush=True,
        )


def start(read_config: Callable[[], TrainConfig], watched: Watched) -> Job:
    """Agree on configuration, hosts, roles, addresses and ports. Collective over all ranks.

    Every wait is bounded by the configuration's start-up timeout.

    Args:
        read_config: reads the configuration; called on rank 0 only.
        watched: joins the ring of watchers once everybody's address is known.

    Raises:
        SystemExit: the user got something wrong; rank 0 has said what, and the status is 2.
        TimeoutError: a rank did not answer in time; the message names it.
    """
    world = _world(watched)
    config = _read_on_rank_0(world, read_config)
    place = _agree_on_place(world, config, watched)
    assignment, hosts, parts = place.assignment, place.hosts, place.parts

    secret = world.broadcast("job secret", secrets.token_bytes(32))
    ports, store = _open_ports(world, place)
    world.agree("run directory", lambda: _prepare_run_directory(world, config, place, ports))
    world.agree("ip_config", lambda: _check_own_line(config, place))
    watched.join(
        Ring(
            rank=world.rank,
            labels=[f"rank {one.rank} ({one.role} on {hosts[one.host]})" for one in place.everyone],
            addresses=place.watchers,
            token=secret.hex(),
            note=world.broadcast("failure note", _failure_note(world, config)),
            log_directory=str(config.run_dir / "logs"),
            stall_timeout=config.stall_timeout,
        )
    )
    staged = None
    if config.stage is not None:
        watched.mark("staging its part", State.WAITING)
        target = staged_path(config.stage, place.name, assignment.host)
        world.agree("staging", lambda: _stage(place, target), _time_to_read(parts))
        parts = world.agree("staged parts", lambda: Parts.open(target))
        staged = target

    watched.mark("importing DGL", State.STARTING)
    from distsage.launch.dgl_seam import DGLJob

    return Job(
        config=config,
        assignment=assignment,
        hosts=hosts,
        addresses=place.addresses,
        port=ports[assignment.host],
        parts=parts,
        staged=staged,
        dgl=DGLJob(
            assignment=assignment,
            ip=place.own_address.ip,
            ip_config=(config.run_dir / "ip_config.txt").resolve(),
            part_config=parts.dgl_config,
            prefix=f"distsage.{os.getuid()}.{place.name}.{assignment.host}.",
            secret=secret,
            startup_timeout=config.startup_timeout,
            feature_dtype=config.feat_dtype,
        ),
        store=store,
    )


def _world(watched: Watched) -> World:
    watched.mark("joining MPI")
    from mpi4py import MPI

    return World(MPI.COMM_WORLD, JobOptions.startup_timeout)


def _agree_on_place(world: World, config: JobOptions, watched: Watched) -> Place:
    """The preflight: every stage ends well on all ranks, or the job ends with one sentence."""
    world.timeout = config.startup_timeout
    watched.mark("preflight")
    facts = world.gather_all(
        "hosts",
        _RankFacts(
            host_lists.own_name(),
            host_lists.own_addresses(),
            watched.port,
            preflight.versions(),
        ),
    )
    clocks = world.gather_all("clocks", time.time())
    world.host_of = [fact.host for fact in facts]
    hosts, rank_hosts = world.agree("hosts", lambda: _layout(config, facts))
    everyone = world.agree(
        "pairing", lambda: [assign(rank, rank_hosts, hosts) for rank in range(world.size)]
    )
    assignment = everyone[world.rank]
    firsts = [rank_hosts.index(host) for host in range(len(hosts))]
    is_first = firsts[assignment.host] == world.rank
    _set_threads(assignment, facts)

    def by_host(values: list[Any]) -> dict[str, Any]:
        return {host: values[first] for host, first in zip(hosts, firsts, strict=True)}

    world.agree(
        "versions",
        lambda: preflight.check_versions(by_host([fact.versions for fact in facts])),
    )
    world.agree("clocks", lambda: preflight.check_clocks(by_host(clocks)))
    addresses = world.agree("addresses", lambda: _addresses(config, hosts, rank_hosts, facts))
    name = world.broadcast(
        "job name", f"{os.environ.get('SLURM_JOB_ID', os.getpid())}.{secrets.token_hex(4)}"
    )
    own_ip = addresses[assignment.host].ip
    with ExitStack() as listeners:
        own_ports: list[int] = []
        if is_first:
            own_ports = listeners.enter_context(preflight.reachable_ports(own_ip, name))
        listening = world.gather_all("network", own_ports)
        targets = {
            host: (address.ip, listening[first])
            for host, address, first in zip(hosts, addresses, firsts, strict=True)
        }
        own_host = hosts[assignment.host]
        world.agree(
            "network", lambda: preflight.check_reach(own_host, targets) if is_first else None
        )

    watched.mark("checking the parts", State.WAITING)
    parts = world.agree("parts", lambda: _open_parts(config, hosts))
    world.agree(
        "checksums",
        lambda: preflight.verify_part(parts, assignment.host) if is_first else None,
        _time_to_read(parts),
    )
    watched.mark("preflight")
    # Emulated hosts share one machine, and its first rank acts for all of them.
    hosted = [
        host for host, first in enumerate(firsts) if facts[first].host == facts[world.rank].host
    ]
    if firsts[hosted[0]] == world.rank:
        preflight.sweep_leftovers()
        if isinstance(config, TrainConfig) and config.stage is not None:
            sweep_staged(config.stage)
    world.agree(
        "shared memory",
        lambda: preflight.check_shared_memory(parts, hosted) if is_first else None,
    )
    return Place(
        config=config,
        name=name,
        assignment=assignment,
        hosts=hosts,
        everyone=everyone,
        addresses=addresses,
        watchers=[
            (addresses[one.host].ip, fact.watcher_port)
            for one, fact in zip(everyone, facts, strict=True)
        ],
        is_first=is_first,
        parts=parts,
    )


def _time_to_read(parts: Parts) -> float:
    """Seconds that reading all parts may take beyond the start-up timeout: at 20 MB/s."""
    return sum(file.bytes for file in parts.manifest.files.values()) / 20e6


def _stage(place: Place, target: Path) -> None:
    if place.is_first:
        stage_part(place.parts, place.assignment.host, target)


def release_stage(job: Job) -> None:
    """Remove this host's staged copy, which all its ranks have opened. Called by one trainer."""
    if job.staged is not None and job.assignment.pair_on_host == 0:
        shutil.rmtree(job.staged)


def _open_ports(world: World, place: Place) -> "tuple[list[int], TCPStore | None]":
    """Find every host's server ports, and open the trainers' rendezvous. Collective.

    Returns:
        The port of each host's main server, and the rendezvous (trainers only).
    """
    assignment, timeout = place.assignment, world.timeout
    port = 0
    if place.is_first:
        port = find_free_ports(place.own_address.ip, assignment.pairs_per_host, place.name)
    is_trainer_0 = assignment.role == "trainer" and assignment.trainer_rank == 0
    store = _open_store(place, timeout) if is_trainer_0 else None
    ports = world.gather_all("ports", (assignment.host, port, store.port if store else 0))
    store_port = max(store_port for _, _, store_port in ports)
    if assignment.role == "trainer" and store is None:
        store = _join_store(place, store_port, timeout)
    by_host = [0] * len(place.hosts)
    for host, first_port, _ in ports:
        by_host[host] = max(by_host[host], first_port)
    return by_host, store


def _read_on_rank_0(world: World, read_config: Callable[[], Config]) -> Config:
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
    if world.size == 1:
        world.leave(
            "this runs under an MPI launcher with 2 ranks per pair: mpirun -n 2 ... python -m "
            "mpi4py -m distsage train ... (on a cluster: sbatch sbatch/train.sh; on one machine "
            "without MPI: python -m distsage local)"
        )
    config: Config = outcome
    return config


def _layout(config: JobOptions, facts: list[_RankFacts]) -> tuple[list[str], list[int]]:
    """Names of the hosts in the order of the parts, and every rank's host index."""
    names = [fact.host for fact in facts]
    if config.emulated_hosts is not None:
        if len(set(names)) != 1:
            raise UserError(
                "--emulated-hosts acts as several hosts on one machine, but the ranks run on "
                f"{', '.join(dict.fromkeys(names))}; leave it out on a cluster"
            )
        layout = emulated_layout(len(names), config.emulated_hosts)
        return [f"{names[0]}#{host}" for host in range(config.emulated_hosts)], layout
    order = host_lists.order_hosts(names, os.environ.get("SLURM_JOB_NODELIST"))
    return order, [order.index(name) for name in names]


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


def _open_parts(config: JobOptions, hosts: list[str]) -> Parts:
    parts = Parts.open(config.parts_dir)
    if parts.num_parts != len(hosts):
        raise UserError(
            f"{parts.path} has {parts.num_parts} parts but the job runs on {len(hosts)} "
            f"hosts ({', '.join(hosts)}); use as many hosts as parts, or partition again with "
            f"--num-parts {len(hosts)}"
        )
    return parts


def _set_threads(assignment: Assignment, facts: list[_RankFacts]) -> None:
    """Share the cores that this rank may use among the trainers that share them.

    Must come before torch and DGL are imported. A value that the user set stays.
    """
    if assignment.role == "server":
        threads = 1
    else:
        machines = len({fact.host for fact in facts})
        trainers_here = assignment.num_trainers // machines
        threads = max(1, len(os.sched_getaffinity(0)) // trainers_here)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def _open_store(place: Place, timeout: float) -> "TCPStore":
    """Open the trainers' rendezvous on a port that the system picks. On trainer 0."""
    from torch.distributed import TCPStore

    return TCPStore(
        place.own_address.ip,
        0,
        place.assignment.num_trainers,
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )


def _join_store(place: Place, port: int, timeout: float) -> "TCPStore":
    from torch.distributed import TCPStore

    return TCPStore(
        place.addresses[0].ip,
        port,
        place.assignment.num_trainers,
        is_master=False,
        timeout=timedelta(seconds=timeout),
    )


def _prepare_run_directory(
    world: World, config: TrainConfig, place: Place, ports: list[int]
) -> None:
    """Make the run directory and write the list of servers that DGL reads. On rank 0."""
    if world.rank != 0:
        return
    try:
        (config.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        with atomic_file(config.run_dir / "ip_config.txt", "w") as stream:
            for address, port in zip(place.addresses, ports, strict=True):
                stream.write(f"{address.ip} {port}\n")
    except OSError as error:
        raise UserError(f"cannot write to --run-dir {config.run_dir}: {error.strerror}") from error


def _failure_note(world: World, config: TrainConfig) -> str:
    """Where the first rank that fails says why; rank 0 removes a note of an earlier run."""
    note = os.environ.get("DISTSAGE_FAILURE_NOTE") or str(config.run_dir.resolve() / "failure.txt")
    if world.rank == 0:
        with suppress(FileNotFoundError):
            os.unlink(note)
    return note


def _check_own_line(config: TrainConfig, place: Place) -> None:
    """Hold this rank's address against the file that DGL will read."""
    path = config.run_dir / "ip_config.txt"
    host = place.assignment.host
    if not path.exists():
        raise UserError(
            f"{path} is not visible on {place.hosts[host]}; choose a --run-dir on a file system "
            "that all hosts share"
        )
    listed = host_lists.read_ip_config(path)[host]
    own = place.own_address.ip
    assert listed == own, f"{path} says {listed} for {place.hosts[host]}, which is {own}"


def connect(job: Job) -> "GraphStore":
    """Connect this trainer to all servers, then to the other trainers. Collective over trainers.

    Raises:
        TimeoutError: a server did not start to listen in time; the message names its host.
    """
    from distsage.launch import dgl_seam

    assignment, config, store = job.assignment, job.config, job.store
    assert store is not None
    own = job.addresses[assignment.host]
    port = job.port + assignment.pair_on_host
    if not dgl_seam.wait_for_listener(own.ip, port, config.startup_timeout):
        raise TimeoutError(
            f"the server of rank {assignment.rank - 1} on {job.hosts[assignment.host]} did not "
            f"listen on {own.ip}:{port} within {config.startup_timeout:.0f} s"
        )
    store.set(f"listening/{assignment.trainer_rank}", "")
    store.wait(
        [f"listening/{rank}" for rank in range(assignment.num_trainers)],
        timedelta(seconds=config.startup_timeout),
    )
    graph_store = dgl_seam.GraphStore(job.dgl, job.parts.manifest.graph_name, job.parts.offsets)

    import torch.distributed

    os.environ["GLOO_SOCKET_IFNAME"] = own.interface
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=assignment.trainer_rank,
        world_size=assignment.num_trainers,
        timeout=timedelta(seconds=max(config.startup_timeout, config.stall_timeout + WAIT_SECONDS)),
    )
    return graph_store
