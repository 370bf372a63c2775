"""Bring one MPI job up, from `mpirun` to servers that serve and trainers that can train.

Runs on every rank of `distsage train`. The order matters and is the same everywhere: the ranks
agree on who runs where (`distsage.launch.agreement`), the servers start, the trainers connect to
them, and only then torch.distributed comes up among the trainers.
"""

import os
import secrets
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Generic, NamedTuple, TypeVar

from distsage.config import RankOptions, job_name
from distsage.errors import UserError
from distsage.files import atomic_file, explain_write_errors, own_directory
from distsage.launch import gpus
from distsage.launch import hosts as host_lists
from distsage.launch.agreement import Agreement, reach_agreement
from distsage.launch.keys import derive_key
from distsage.launch.listeners import listening, take_nobody_any_more
from distsage.launch.ports import listen
from distsage.launch.roles import Assignment, Role
from distsage.launch.stage import stage_parts, staged_path
from distsage.launch.watch.progress import State, Watched
from distsage.launch.watch.ring import Ring
from distsage.launch.world import World
from distsage.partitioning.host_parts import HostParts

if TYPE_CHECKING:
    from distsage.launch.dgl.client import GraphStore
    from distsage.launch.dgl.messages import DGLJob
    from distsage.launch.rendezvous import Rendezvous

T = TypeVar("T")
Config = TypeVar("Config", bound=RankOptions)

# The longest that trainers wait for each other. One may work on its share for hours while the
# others wait. The watchers see whether any rank gets on, and end a job where none does.
_LONGEST_WAIT = timedelta(days=7)


class JobDirectory(NamedTuple):
    """The directory that is one job's at a time: its logs, and the list of its servers.

    Attributes:
        path: of the directory, which all hosts see.
        option: with which the user has chosen it.
    """

    path: Path
    option: str


@dataclass(frozen=True)
class Job(Generic[Config]):
    """One rank's view of a job that is up.

    Attributes:
        config: the same on every rank.
        assignment: of this rank.
        hosts: names of the hosts, in the order of the parts that they hold.
        addresses: one per host.
        parts: what each host holds, in this host's copy if that is staged.
        staged: directory of that copy; None if the parts are not staged.
        dgl: what DGL has to know.
        rendezvous: of the trainers, None on servers.
        server_process: of the server of this rank's pair, on this host.
        device: what this rank's model computes on: "cpu", or a GPU such as "cuda:1".
        owner: the lock of the job's directory, which rank 0 holds until it ends; None elsewhere.
    """

    config: Config
    assignment: Assignment
    hosts: list[str]
    addresses: list[host_lists.Address]
    parts: HostParts
    staged: Path | None
    dgl: "DGLJob"
    rendezvous: "Rendezvous | None"
    server_process: int
    device: str
    owner: IO[str] | None


