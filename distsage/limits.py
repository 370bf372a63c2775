"""What this job may use of its host: memory, shared memory, disk and cores. Runs on every host.

A host has more than a job may take. Slurm gives the job a share, as control groups or as a promise
that it holds the job to, and a container has control groups of its own, around or inside them. The
tightest of all counts.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from distsage.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
_PROC = Path("/proc")

# What a process with more memory may load until it is as far: 32 MiB seen, of numba's compiler.
_STILL_TO_LOAD_BYTES = 48 << 20

_most: int | None = None  # what `hold_to` was told
_share: int | None = None  # what `take_share` found


def hold_to(memory: int | None) -> None:
    """Bound what `free_memory` says: this process may have so many bytes in all; None unbinds it.

    Pages of files do not count: they are given back under pressure.
    """
    global _most
    _most = memory


def take_share(processes: int) -> None:
    """Bound what `free_memory` says by an equal share of what the job can still take here.

    Args:
        processes: that begin to take memory now, each of which calls this before one of them does.
    """
    global _share
    _share = _own_memory() + _free_for_job() // processes


def require_memory(need: int, what: str) -> None:
    """See that there is memory for what is to be done next.

    Args:
        need: bytes.
        what: what takes them, as the message begins.

    Raises:
        UserError: there is less.
    """
    free = free_memory()
    if need > free:
        raise UserError(
            f"{what} takes {human_bytes(need)}, but {human_bytes(free)} of memory are left; "
            f"{more_memory(need)}"
        )


def require_disk(need: int, place: Path, what: str) -> None:
    """See that there is room for what is to be written next.

    Args:
        need: bytes.
        place: a directory in which they go.
        what: what takes them, as the message begins.

    Raises:
        UserError: there is less.
    """
    free = free_disk(place)
    if need > free:
        raise UserError(
            f"{what} takes {human_bytes(need)} of disk, but {human_bytes(free)} are left where "
            f"{place} is; make room there, or name another --output"
        )


def more_memory(need: int) -> str:
    """What to do where `need` bytes more are too many."""
    if _most is None or (_share is not None and _share < _most):
        return "use a machine with more"
    least = _own_memory() + need + _STILL_TO_LOAD_BYTES
    return f"give --memory {-(-least // (1 << 20))}M or more"


def free_memory() -> int:
    """Bytes that this job can still take on this host, this process within its bounds."""
    bounds = [most for most in (_most, _share) if most is not None]
    return min([_free_for_job(), *(max(most - _own_memory(), 0) for most in bounds)])


def _free_for_job() -> int:
    free = [psutil.virtual_memory().available, *_group_free()]
    promised = _slurm_memory(os.environ)
    if promised is not None:
        free.append(max(promised - _job_memory(os.environ.get("SLURM_JOB_ID", "")), 0))
    return min(free)


def free_shared_memory() -> int:
    """Bytes that fit into SHARED_MEMORY; they take memory as any others do."""
    status = os.statvfs(SHARED_MEMORY)
    return status.f_bavail * status.f_frsize


def free_disk(path: Path) -> int:
    """Bytes free where `path` will be created."""
    existing = path.resolve()
    while not existing.exists():
        existing = existing.parent
    return psutil.disk_usage(str(existing)).free


def usable_cores() -> int:
    """Cores that this process may keep busy: those it is bound to, and no more than its quota."""
    cores = len(os.sched_getaffinity(0))
    for folder in _own_groups("cpu"):
        # Version 2: "QUOTA PERIOD" in one file; version 1: a file each.
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and words[0] not in ("max", "-1"):
            cores = min(cores, int(words[0]) // int(words[1]))
    return max(cores, 1)


def human_bytes(count: int) -> str:
    """A size for people, such as `1.2 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _own_memory() -> int:
    """Bytes that this process has taken, pages of files apart."""
    lines = (_PROC / "self" / "status").read_text().splitlines()
    (words,) = (line.split() for line in lines if line.startswith("RssAnon:"))
    return int(words[1]) << 10


def _group_free() -> list[int]:
    """Bytes left in each memory control group around this process."""
    free = []
    for folder in _own_groups("memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if not limit or not used or limit == ["max"]:  # the root has no limit
            continue
        # Pages of files are given back under pressure. In version 1 only the sums with the
        # prefix count the groups below.
        words = _words(folder / "memory.stat")
        statistics = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        prefix = "total_" if "total_inactive_file" in statistics else ""
        cache = sum(statistics.get(f"{prefix}{part}_file", 0) for part in ("active", "inactive"))
        # What version 1 knows of groups that a container does not show.
        least = min(int(limit[0]), statistics.get("hierarchical_memory_limit", int(limit[0])))
        free.append(max(least - int(used[0]) + cache, 0))
    return free


def _own_groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups around this process, from the inside out.

    Only those that have `controller`, of version 1, and all of version 2.
    """
    own = {}
    for line in (_PROC / "self" / "cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), group))  # "" stands for version 2
    for line in (_PROC / "self" / "mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup2":
            name = ""
        elif kind == "cgroup" and controller in options.split(","):
            name = controller
        else:
            continue
        if name not in own:
            continue
        group = own[name]
        # A container may see a subtree as its root.
        inside = group if root == "/" else group.removeprefix(root)
        top = Path(mount)
        folder = top / inside.lstrip("/")
        while folder.is_relative_to(top):
            yield folder
            folder = folder.parent


def _words(path: Path) -> list[str]:
    """The words of a file of a control group; none where the group does not have it."""
    try:
        return path.read_text().split()
    except OSError:
        return []


def _slurm_memory(environment: Mapping[str, str]) -> int | None:
    """Bytes that the job asked Slurm for on each host; None if it named no number.

    With --mem-per-cpu hosts may differ; the one with the most cores tells the bound.
    """

    def number(name: str) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdecimal() else 0

    per_host = number("SLURM_MEM_PER_NODE")  # 0: all of the host
    if per_host == 0:
        # Such as "8(x2),4". A step, such as mpirun's daemons, may have fewer cores than its job.
        counts = re.findall(r"(\d+)(?:\(x\d+\))?", environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
        per_host = number("SLURM_MEM_PER_CPU") * max(map(int, counts), default=0)
    return per_host << 20 or None


def _job_memory(job: str) -> int:
    """Bytes that the job's processes on this host have taken, pages of files apart."""
    wanted = f"SLURM_JOB_ID={job}".encode()
    total = 0
    for process in _PROC.glob("[0-9]*"):
        try:
            if wanted not in (process / "environ").read_bytes().split(b"\0"):
                continue
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # ended meanwhile, or another user's
            continue
        for line in lines:
            name, kibibytes, *_ = line.split()
            if name in ("Pss_Anon:", "Pss_Shmem:"):
                total += int(kibibytes) << 10
    return total
