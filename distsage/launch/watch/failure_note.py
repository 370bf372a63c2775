"""The failure note: a file that says why the job ended, written by the first watcher that knows.

It lies on a file system that all hosts see. A batch script that names it in DISTSAGE_FAILURE_NOTE
prints it when all is over, and finds beside it whether the ranks had come up.
"""

import contextlib
import enum
import os
from pathlib import Path

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


def say_running() -> None:
    """Tell the batch script, if there is one, that the ranks have come up."""
    running = _running_file()
    if running is not None:
        with contextlib.suppress(OSError):  # the job can do without, as without the note
            running.touch()


def say_ended_well() -> None:
    """Tell the batch script, if there is one, that all ranks have ended well."""
    running = _running_file()
    if running is not None:
        running.unlink(missing_ok=True)


def say_got_on() -> None:
    """Tell the batch script that the run has a later checkpoint than it went on from."""
    _leave("progress", "")


def say_stopped(why: str) -> None:
    """Tell the batch script that the run has stopped early, with a checkpoint."""
    _leave("stopped", why)


def _leave(name: str, text: str) -> None:
    note = batch_note()
    if note is not None:
        Path(f"{note}.{name}").write_text(f"{text}\n")


def _running_file() -> Path | None:
    """Is there while the ranks have come up and have not all ended well; None without a script."""
    note = batch_note()
    return Path(f"{note}.running") if note else None