def start(world: World, config: Config, watched: Watched, directory: JobDirectory) -> Job[Config]:
    """Agree on hosts, roles, addresses and ports. Collective over all ranks.

    Every wait is bounded by the configuration's start-up timeout, unless what it waits for gets on.

    Args:
        world: of the job.
        config: the same on every rank.
        watched: joins the ring of watchers once everybody's address is known.
        directory: for the job's logs; rank 0 makes it and holds its lock.

    Raises:
        SystemExit: the user got something wrong; rank 0 has said what, and the status is 2.
        TimeoutError: a rank did not answer in time; the message names it.
    """
    agreed = reach_agreement(world, config, watched)
    assignment, hosts, parts = agreed.assignment, agreed.hosts, agreed.parts
    prefix = f"distsage.{os.getuid()}.{agreed.name}.{assignment.host}."
    staged = None
    if config.stage is not None:
        staged = staged_path(config.stage, agreed.name, assignment.host)
    watched.leave_nothing(prefix, staged)

    device = _agree_on_device(world, agreed)
    secret = world.broadcast("job secret", secrets.token_bytes(32))
    watched.mark("opening ports")
    listener, ports = _open_ports(world, agreed)
    owner = world.agree(
        "job directory", lambda: _prepare_directory(world, directory, agreed, ports)
    )
    world.agree("job directory", lambda: _check_shared(directory, agreed))
    processes = world.gather_all("processes", os.getpid())
    ring = Ring(
        rank=world.rank,
        labels=[f"rank {one.rank} ({one.role} on {hosts[one.host]})" for one in agreed.everyone],
        addresses=agreed.watchers,
        key=derive_key(secret, "ring of watchers").hex(),
        note=world.broadcast("failure note", _failure_note(world, directory)),
        log_directory=str(directory.path / "logs"),
        stall_timeout=config.stall_timeout,
    )
    if world.rank == 0:
        _probe_file(directory, agreed).unlink()  # all ranks have seen it
    world.agree("logs", lambda: watched.join(ring, directory.option))
    if staged is not None:
        watched.mark("staging its part", State.WAITING)
        world.agree("staging", lambda: _stage(agreed, staged, world.progress))
        parts = world.agree("staged parts", lambda: agreed.parts.reopened(staged))

    scale = None
    if config.feat_dtype == "int8":
        scale = world.agree("feature scales", parts.parts.feature_scales)
    watched.mark("importing DGL", State.STARTING)
    from distsage.launch.dgl.messages import DGLJob

    rendezvous = None
    if assignment.role == "trainer":
        from distsage.launch.rendezvous import Rendezvous

        rendezvous = Rendezvous(world)
    addresses = [
        (agreed.addresses[one.host].ip, port)
        for one, port in zip(agreed.everyone, ports, strict=True)
    ]
    return Job(
        config=config,
        assignment=assignment,
        hosts=hosts,
        addresses=agreed.addresses,
        parts=parts,
        staged=staged,
        dgl=DGLJob(
            assignment=assignment,
            servers=_by_number(agreed, "server", addresses),
            server_names=_by_number(agreed, "server", ring.labels),
            trainer_names=_by_number(agreed, "trainer", ring.labels),
            listener=listener,
            parts=parts,
            prefix=prefix,
            secret=secret,
            startup_timeout=config.startup_timeout,
            feature_dtype=config.feat_dtype,
            feature_scale=scale,
        ),
        rendezvous=rendezvous,
        server_process=processes[world.rank - world.rank % 2],
        device=device,
        owner=owner,
    )


def _agree_on_device(world: World, agreed: Agreement) -> str:
    """What this rank's model computes on. Collective; `--device cpu` never asks for a GPU."""
    wanted = agreed.config.device
    if wanted == "cpu":
        return "cpu"
    machine = world.host_of[world.rank]
    is_trainer = agreed.assignment.role == "trainer"
    own = gpus.find_gpu(machine, agreed.trainer_on_machine) if is_trainer else None
    found = world.gather_all("GPUs", own)[1::2]
    use, why = world.agree(
        "GPUs", lambda: gpus.computes_on_gpus(wanted, found, world.host_of[1::2])
    )
    if world.rank == 0 and why:
        print(why, flush=True)
    return f"cuda:{own.index}" if use and own is not None else "cpu"


def _stage(agreed: Agreement, target: Path, progress: Callable[[str], None]) -> None:
    """Copy this host's parts to its own disk, if this is the host's first rank."""
    if agreed.is_first:
        stage_parts(agreed.parts, agreed.assignment.host, target, progress)


def release_stage(job: Job[Config]) -> None:
    """Remove this host's staged copy, which all its ranks have opened. Called by one trainer."""
    if job.staged is not None and job.assignment.pair_on_host == 0:
        shutil.rmtree(job.staged)


