"""Copies of a host's parts on its own disk. Runs on the first rank of every host.

A staged directory holds them, the topology and the JSON files, which is all that a host reads.
It is removed as soon as every rank of the host has opened what it needs: files that are open or
mapped stay readable without a name, and vanish with the job, whatever ends it. A job that dies
earlier leaves a directory whose lock no process holds; the next job removes it.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from distsage.errors import UserError
from distsage.limits import human_bytes
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.manifest import MANIFEST

_LOCK = ".lock"


def staged_path(stage: Path, job: str, host: int) -> Path:
    """Where a host's copy lies."""
    return stage / f"distsage-stage.{os.getuid()}.{job}.{host}"


def stage_parts(
    host_parts: HostParts,
    host: int,
    target: Path,
    progress: Callable[[str], None] = lambda doing: None,
) -> HostParts:
    """Copy a host's parts and check every byte on the way; open the copy.

    Args:
        host_parts: to copy from.
        host: this one.
        target: directory to make.
        progress: told what is copied, with every few MiB.

    Raises:
        UserError: the target cannot be written, has too little room, or a file is not the one in
            the manifest.
    """
    parts = host_parts.parts
    names = parts.files_of(host_parts.held(host))
    need = sum(parts.manifest.files[name].bytes for name in names)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(mode=0o700)  # its place may be anybody's, such as /tmp
        free = shutil.disk_usage(target).free
    except OSError as error:
        raise UserError(f"cannot write to --stage {target.parent}: {error.strerror}") from error
    if need > free:
        target.rmdir()
        raise UserError(
            f"--stage {target.parent} has {human_bytes(free)} free but {host_parts.names(host)} "
            f"and the topology need {human_bytes(need)}; name another directory, or leave --stage "
            "out"
        )
    try:
        # Held until this process ends, so that `sweep_staged` of another job leaves the copy alone.
        lock = os.open(target / _LOCK, os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in (MANIFEST, *names):
            (target / name).parent.mkdir(exist_ok=True)
            on_chunk = partial(progress, f"copying {name}")
            checksum = _copy(parts.path / name, target / name, on_chunk)
            if name in parts.manifest.files and checksum != parts.manifest.files[name].sha256:
                raise UserError(
                    f"{parts.path / name} is not the file in the manifest (its checksum differs); "
                    "copy it again or partition the graph again"
                )
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(f"cannot stage {parts.path} to {target}: {error.strerror}") from error
    except UserError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    staged = host_parts.reopened(target)
    if staged.manifest != parts.manifest:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(f"{parts.path / MANIFEST} changed while it was copied; start the job again")
    return staged


def _copy(source: Path, target: Path, on_chunk: Callable[[], None]) -> str:
    """Copy a file; return the checksum of what was read."""
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "xb") as writer:
        while chunk := reader.read(1 << 22):
            digest.update(chunk)
            writer.write(chunk)
            on_chunk()
    return digest.hexdigest()


def sweep_staged(stage: Path) -> list[str]:
    """Remove copies that dead jobs of this user left in `stage`; return their names.

    Others may write to `stage`, too: what another user put there, or a link, is left alone.
    """
    swept = []
    for directory in stage.glob(f"distsage-stage.{os.getuid()}.*"):
        with contextlib.suppress(OSError):
            status = directory.lstat()
            if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
                continue
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(lock)
            shutil.rmtree(directory)
            swept.append(directory.name)
    return swept
