"""A watcher beside every rank, so that no job hangs and none dies without saying why.

Before a rank touches MPI it forks. The child is the rank: it runs MPI, DGL and torch. The parent,
this module's event loop, imports none of them, so nothing that goes wrong in the rank can stop it:

- it sees how the rank ends: the signal, the exit status, or the exception that the rank reports;
- it sees whether the rank gets on: the rank marks its progress in a page of shared memory, and a
  rank that is stopped, or stuck, is named, with every rank's stack in the logs;
- it is one of a ring: each watcher sends the next one a beat a second. Silence for
  SILENCE_SECONDS means that the host is lost or the watcher stopped.

Who is stuck. A rank that works is stuck when it makes no mark for `stall_timeout`. A rank that
waits for others is not, as long as any rank of the ring gets on. Every beat carries how many marks
each rank is known to have made; a number that has grown shows that its rank gets on, and one that
comes round the ring a second time shows nothing. When no rank has got on for `stall_timeout`, a
rank that waits is named, because all may be waiting for each other. That happens somewhat later
than `stall_timeout`: the news of the last mark may still be on its way round, and a rank that is
stuck at work has to be named before. So every wait of a rank in the ring is bounded here. It needs
no bound of its own, which would have to guess how long the others may work.

The first watcher with something to report claims the job's failure note, prints its one line, and
ends; the ring then falls like dominoes, each watcher taking its rank with it. Runs on every rank.
"""

import contextlib
import ctypes
import json
import mmap
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from distsage.errors import UserError
from distsage.launch.watch import failure_note
from distsage.launch.watch.progress import (
    DUMP_SIGNAL,
    LOADED_BYTES,
    State,
    Watched,
    last_mark,
    loaded_bytes,
)
from distsage.launch.watch.ring import (
    BEAT_SECONDS,
    LAUNCHER_YIELD_SECONDS,
    SILENCE_SECONDS,
    STOPPED_SECONDS,
    WAIT_SECONDS,
    YIELD_SECONDS,
    Ring,
)


@dataclass(frozen=True)
class _Verdict:
    """Why the job ends.

    Attributes:
        due: when this watcher says so, unless another has said why before (`time.monotonic`).
        rank: that it happened to; None before this watcher knows which its own is.
        cause: what happened to the rank, for the one line.
        trace: goes before the line.
        status: exit status of this watcher's rank.
    """

    due: float
    rank: int | None
    cause: str
    trace: str
    status: int


def run_watched(main: Callable[[Watched], None], startup_timeout: float) -> None:
    """Fork; run `main` in the child and watch it in the parent, which never returns.

    Call it before MPI, torch or any thread is there.

    Args:
        main: the rank. A UserError or another exception from it ends the whole job.
        startup_timeout: seconds that the child may go without a mark before it joins the ring,
            until it says otherwise with `allow_startup`.
    """
    assert "mpi4py.MPI" not in sys.modules, "MPI must come up in the child, not before the fork"
    page = mmap.mmap(-1, mmap.PAGESIZE)
    listener = socket.create_server(("", 0), backlog=16)
    own_end, child_end = socket.socketpair()
    watched = Watched(page, child_end, listener.getsockname()[1])
    watched.mark("starting")
    watcher = os.getpid()
    child = os.fork()
    if child != 0:
        child_end.close()
        _Watcher(child, page, own_end, listener, startup_timeout).run()
    _end_with(watcher)
    own_end.close()
    listener.close()
    try:
        main(watched)
    except UserError as error:
        watched.fail(str(error), "", 2)
    except Exception as error:  # noqa: BLE001 - reported, not swallowed: it ends the job
        cause = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        watched.fail(cause, traceback.format_exc(), 1)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, or end now if it has ended."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # nobody would send the signal any more
        os._exit(1)


