"""What a rank may leave on its host is removed, whatever becomes of the rank and of its watcher.

Runs beside every rank: a small process that outlives the rank and its watcher.
"""

import contextlib
import json
import os
import shutil
from typing import NoReturn

from distsage.launch.watch import failure_note
from distsage.limits import SHARED_MEMORY


class Sweeper:
    """A process that waits until the watcher and its rank have ended, then removes what is left.

    A launcher kills what it has started: mpirun a second after it has asked it to end, which is
    short where a copy of a part is to be removed. This process is no child of the watcher's and in
    a session of its own, so that the launcher does not find it.

    Make it before the rank is forked, and before any thread is there: the rank inherits a pipe,
    whose end tells that both have ended.
    """

    def __init__(self) -> None:
        names, self._names = os.pipe()
        self._done, done = os.pipe()
        between = os.fork()
        if between == 0:
            try:
                if os.fork() == 0:
                    _sweep({names, done}, names)
            finally:
                os._exit(0)
        os.waitpid(between, 0)
        os.close(names)
        os.close(done)

    def leave_nothing(self, segments: str, staged: str | None) -> None:
        """Say what the rank may leave.

        Args:
            segments: how the names of segments of shared memory begin.
            staged: directory of a copy of a part; None without one.
        """
        line = json.dumps({"segments": segments, "staged": staged})
        os.write(self._names, f"{line}\n".encode())

    def sweep(self) -> None:
        """Wait until all is removed. In the watcher, as the last thing, when the rank has ended."""
        os.close(self._names)
        os.read(self._done, 1)  # nothing, once the process has ended


def _sweep(own: set[int], names: int) -> NoReturn:
    """Wait for the end of all who can write to `names`, and remove what they have named."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):  # the launcher waits for those who hold its pipes
        os.dup2(nothing, standard)
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) not in own | {0, 1, 2}:
            with contextlib.suppress(OSError):  # the one of this loop
                os.close(int(entry))
    alive = failure_note.show_that_it_lives()
    with open(names, encoding="utf-8") as stream:
        lines = stream.readlines()
    for line in lines:
        left = json.loads(line)
        for segment in SHARED_MEMORY.glob(f"{left['segments']}*"):
            segment.unlink(missing_ok=True)
        if left["staged"] is not None:
            shutil.rmtree(left["staged"], ignore_errors=True)
    if alive is not None:
        alive.close()  # before the watcher learns of the end, and ends
    os._exit(0)
