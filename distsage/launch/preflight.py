"""What a host can be asked before training starts; each failure is one sentence with a remedy.

Runs on every rank, or on the first rank of every host. The functions here look at one host only;
`distsage.launch.agreement` calls them step by step, and lets all ranks know of a failure.
"""

import contextlib
import importlib.metadata
import mmap
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from distsage import __version__
from distsage.config import JobOptions
from distsage.errors import UserError
from distsage.launch.ports import FIRST_PORT, LAST_PORT, listen
from distsage.limits import SHARED_MEMORY, free_memory, free_shared_memory, human_bytes
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.kept_rows import cached_bytes, cached_gids, own_bytes
from distsage.partitioning.manifest import NODE_DATA

MPICH_SEGMENT = "mpich_shm_"
# Clocks that differ by more make logs and time limits misleading; munge gives up at 300 s.
MAX_CLOCK_SKEW_SECONDS = 30.0
# How long a host may take to answer a connection attempt of another.
REACH_SECONDS = 5.0
_MOST_ROWS = 2**31 - 1
# A host's servers make at most eight segments, each of whole pages.
_ROUNDING_BYTES = 8 * mmap.PAGESIZE
# What a rank takes beyond its data, from the preflight on: DGL, torch and compiled code. Measured:
# 756 MiB for two servers and two trainers (Linux, x86-64).
RANK_BYTES = 190 << 20


def versions() -> dict[str, str]:
    """Versions that have to be equal on all hosts."""
    return {
        "distsage": __version__,
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "dgl", "numpy", "mpi4py")},
    }


def check_versions(of_hosts: Mapping[str, Mapping[str, str]]) -> None:
    """Compare the versions of all hosts.

    Raises:
        UserError: two hosts differ.
    """
    first, *others = of_hosts
    for host in others:
        for package, version in of_hosts[host].items():
            expected = of_hosts[first][package]
            if version != expected:
                raise UserError(
                    f"{host} has {package} {version} but {first} has {expected}; use one "
                    "environment, on a file system that all hosts share"
                )


def check_clocks(of_hosts: Mapping[str, float]) -> None:
    """Compare clocks that were read at about the same moment, seconds since 1970.

    Raises:
        UserError: two hosts differ by more than MAX_CLOCK_SKEW_SECONDS.
    """
    earliest = min(of_hosts, key=lambda host: of_hosts[host])
    latest = max(of_hosts, key=lambda host: of_hosts[host])
    skew = of_hosts[latest] - of_hosts[earliest]
    if skew > MAX_CLOCK_SKEW_SECONDS:
        raise UserError(
            f"the clock of {latest} is {skew:.0f} s ahead of that of {earliest}; have the hosts "
            "synchronise their clocks (NTP)"
        )


@contextlib.contextmanager
def reachable_ports(ip: str, job: str) -> Iterator[list[int]]:
    """Listen on two ports of this host while other hosts try to reach it.

    One port is from the range of the servers, one from that of the trainers, which the system
    picks, since a firewall may treat them differently.
    """
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(listen(ip, f"{job} reach")),
            stack.enter_context(socket.create_server((ip, 0), backlog=1024)),
        ]
        yield [int(listener.getsockname()[1]) for listener in listeners]


