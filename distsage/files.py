"""Files and directories that appear only when they are whole, and small files that are read.

Used on every host.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from distsage.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_MOST_JSON_BYTES = 1 << 26


@contextmanager
def explain_write_errors(path: Path, option: str) -> Iterator[None]:
    """Around code that writes `path`, a place that the user has chosen with `option`.

    Raises:
        UserError: it cannot be written: a full disk, a quota, a permission that is missing.
    """
    try:
        yield
    except OSError as error:
        remedy = "make room there, or name" if error.errno in _FULL else "name"
        # numpy says what it could not write, but gives no number.
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; {remedy} another {option}") from error


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_half_written(path: Path) -> None:
    """Remove what a process that was killed in `atomic_file` has left of `path`.

    Call it where nobody can be writing `path`. Its name may be a pattern, such as `*`.
    """
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; sync and rename it to `path` on success.

    On an exception the temporary file is removed and an older `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def own_directory(path: Path, owner: str, option: str) -> IO[str]:
    """Make `path` unless it is there, and this process its owner.

    The owner holds a lock on `owner.txt`, in which people can read who that is or was. The system
    gives the lock back when the process ends, however it ends; on NFS, when its host is lost, once
    the server misses that host. So no job that lives loses its directory to another one, and no
    dead job blocks it. A file system without locks, such as Lustre mounted without them, cannot
    promise that: there, two jobs may own one directory.

    Returns:
        The file that is locked; closing it gives the directory back.

    Args:
        path: a directory.
        owner: what to call the owner, such as a job's name and its hosts.
        option: with which the user has chosen `path`.

    Raises:
        UserError: the directory belongs to a process that lives, or cannot be written.
    """
    with explain_write_errors(path, option):
        # What a run leaves behind is its owner's alone.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Locks on NFS need a file that is open for writing.
        lock = os.fdopen(os.open(path / "owner.txt", os.O_CREAT | os.O_RDWR, 0o666), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = lock.read().strip()
        lock.close()
        raise UserError(
            f"{path} belongs to a job that is running ({owner}); name another {option}, or wait "
            "until it has ended"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    with explain_write_errors(path / "owner.txt", option):
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        lock.truncate(0)
        lock.write(f"{owner}, process {os.getpid()} on {socket.gethostname()}, since {started}\n")
        lock.flush()
        os.fsync(lock.fileno())
    return lock


def allocate(path: Path, num_bytes: int) -> None:
    """Create a file of zeros whose room on the disk is taken at once, to be mapped into memory.

    Without that, a disk that fills is a SIGBUS in whoever writes to the map.

    Raises:
        OSError: the disk is full.
    """
    with open(path, "wb") as stream:
        if num_bytes:
            os.posix_fallocate(stream.fileno(), 0, num_bytes)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and sync it; on an exception it holds what it held."""
    rest = line.encode() + b"\n"
    # Unbuffered, so that closing the file has nothing left to write.
    with open(path, "ab", buffering=0) as stream:
        length = stream.tell()
        try:
            while rest:
                rest = rest[stream.write(rest) :]
            os.fsync(stream.fileno())
        except BaseException:
            stream.truncate(length)
            raise


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most 64 MiB.

    Raises:
        UserError: it cannot be read, is no regular file (a pipe would make us wait), is too long,
            or holds no JSON object.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"cannot read {path}: it is no regular file")
            # As much memory is taken as may be read.
            content = stream.read(min(status.st_size, _MOST_JSON_BYTES) + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MOST_JSON_BYTES:
        raise UserError(
            f"{path} is longer than {_MOST_JSON_BYTES >> 20} MiB, so it is none of ours"
        )
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise UserError(f"{path} is no JSON of ours: it is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; the file appears whole or not at all."""
    with atomic_file(path, "w") as stream:
        json.dump(value, stream, indent=2)
        stream.write("\n")


def sync_tree(directory: Path) -> None:
    """Flush all files and folders below `directory`, and itself."""
    for folder, _, names in os.walk(directory):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; rename it to `path` on success.

    Raises:
        UserError: `path` exists already, or its parent cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists already; name another directory or remove it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot create {path}: {error.strerror}") from error
    try:
        yield temporary
        sync_tree(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)
