"""Bring one MPI job up, from `mpirun` to servers that serve and trainers that can train.

Runs on every rank of `distsage train`. The order matters and is the same everywhere: rank 0 reads
the configuration, MPI carries it to the others, every rank learns its role and address, the
servers start, the trainers connect to them, and only then torch.distributed comes up among the
trainers.
"""

import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from distsage.config import TrainConfig
from distsage.errors import UserError
from distsage.files import atomic_file
from distsage.launch import hosts as host_lists
from distsage.launch.ports import find_free_ports
from distsage.launch.roles import Assignment, assign, emulated_layout
from distsage.launch.watch import Ring, Watched
from distsage.launch.world import World
from distsage.partition.parts import Parts

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from distsage.launch.dgl_seam import DGLJob, GraphStore


@dataclass(frozen=True)
class Job:
    """One rank's view of the job, once everybody has agreed on it.

    Attributes:
        config: the same on every rank.
        assignment: of this rank.
        hosts: names of the hosts, in the order of the parts.
        addresses: one per host.
        port: of this host's main server; its backups follow.
        parts: the parts to train on.
        dgl: what DGL has to know.
        store: torch.distributed's rendezvous; trainers only.
    """

    config: TrainConfig
    assignment: Assignment
    hosts: list[str]
    addresses: list[host_lists.Address]
    port: int
    parts: Parts
    dgl: "DGLJob"
    store: "TCPStore | None"


@dataclass(frozen=True)
class _RankFacts:
    """What each rank tells the others of its host."""

    host: str
    addresses: list[host_lists.Address]
    watcher_port: int


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
    watched.mark("joining MPI")
    from mpi4py import MPI

    world = World(MPI.COMM_WORLD, TrainConfig.startup_timeout)
    config = _read_on_rank_0(world, read_config)
    world.timeout = config.startup_timeout

    facts = world.gather_all(
        "hosts", _RankFacts(host_lists.own_name(), host_lists.own_addresses(), watched.port)
    )
    world.label = lambda rank: f"rank {rank} on {facts[rank].host}"
    hosts, rank_hosts = world.agree("host layout", lambda: _layout(config, facts))
    assignment = world.agree("roles", lambda: assign(world.rank, rank_hosts, hosts))
    addresses = world.agree("addresses", lambda: _addresses(config, hosts, rank_hosts, facts))
    own_address = addresses[assignment.host]

    parts = world.agree("parts", lambda: _open_parts(config, hosts))
    _set_threads(assignment, facts)

    name = world.broadcast(
        "job name", f"{os.environ.get('SLURM_JOB_ID', os.getpid())}.{secrets.token_hex(4)}"
    )
    secret = world.broadcast("job secret", secrets.token_bytes(32))
    is_first_on_host = rank_hosts.index(assignment.host) == world.rank
    port = (
        find_free_ports(own_address.ip, assignment.pairs_per_host, name) if is_first_on_host else 0
    )
    store = _open_store(assignment, own_address.ip, config.startup_timeout)
    store_port = store.port if store is not None else 0
    ports = world.gather_all("ports", (port, store_port))
    host_ports = [ports[rank_hosts.index(host)][0] for host in range(len(hosts))]
    store_rank = next(rank for rank in range(1, world.size, 2) if rank_hosts[rank] == 0)
    if assignment.role == "trainer" and store is None:
        store = _join_store(
            assignment, addresses[0].ip, ports[store_rank][1], config.startup_timeout
        )

    ip_config = config.run_dir / "ip_config.txt"
    world.agree("ip_config", lambda: _write_ip_config(world, config, addresses, host_ports))
    world.agree("ip_config check", lambda: _check_own_line(config, hosts, assignment, own_address))

    note = world.broadcast("failure note", _failure_note(config) if world.rank == 0 else None)
    everyone = [assign(rank, rank_hosts, hosts) for rank in range(world.size)]
    watched.join(
        Ring(
            rank=world.rank,
            labels=[f"rank {one.rank} ({one.role} on {hosts[one.host]})" for one in everyone],
            addresses=[
                (addresses[one.host].ip, fact.watcher_port)
                for one, fact in zip(everyone, facts, strict=True)
            ],
            token=secret.hex(),
            note=note,
            log_directory=str(config.run_dir / "logs"),
            stall_timeout=config.stall_timeout,
        )
    )
    watched.mark("importing DGL")
    from distsage.launch.dgl_seam import DGLJob

    dgl_job = DGLJob(
        assignment=assignment,
        ip=own_address.ip,
        ip_config=ip_config.resolve(),
        part_config=parts.dgl_config,
        prefix=f"distsage.{os.getuid()}.{name}.{assignment.host}.",
        secret=secret,
        startup_timeout=config.startup_timeout,
    )
    return Job(
        config=config,
        assignment=assignment,
        hosts=hosts,
        addresses=addresses,
        port=host_ports[assignment.host],
        parts=parts,
        dgl=dgl_job,
        store=store,
    )