class _Watcher:
    """The parent's event loop."""

    def __init__(
        self,
        child: int,
        page: mmap.mmap,
        channel: socket.socket,
        listener: socket.socket,
        startup_timeout: float,
    ) -> None:
        self.child = child
        self.page = page
        self.channel = channel
        self.listener = listener
        self.startup_timeout = startup_timeout
        self.ring: Ring | None = None
        self.previous: socket.socket | None = None
        self.next: socket.socket | None = None
        self.heard = time.monotonic()
        self.marks: list[int] = []  # how many each rank is known to have made
        self.others_moved = self.heard  # when one of the others is last known to have got on
        self.loaded = 0  # bytes, when the rank last got on with loading
        self.loading_marks = 0
        self.loading_moved = self.heard
        self.done = 0  # a bit for every rank that is known to have ended well
        self.stopped_since: float | None = None
        self.dumped = False
        self.verdict: _Verdict | None = None
        self.told = False  # another watcher has said why the job ends, and could not note it
        self.leave_at: float | None = None
        self.leave_status = 0
        self.selector = selectors.DefaultSelector()
        self.buffers: dict[socket.socket, bytes] = {}

    def run(self) -> NoReturn:
        wake_read, wake_write = socket.socketpair()
        wake_write.setblocking(False)
        wake_read.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        for number in (
            signal.SIGCHLD,
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGUSR1,
            signal.SIGUSR2,
        ):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.selector.register(wake_read, selectors.EVENT_READ, self._on_signal)
        self.selector.register(self.channel, selectors.EVENT_READ, self._on_channel)
        self._reap()  # a rank that ended before this process listened for its end
        next_beat = 0.0
        while True:
            for key, _ in self.selector.select(0.25 if self.verdict is None else 0.02):
                key.data(key.fileobj)
            now = time.monotonic()
            if self.verdict is not None and now >= self.verdict.due:
                self._claim(self.verdict)
            if self.leave_at is not None and now >= self.leave_at:
                if self.child:
                    os.kill(self.child, signal.SIGKILL)
                os._exit(self.leave_status)
            if now >= next_beat:
                next_beat = now + BEAT_SECONDS
                self._beat()
                self._check(now)

    # What happens.

    def _on_signal(self, wake: socket.socket) -> None:
        for number in wake.recv(64):
            if number == signal.SIGCHLD:
                self._reap()
            elif number in (signal.SIGUSR1, signal.SIGUSR2):
                self.page[1024] = 1
            elif number in (signal.SIGTERM, signal.SIGINT):
                name = signal.Signals(number).name
                if self.verdict is not None:
                    self._claim(self.verdict)  # now: the launcher soon kills what has not ended
                if self.ring is None:
                    # Another rank has left, and said why; perhaps this one is about to.
                    self.leave_at = time.monotonic() + YIELD_SECONDS
                    self.leave_status = 128 + number
                    continue
                self._report(f"ended by {name}", after=LAUNCHER_YIELD_SECONDS, status=128 + number)

    def _reap(self) -> None:
        if self.child == 0:
            return  # the signal of an end that has been seen already
        pid, status = os.waitpid(self.child, os.WNOHANG)
        if pid == 0:
            return
        self.child = 0
        self._drain_channel()
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            if self.ring is None:
                os._exit(0)
            self.done |= 1 << self.ring.rank
            self._beat()
            self._end_if_all_done()
        elif self.leave_at is not None and code < 0:
            os._exit(self.leave_status)
        elif code == 2:
            # A user's mistake, which all ranks agreed on and rank 0 has told.
            failure_note.claim(self._note(), failure_note.MISTAKE)
            os._exit(2)
        else:
            name = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            self._report(name, after=0, status=128 - code if code < 0 else code)

    def _drain_channel(self) -> None:
        self.channel.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self._on_channel(self.channel)

    def _on_channel(self, channel: socket.socket) -> None:
        for message in self._messages(channel):
            if "ring" in message:
                self._join(Ring(**message["ring"]))
            elif "startup_timeout" in message:
                self.startup_timeout = message["startup_timeout"]
            else:
                # The rank is alive until this watcher ends it, so nobody sees its end before
                # its own report; but its exception may itself follow from another rank's end.
                self._report(
                    message["cause"],
                    after=YIELD_SECONDS,
                    trace=message["trace"],
                    status=message["status"],
                )

    def _join(self, ring: Ring) -> None:
        self.ring = ring
        self.heard = self.others_moved = time.monotonic()
        self.marks = [0] * len(ring.labels)
        if ring.rank == 0:
            failure_note.say_running()
        # Watchers that have called earlier wait in the backlog.
        self.selector.register(self.listener, selectors.EVENT_READ, self._on_connection)
        if len(ring.addresses) > 1:
            self._connect()

    def _connect(self) -> None:
        assert self.ring is not None
        ring = self.ring
        address = ring.addresses[ring.next]
        try:
            ip, port = address
            self.next = socket.create_connection((ip, port), timeout=1.0)
        except OSError:
            self.next = None  # tried again with the next beat; the next watcher counts the silence
            return
        self._send_next({"token": ring.token, "done": self.done})

    def _on_connection(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self.selector.register(connection, selectors.EVENT_READ, self._on_previous)

    def _on_previous(self, connection: socket.socket) -> None:
        for message in self._messages(connection):
            if connection is not self.previous:
                assert self.ring is not None
                if message.get("token") != self.ring.token:
                    self._forget(connection)
                    return
                self.previous = connection
            self.heard = time.monotonic()
            if message.get("told") and not self.told:
                self.told = True
                self._send_next({"told": True})
            if message.get("dump"):
                self._dump_stacks()
            before = self.done
            self.done |= message.get("done", 0)
            self._hear_marks(message.get("marks", self.marks))
            if self.done != before:
                self._beat()
                self._end_if_all_done()

    def _hear_marks(self, marks: list[int]) -> None:
        assert self.ring is not None
        for rank, number in enumerate(marks):
            if rank != self.ring.rank and number > self.marks[rank]:
                self.marks[rank] = number
                self.others_moved = self.heard

    def _messages(self, connection: socket.socket) -> list[dict[str, Any]]:
        """Read the messages that have come whole; none at the end of the stream."""
        try:
            data = connection.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data:
            self._forget(connection)
            if connection is self.previous:
                self.previous = None
                self._on_previous_gone()
            return []
        *lines, self.buffers[connection] = (self.buffers.get(connection, b"") + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            self._forget(connection)  # a stranger
            return []

    def _forget(self, connection: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(connection)
        self.buffers.pop(connection, None)
        if connection is not self.channel:
            connection.close()

    def _on_previous_gone(self) -> None:
        assert self.ring is not None
        rank = self.ring.previous
        # It may have ended after it claimed the note: then the note is taken, and this report is
        # not printed. A watcher that has claimed nothing was killed.
        self._report("its watcher was killed", after=LAUNCHER_YIELD_SECONDS, rank=rank)

    # What is done about it.

    def _beat(self) -> None:
        if self.ring is None or len(self.ring.addresses) == 1:
            return
        if self.next is None:
            self._connect()
        else:
            self._send_next({"done": self.done, "marks": self.marks})

    def _send_next(self, message: dict[str, Any]) -> None:
        if self.next is not None:
            # If the next watcher takes no messages, the one after it hears nothing and reports it.
            with contextlib.suppress(OSError):
                self.next.sendall(json.dumps(message).encode() + b"\n")

    def _end_if_all_done(self) -> None:
        assert self.ring is not None
        if self.done == (1 << len(self.ring.labels)) - 1:
            if self.ring.rank == 0:
                failure_note.say_ended_well()
            os._exit(0)

    def _check(self, now: float) -> None:
        """Look at the rank and at the previous watcher, once a beat."""
        if self.verdict is not None:
            return
        marked, marks, state, what = last_mark(self.page)
        if self.child:
            self._check_stopped(now, what)
            if state in (State.LOADING, State.STARTING) and self._loads():
                self.loading_marks += 1
                self.loading_moved = now
        if state in (State.LOADING, State.STARTING):
            marked = max(marked, self.loading_moved)
        if self.ring is None:
            if now - marked > self.startup_timeout + WAIT_SECONDS:
                self._report(
                    f"did not come up within {self.startup_timeout:.0f} s ({what})", after=0
                )
            return
        self.marks[self.ring.rank] = marks + self.loading_marks
        bound = stall = self.ring.stall_timeout
        if state == State.STARTING:
            # What connects has a bound of its own, and says more.
            bound = max(bound, self.startup_timeout + WAIT_SECONDS)
        elif state == State.WAITING:
            marked = max(marked, self.others_moved)
            bound += WAIT_SECONDS + len(self.ring.labels) * BEAT_SECONDS
        if self.child and state != State.IDLE and now - marked > bound:
            self._dump_stacks()
            cause = f"no progress for {bound:.0f} s ({what})"
            if state == State.WAITING:
                cause = f"no progress on any rank for {stall:.0f} s ({what})"
            if self.stopped_since is not None:
                cause = f"stopped by a signal while {what}"
            self._report(cause, after=4.0 if state == State.WAITING else YIELD_SECONDS)
        if len(self.ring.labels) > 1 and now - self.heard > SILENCE_SECONDS:
            rank = self.ring.previous
            self._report(self._why_silent(rank), after=0, rank=rank)

    def _why_silent(self, rank: int) -> str:
        """Say why a watcher is silent. The kernel of its host answers while the host has power."""
        assert self.ring is not None
        ip, port = self.ring.addresses[rank]
        try:
            socket.create_connection((ip, port), timeout=1.0).close()
        except OSError:
            return f"{failure_note.HOST_LOST} (no sign of life for {SILENCE_SECONDS:.0f} s)"
        return "its watcher is stopped"

    def _loads(self) -> bool:
        """Whether the rank has read, written or first touched more since it last had."""
        loaded = loaded_bytes(self.child)
        moved = loaded - self.loaded >= LOADED_BYTES
        if moved:
            self.loaded = loaded
        return moved

    def _check_stopped(self, now: float, what: str) -> None:
        try:
            stat = Path(f"/proc/{self.child}/stat").read_text()
        except OSError:
            return
        if stat.rpartition(")")[2].split()[0] not in "Tt":
            self.stopped_since = None
        elif self.stopped_since is None:
            self.stopped_since = now
        elif now - self.stopped_since > STOPPED_SECONDS:
            self._dump_stacks()
            self._report(f"stopped by a signal while {what}", after=YIELD_SECONDS)

    def _dump_stacks(self) -> None:
        """Have every rank's stack written to its log."""
        if self.dumped:
            return
        self.dumped = True
        if self.child:
            os.kill(self.child, DUMP_SIGNAL)
        self._send_next({"dump": True})

    def _report(
        self,
        cause: str,
        *,
        after: float,
        rank: int | None = None,
        trace: str = "",
        status: int = 1,
    ) -> None:
        """End the job in `after` seconds, unless another watcher says why before.

        Args:
            cause: for the one line.
            after: seconds; few where this is surely the cause of the end and not a consequence.
            rank: that it happened to; None means this one.
            trace: goes before the line.
            status: exit status of this rank.
        """
        if self.verdict is None:
            if rank is None and self.ring is not None:
                rank = self.ring.rank
            self.verdict = _Verdict(time.monotonic() + after, rank, cause, trace, status)

    def _note(self) -> str | None:
        """The failure note, if it is known yet."""
        return self.ring.note if self.ring else failure_note.batch_note()

    def _claim(self, verdict: _Verdict) -> NoReturn:
        """Say why the job ends, unless another watcher has, and end this rank.

        A batch script that names the failure note prints it when all is over, as the last line.
        """
        if self.child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)
        who = f"a rank on {socket.gethostname()}"
        if self.ring is not None and verdict.rank is not None:
            who = self.ring.labels[verdict.rank]
        line = f"{who}: {verdict.cause}"
        claim = failure_note.claim(self._note(), line)
        if claim is not failure_note.Claim.TAKEN and not self.told:
            noted = claim is failure_note.Claim.WRITTEN
            said = "" if noted and failure_note.batch_note() else f"distsage: {line}\n"
            with contextlib.suppress(OSError):
                os.write(2, f"{verdict.trace}{said}".encode())
            if not noted:
                self._send_next({"told": True})
        os._exit(verdict.status)
