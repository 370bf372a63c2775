"""The failure note: a file that says why the job ended, written by the first watcher that knows.

It lies on a file system that all hosts see. A batch script that names it in DISTSAGE_FAILURE_NOTE
prints it when all is over, and finds beside it what else the ranks tell it, in files whose names
begin like the note's:

    .running    the ranks have come up, and have not all ended well: `HOST PID` of rank 0's watcher
    .ended      all ranks have ended well, whatever becomes of their launcher
    .progress   the run has got on since it began or went on
    .stopped    the run has stopped with a checkpoint because it was asked to; why
    .on-HOST    locked as long as a rank, its watcher or what sweeps after them lives on that host
"""

import contextlib
import enum
import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from distsage.files import atomic_file

# In the note: sbatch/train.sh has Slurm run such a job again.
HOST_LOST = "its host is lost"
# In the note too: the batch script then ends with 2, whatever the launcher makes of the status.
MISTAKE = "a mistake in what was given; rank 0 has said which"


def batch_note() -> str | None:
    """The note that the batch script has named; None without one."""
    return os.environ.get("DISTSAGE_FAILURE_NOTE") or None


class Claim(enum.Enum):
    """What became of an attempt to write the failure note."""

    WRITTEN = enum.auto()
    TAKEN = enum.auto()  # there is one already
    FAILED = enum.auto()  # which must not keep the line from the user


def claim(note: str | None, line: str) -> Claim:
    """Write the failure note, unless there is one."""
    if note is None:
        return Claim.FAILED
    try:
        with open(note, "xb", buffering=0) as stream:
            stream.write(f"{line}\n".encode())
    except FileExistsError:
        return Claim.TAKEN
    except OSError:
        return Claim.FAILED
    return Claim.WRITTEN


def show_that_it_lives() -> IO[str] | None:
    """Hold a lock that the batch script on this host, if there is one, waits for when all is over.

    Slurm kills what is left when the script ends; a sweeper has to put its host in order before.

    Returns:
        The file, which the caller keeps open.
    """
    note = batch_note()
    if note is None:
        return None
    with contextlib.suppress(OSError):  # the job can do without
        alive = open(f"{note}.on-{socket.gethostname()}", "a+")  # noqa: SIM115
        fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return alive
    return None


def is_claimed(note: str) -> bool:
    """Whether a watcher has said why the job ends."""
    return os.path.exists(note)


def say_running() -> None:
    """Tell the batch script, if there is one, that the ranks have come up. In rank 0's watcher."""
    _say("running", f"{socket.gethostname()} {os.getpid()}")


def say_ended_well() -> None:
    """Tell the batch script, if there is one, that all ranks have ended well."""
    _say("ended")
    note = batch_note()
    if note:
        Path(f"{note}.running").unlink(missing_ok=True)


def say_got_on() -> None:
    """Tell the batch script, if there is one, that the run has got on."""
    _say("progress")


def say_stopped(why: str) -> None:
    """Tell the batch script, if there is one, that the run has stopped with a checkpoint."""
    _say("stopped", why)


def _say(what: str, line: str = "") -> None:
    """Leave a file beside the batch script's note. The job can do without it."""
    note = batch_note()
    if note:
        with contextlib.suppress(OSError), atomic_file(Path(f"{note}.{what}"), "w") as stream:
            stream.write(f"{line}\n" if line else "")