def check_reach(own_host: str, targets: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """Connect to the ports that each host listens on: `targets` maps a host to (ip, ports).

    Raises:
        UserError: a host cannot be reached.
    """
    for host, (ip, ports) in targets.items():
        for port in ports:
            try:
                socket.create_connection((ip, port), timeout=REACH_SECONDS).close()
            except OSError as error:
                raise UserError(
                    f"{own_host} cannot reach {host} at {ip}:{port} ({error.strerror or error}); "
                    "name an interface that joins the hosts with --interface, or open the ports "
                    f"{FIRST_PORT}-{LAST_PORT} and the ephemeral ones between them"
                ) from error


def shared_memory_need(parts: HostParts, host: int, config: JobOptions) -> int:
    """Bytes of shared memory that a host takes: the data of its nodes, and its cache."""
    manifest, dtype = parts.manifest, config.feat_dtype
    stored = sum(manifest.files[f"part{part}/{NODE_DATA}"].bytes for part in parts.held(host))
    others = stored if manifest.features.is_sparse else stored - 4 * parts.feature_numbers(host)
    own = own_bytes(parts, host, dtype)
    cached = cached_bytes(parts, cached_gids(parts, host, config), dtype)
    return others + own + cached + _ROUNDING_BYTES


def memory_need(parts: HostParts, host: int, config: JobOptions, ranks: int) -> int:
    """Bytes that a host's ranks take from now on until they train, shared memory included."""
    # A server reads one part after the other in float32, puts them together in the type that it
    # keeps, and copies that to shared memory.
    is_sparse = parts.manifest.features.is_sparse
    numbers = max(parts.manifest.parts[part].feature_numbers for part in parts.held(host))
    together = own_bytes(parts, host, config.feat_dtype)
    shared = shared_memory_need(parts, host, config)
    return together + max(0 if is_sparse else 4 * numbers, shared) + ranks * RANK_BYTES


def check_num_nodes(parts: HostParts, host: int, config: JobOptions) -> None:
    """See that a host's trainers can number the nodes.

    They do so in int32: all nodes, after the rows that their host keeps.

    Raises:
        UserError: there are too many.
    """
    manifest = parts.manifest
    own = parts.num_nodes(host)
    most = _MOST_ROWS - manifest.num_nodes - own
    if most < 0:
        raise UserError(
            f"{manifest.graph_name} has {manifest.num_nodes:,} nodes and {parts.names(host)} "
            f"{own:,} of them, together more than the {_MOST_ROWS:,} that can be numbered; use "
            "more hosts, or train on fewer nodes"
        )
    cached = len(cached_gids(parts, host, config))
    if cached > most:
        raise UserError(
            f"a cache of {cached:,} rows is too large for {parts.names(host)} of "
            f"{manifest.graph_name}: with its {manifest.num_nodes:,} nodes at most {most:,} can be "
            "numbered; lower --cache-ratio, or give --cache-bytes"
        )


def check_memory(parts: HostParts, hosted: Sequence[int], config: JobOptions, ranks: int) -> None:
    """Compare what there is on this machine with what its hosts need.

    Args:
        hosted: the hosts that this machine is.
        ranks: of the job, for each of them.

    Raises:
        UserError: there is too little shared memory, or too little memory.
    """
    which = ", ".join(parts.names(host) for host in hosted)
    need = sum(shared_memory_need(parts, host, config) for host in hosted)
    free = free_shared_memory()
    if need > free:
        raise UserError(
            f"{SHARED_MEMORY} has {human_bytes(free)} free but {which} needs {human_bytes(need)}; "
            "free some, have it made larger, use more hosts, a shorter --feat-dtype or a smaller "
            "cache"
        )
    need = sum(memory_need(parts, host, config, ranks) for host in hosted)
    free = free_memory()
    if need > free:
        raise UserError(
            f"{human_bytes(free)} of memory are left for this job but {which} needs "
            f"{human_bytes(need)}; ask for more (sbatch --mem), use more hosts, a shorter "
            "--feat-dtype or a smaller cache"
        )


def sweep_leftovers() -> list[str]:
    """Remove shared-memory segments that earlier jobs of this user left; return their names.

    A segment counts as left when no process of this host has it open or mapped. DGL, MPI and
    `distsage.features.cache` keep a segment that they make open until they have mapped it, so a job
    that is just starting loses none.
    """
    ours = (f"distsage.{os.getuid()}.", "sm_segment.", "vader_segment.", MPICH_SEGMENT)
    # Listed before the processes are looked at: a segment that is made meanwhile is not in it.
    candidates = [
        path
        for path in SHARED_MEMORY.iterdir()
        if path.name.startswith(ours) and _owner(path) == os.getuid()
    ]
    held = held_segments() if candidates else set()
    swept = []
    for path in candidates:
        if path.name not in held:
            path.unlink(missing_ok=True)
            swept.append(path.name)
    return swept


def _owner(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_uid
    return None


def release_mpich_segments() -> None:
    """Take the names away from the shared memory that MPICH has in this process.

    Without a name it vanishes with the processes that have it mapped, whatever ends them; MPICH
    itself removes it only at a good end. Every rank of the host must have come up before.
    """
    for name in held_segments("self"):
        if name.startswith(MPICH_SEGMENT):
            (SHARED_MEMORY / name).unlink(missing_ok=True)


def held_segments(processes: str = "[0-9]*") -> set[str]:
    """Names of the shared-memory segments that processes have open or mapped.

    Args:
        processes: a pattern of names in /proc; all processes by default.
    """
    names = set()
    for process in Path("/proc").glob(processes):
        held = []
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            # Open files come first: a segment is mapped before it is closed, so it is not missed.
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile
                    held.append(os.readlink(descriptor))
            held += (process / "maps").read_text().splitlines()
        for line in held:
            _, found, name = line.partition(f"{SHARED_MEMORY}/")
            if found:
                names.add(name.removesuffix(" (deleted)"))
    return names
