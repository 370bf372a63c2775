"""How a rank shows that it gets on, and how its watcher sees it.

The rank marks its progress in a page of memory that it shares with its watcher, and tells the rest
over a socket. What it cannot mark, because it is in one long call, the kernel counts.
"""

import contextlib
import enum
import faulthandler
import json
import logging
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil

from distsage.files import explain_write_errors
from distsage.launch.watch.ring import Ring

# Has a rank that is in the ring write its stacks to its log. None that a launcher may send.
DUMP_SIGNAL = signal.SIGRTMIN + 5
# A rank that loads has got on when it has read, written or first touched so much more.
LOADED_BYTES = 2**20
# A rank that computes has got on when it and what it started have used so much more of processors.
COMPUTED_SECONDS = 1.0
# The page that a rank shares with its watcher: a mark, and two bytes that are 0 or 1.
_MARK = struct.Struct("=dQB64s")  # time of the last mark, how many, a State, what the rank does
_STOP = _MARK.size  # the watcher: the rank is to stop
_ASKS = _STOP + 1  # the rank: it asks whether it is to stop, and does
# The watcher answers at once, unless the machine is very busy.
_ANSWER_SECONDS = 30.0


class State(enum.IntEnum):
    """What a lack of progress says about a rank."""

    WORKING = 0
    WAITING = 1  # for other ranks: one of them is stuck rather than this one
    IDLE = 2  # has nothing to do until somebody asks
    LOADING = 3  # in long calls that make no marks: what the process reads and touches counts
    STARTING = 4  # loads libraries, connects: the same, and has as long as start-up may take
    COMPUTING = 5  # as LOADING, or in processes that it started: their processor time counts, too


Mark = Callable[[str, State], None]
"""Notes progress: what this rank does from now on, and what a lack of progress then says of it."""


class Watched:
    """The rank's side: marks progress and talks to its watcher."""

    def __init__(self, page: mmap.mmap, channel: socket.socket) -> None:
        self._page = page
        self._channel = channel
        self._marks = 0

    def mark(self, doing: str, state: State = State.WORKING) -> None:
        """Note progress: what the rank does from now on."""
        # All bytes are copied at once: pack_into would clear the page first, and a watcher that
        # reads it at that moment would see a mark from long ago.
        self._marks += 1
        what = doing.encode()[:64]
        self._page[: _MARK.size] = _MARK.pack(time.monotonic(), self._marks, state, what)

    def allow_startup(self, seconds: float) -> None:
        """Tell the watcher how long start-up may take, as soon as that is known."""
        self._send({"startup_timeout": seconds})

    def listen(self, ip: str, caller_ip: str) -> int:
        """Have the watcher listen on `ip`, and return the port. Blocks until it does.

        Args:
            ip: this rank's own.
            caller_ip: from which alone it takes connections: that of the rank before.

        Raises:
            OSError: it cannot listen there.
            TimeoutError: the watcher does not answer.
        """
        self._send({"listen": ip, "caller": caller_ip})
        self._channel.settimeout(_ANSWER_SECONDS)
        answer = b""
        try:
            while not answer.endswith(b"\n"):
                answer += (piece := self._channel.recv(4096))
                if not piece:
                    raise ConnectionError("the watcher has ended")
        finally:
            self._channel.settimeout(None)
        said = json.loads(answer)
        if "error" in said:
            raise OSError(f"cannot listen on {ip}: {said['error']}")
        port: int = said["port"]
        return port

    def leave_nothing(self, segments: str, staged: Path | None) -> None:
        """Have the watcher remove what this rank's host may have left, however the rank ends.

        Args:
            segments: how the names of the host's shared-memory segments begin.
            staged: directory of the host's copy of its part, if it has one.
        """
        self._send({"segments": segments, "staged": str(staged) if staged else None})

    def stop_requested(self) -> bool:
        """Whether the job was asked to stop, with a checkpoint, by a signal to any watcher.

        From the first call on the watcher counts on this rank to ask again soon, and to stop. Ranks
        may learn of a request at different times: they have to agree on when they stop.
        """
        self._page[_ASKS] = 1
        return self._page[_STOP] != 0

    def finish(self) -> None:
        """Tell the watcher that this rank has done all that the job needs."""
        self._send({"finished": True})

    def join(self, ring: Ring, option: str) -> None:
        """Let the watcher join the ring. From here on stacks and C++ messages go to the log.

        Args:
            ring: of the job.
            option: with which the user has chosen where the log lies.

        Raises:
            UserError: the log cannot be written.
        """
        path = Path(ring.log_directory) / f"rank-{ring.rank}.txt"
        with explain_write_errors(path, option):
            log = open(path, "a", buffering=1)  # noqa: SIM115
        # What C++ libraries print on file descriptor 2 goes to the log. What Python prints on
        # sys.stderr still goes to the job's standard error.
        sys.stderr.flush()
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        os.dup2(log.fileno(), 2)
        logging.basicConfig(stream=log, level=logging.INFO, force=True)
        logging.raiseExceptions = False  # no tracebacks on stderr when the log's disk is full
        # faulthandler takes its handler away when Python ends, and the process may then wait in
        # MPI_Finalize: the signal must not kill it.
        signal.signal(DUMP_SIGNAL, signal.SIG_IGN)
        faulthandler.register(DUMP_SIGNAL, file=log, all_threads=True)
        # From now on a lack of progress counts; the last mark may be from a while ago.
        self.mark("waiting for the other ranks to join", State.WAITING)
        self._send({"ring": asdict(ring)})

    def fail(self, cause: str, trace: str, status: int) -> NoReturn:
        """Report why this rank ends, and wait for the end. Blocks a few seconds at most."""
        self._send({"cause": cause, "trace": trace, "status": status})
        time.sleep(30)  # the watcher ends this process
        os._exit(status)

    def _send(self, message: dict[str, Any]) -> None:
        self._channel.sendall(json.dumps(message).encode() + b"\n")