def _open_ports(world: World, agreed: Agreement) -> tuple[socket.socket | None, list[int]]:
    """Have every server listen. Collective.

    Returns:
        What this server listens on (servers only), and the port of every rank's server (0 for
        trainers).
    """
    listener = None
    if agreed.assignment.role == "server":
        listener = listen(agreed.own_address.ip, agreed.name)
    port = listener.getsockname()[1] if listener else 0
    return listener, world.gather_all("ports", port)


def _by_number(agreed: Agreement, role: Role, by_rank: Sequence[T]) -> list[T]:
    """What belongs to the servers, or to the trainers, in the order of their numbers."""
    those = [one for one in agreed.everyone if one.role == role]
    return [by_rank[one.rank] for one in sorted(those, key=lambda one: one.server_id)]


def _prepare_directory(
    world: World, directory: JobDirectory, agreed: Agreement, ports: list[int]
) -> IO[str] | None:
    """Make the directory this job's, and write the list of servers for people. On rank 0.

    Returns:
        The directory's lock; None on other ranks.
    """
    if world.rank != 0:
        return None
    owner = own_directory(
        directory.path, f"job {job_name()} on {', '.join(agreed.hosts)}", directory.option
    )
    with explain_write_errors(*directory):
        (directory.path / "logs").mkdir(exist_ok=True)
        _probe_file(directory, agreed).touch()
        with atomic_file(directory.path / "ip_config.txt", "w") as stream:
            for one, port in zip(agreed.everyone, ports, strict=True):
                if one.role == "server" and one.pair_on_host == 0:
                    stream.write(f"{agreed.addresses[one.host].ip} {port}\n")
    return owner


def _failure_note(world: World, directory: JobDirectory) -> str:
    """Where the first rank that fails says why; rank 0 removes a note of an earlier run."""
    note = os.environ.get("DISTSAGE_FAILURE_NOTE") or str(directory.path.resolve() / "failure.txt")
    if world.rank == 0:
        with suppress(FileNotFoundError):
            os.unlink(note)
    return note


def _probe_file(directory: JobDirectory, agreed: Agreement) -> Path:
    """Shows whether a host sees the job's directory.

    No file ever had its name before, so that no host remembers it as missing.
    """
    return directory.path / "logs" / f".{agreed.name}"


def _check_shared(directory: JobDirectory, agreed: Agreement) -> None:
    """See that this host sees the directory that rank 0 has prepared.

    Raises:
        UserError: it does not.
    """
    if not _probe_file(directory, agreed).exists():
        raise UserError(
            f"the {directory.option} that this job has made, {directory.path}, is not visible on "
            f"{agreed.hosts[agreed.assignment.host]}; choose one on a file system that all hosts "
            "share"
        )


def connect(job: Job[Config], watched: Watched) -> "GraphStore":
    """Connect this trainer to all servers, then to the other trainers. Collective over trainers.

    Blocks while the servers load their parts.
    """
    from distsage.launch.dgl.client import GraphStore
    from distsage.launch.proof import prove_trainers

    assignment, rendezvous = job.assignment, job.rendezvous
    assert rendezvous is not None
    own = job.addresses[assignment.host]
    watched.mark("waiting for the servers to load their parts", State.WAITING)
    graph_store = GraphStore(job.dgl)
    watched.mark("connecting to the other trainers", State.STARTING)

    import torch.distributed

    os.environ["GLOO_SOCKET_IFNAME"] = own.interface
    # With "=", NCCL takes this interface alone, not all whose names begin like it.
    os.environ["NCCL_SOCKET_IFNAME"] = f"={own.interface}"
    before = listening()  # MPI's own may be called later
    torch.distributed.init_process_group(
        "gloo" if job.device == "cpu" else "cpu:gloo,cuda:nccl",
        store=rendezvous,
        rank=assignment.trainer_rank,
        world_size=assignment.num_trainers,
        timeout=_LONGEST_WAIT,
    )
    prove_trainers(job.dgl.secret, job.dgl.trainer_names)
    take_nobody_any_more(listening() - before)  # all are connected
    return graph_store