def _read_on_rank_0(world: World, read_config: Callable[[], TrainConfig]) -> TrainConfig:
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
            "train runs under an MPI launcher with 2 ranks per pair: mpirun -n 2 ... python -m "
            "mpi4py -m distsage train (on a cluster: sbatch sbatch/train.sh; on one machine "
            "without MPI: python -m distsage local)"
        )
    assert isinstance(outcome, TrainConfig)
    return outcome


def _layout(config: TrainConfig, facts: list[_RankFacts]) -> tuple[list[str], list[int]]:
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
    config: TrainConfig, hosts: list[str], rank_hosts: list[int], facts: list[_RankFacts]
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


def _open_parts(config: TrainConfig, hosts: list[str]) -> Parts:
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


def _open_store(assignment: Assignment, ip: str, timeout: float) -> "TCPStore | None":
    """Trainer 0 opens the rendezvous on a port that the system picks."""
    if assignment.role == "server" or assignment.trainer_rank != 0:
        return None
    from torch.distributed import TCPStore

    return TCPStore(
        ip,
        0,
        assignment.num_trainers,
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )


def _join_store(assignment: Assignment, ip: str, port: int, timeout: float) -> "TCPStore":
    from torch.distributed import TCPStore

    return TCPStore(
        ip, port, assignment.num_trainers, is_master=False, timeout=timedelta(seconds=timeout)
    )


def _write_ip_config(
    world: World, config: TrainConfig, addresses: list[host_lists.Address], ports: list[int]
) -> None:
    if world.rank != 0:
        return
    try:
        (config.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        with atomic_file(config.run_dir / "ip_config.txt", "w") as stream:
            for address, port in zip(addresses, ports, strict=True):
                stream.write(f"{address.ip} {port}\n")
    except OSError as error:
        raise UserError(f"cannot write to --run-dir {config.run_dir}: {error.strerror}") from error


def _failure_note(config: TrainConfig) -> str:
    """Where the first rank that fails says why; a note of an earlier run is removed by rank 0."""
    path = os.environ.get("DISTSAGE_FAILURE_NOTE") or str(config.run_dir.resolve() / "failure.txt")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return path


def _check_own_line(
    config: TrainConfig, hosts: list[str], assignment: Assignment, own: host_lists.Address
) -> None:
    """Hold this rank's address against the file that DGL will read."""
    path = config.run_dir / "ip_config.txt"
    host = hosts[assignment.host]
    if not path.exists():
        raise UserError(
            f"{path} is not visible on {host}; choose a --run-dir on a file system that all hosts "
            "share"
        )
    listed = host_lists.read_ip_config(path)[assignment.host]
    assert listed == own.ip, f"{path} says {listed} for {host}, which is {own.ip}"


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
    graph_store = dgl_seam.GraphStore(job.dgl, job.parts.manifest.graph_name)

    import torch.distributed

    os.environ["GLOO_SOCKET_IFNAME"] = own.interface
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=assignment.trainer_rank,
        world_size=assignment.num_trainers,
        timeout=timedelta(seconds=config.startup_timeout),
    )
    return graph_store