class LastMark(NamedTuple):
    """What a rank has marked last.

    Attributes:
        time: of the mark, as `time.monotonic` counts.
        marks: how many so far.
        state: of the rank since then.
        doing: what it does since then, for messages.
    """

    time: float
    marks: int
    state: State
    doing: str


def last_mark(page: mmap.mmap) -> LastMark:
    """Read the page that a rank marks its progress in."""
    when, marks, state, doing = _MARK.unpack_from(page, 0)
    return LastMark(when, marks, State(state), doing.rstrip(b"\0").decode(errors="ignore"))


def request_stop(page: mmap.mmap) -> None:
    """Ask the rank of this page to stop."""
    page[_STOP] = 1


def stop_is_requested(page: mmap.mmap) -> bool:
    """Whether the rank of this page was asked to stop."""
    return page[_STOP] != 0


def asks_whether_to_stop(page: mmap.mmap) -> bool:
    """Whether the rank of this page stops when it is asked to."""
    return page[_ASKS] != 0


def loaded_bytes(process: int) -> int:
    """How much a process has read, written or first touched so far; 0 if that cannot be told.

    The kernel counts it. The process itself may be in a call that lets no other thread run.
    """
    loaded = 0
    with contextlib.suppress(OSError):  # another kernel, or the process has ended
        faults = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        loaded = (int(faults[7]) + int(faults[9])) * mmap.PAGESIZE
        for line in Path(f"/proc/{process}/io").read_text().splitlines()[:2]:
            loaded += int(line.split()[1])  # rchar, wchar: what it asked the system for
    return loaded


def computed_seconds(process: int) -> float:
    """Processor time that a process and those that it has started have used; 0 if none is there.

    Less than before where one of several generations has ended meanwhile.
    """
    seconds = 0.0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(process)
        for one in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has ended
                times = one.cpu_times()
                seconds += times.user + times.system
                seconds += times.children_user + times.children_system
    return seconds
