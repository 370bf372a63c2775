"""A watcher beside every rank, so that no job hangs and none dies without saying why.

Before a rank touches MPI it forks. The child is the rank: it runs MPI, DGL and torch. The parent,
this module's event loop, imports none of them, so nothing that goes wrong in the rank can stop it:

- it sees how the rank ends: the signal, the exit status, or the exception that the rank reports;
- it sees whether the rank gets on (`distsage.launch.watch.pulse`): a rank that is stopped, or
  stuck, is named, with every rank's stack in the logs;
- it is one of a ring (`distsage.launch.watch.neighbours`): each watcher sends the next one a beat
  a second. Silence for SILENCE_SECONDS means that the host is lost or the watcher stopped.

The first watcher with something to report claims the job's failure note, prints its one line, and
ends; the ring then falls like dominoes, each watcher taking its rank with it.

SIGUSR1 and SIGUSR2 ask the job to stop by itself, with a checkpoint; the request goes round the
ring. SIGTERM asks it, too, but the job has a few seconds only. A rank that has done all its work
and does not get away from MPI is ended. What a rank may have left on its host, a sweeper removes
(`distsage.launch.watch.sweeper`). Runs on every rank.
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
from distsage.events import append_last_event
from distsage.launch.watch import failure_note
from distsage.launch.watch.link import Lines, News
from distsage.launch.watch.neighbours import Neighbours
from distsage.launch.watch.progress import (
    DUMP_SIGNAL,
    State,
    Watched,
    asks_whether_to_stop,
    last_mark,
    request_stop,
    stop_is_requested,
)
from distsage.launch.watch.pulse import Pulse
from distsage.launch.watch.ring import (
    BEAT_SECONDS,
    LAUNCHER_YIELD_SECONDS,
    LEAVE_SECONDS,
    SILENCE_SECONDS,
    TERM_SECONDS,
    YIELD_SECONDS,
    Ring,
)
from distsage.launch.watch.sweeper import Sweeper

_END = (signal.SIGTERM, signal.SIGINT)
_STOP = (signal.SIGUSR1, signal.SIGUSR2)
# A rank that was killed is gone after so many seconds, unless its disk or network hangs.
_KILL_SECONDS = 3.0


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
    own_end, child_end = socket.socketpair()
    wake_read, wake_write = socket.socketpair()
    watched = Watched(page, child_end)
    watched.mark("starting")
    # Both processes have the watcher told of a signal: whoever sends one may send it to the rank
    # alone, or to both.
    for number in (*_END, *_STOP):
        signal.signal(number, lambda *_: None)
    sweeper = Sweeper()
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
    watcher = os.getpid()
    child = os.fork()
    if child != 0:
        child_end.close()
        _Watcher(child, page, own_end, wake_read, startup_timeout, sweeper).run()
    _end_with(watcher)
    own_end.close()
    wake_read.close()
    for number in _STOP:  # interrupts no call of the rank; its watcher learns of it by itself
        signal.signal(number, signal.SIG_IGN)
    for number in _END:
        signal.siginterrupt(number, False)
    try:
        main(watched)
    except UserError as error:
        watched.fail(str(error), "", 2)
    except SystemExit as leaving:
        if not leaving.code:
            watched.finish()
        raise
    except Exception as error:  # noqa: BLE001 - reported, not swallowed: it ends the job
        cause = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        watched.fail(cause, traceback.format_exc(), 1)
    watched.finish()


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
        wake: socket.socket,
        startup_timeout: float,
        sweeper: Sweeper,
    ) -> None:
        self.child = child
        self.page = page
        self.pulse = Pulse(page)
        self.channel = channel
        self.channel_lines = Lines(most=None)
        self.wake = wake
        self.startup_timeout = startup_timeout
        self.ring: Ring | None = None
        self.sweeper = sweeper
        self.marks: list[int] = []  # how many each rank is known to have made
        self.others_moved = time.monotonic()  # when one of the others is last known to have got on
        self.done = 0  # a bit for every rank that is known to have ended well
        self.finished: float | None = None  # when the rank had done all its work
        self.dumped = False
        self.ended_by: str | None = None  # a signal that asked the job to end
        self.end_at: float | None = None  # when the time is over that this gave the rank to stop
        self.verdict: _Verdict | None = None
        self.told = False  # another watcher has said why the job ends, and could not note it
        self.leave_at: float | None = None
        self.leave_status = 0
        self.selector = selectors.DefaultSelector()
        self.neighbours = Neighbours(self.selector, self._news, self._take, self._on_previous_gone)

    def run(self) -> NoReturn:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.selector.register(self.wake, selectors.EVENT_READ, self._on_signal)
        self.selector.register(self.channel, selectors.EVENT_READ, self._on_channel)
        self._reap()  # a rank that ended before this process listened for its end
        next_beat = 0.0
        while True:
            for key, _ in self.selector.select(0.25 if self.verdict is None else 0.02):
                connection: Any = key.fileobj
                if connection.fileno() != -1:  # not forgotten meanwhile
                    key.data(connection)
            now = time.monotonic()
            if self.end_at is not None and now >= self.end_at:
                self._report(f"ended by {self.ended_by}", after=0, status=self.leave_status)
            if self.verdict is not None and now >= self.verdict.due:
                self._claim(self.verdict)
            if self.leave_at is not None and now >= self.leave_at:
                self._leave(self.leave_status)
            if now >= next_beat:
                next_beat = now + BEAT_SECONDS
                self.neighbours.beat(now)
                self._check(now)

    # What happens.

    def _on_signal(self, wake: socket.socket) -> None:
        for number in wake.recv(64):
            if number == signal.SIGCHLD:
                self._reap()
            elif number in _STOP:
                self._request_stop()
            elif number in _END and self.ended_by is None:
                self._on_end_signal(signal.Signals(number))

    def _on_end_signal(self, number: signal.Signals) -> None:
        self.ended_by, self.leave_status = number.name, 128 + number
        if self.verdict is not None:
            self._claim(self.verdict)  # now: the launcher soon kills what has not ended
        if self.ring is None:
            # Another rank has left, and said why; perhaps this one is about to.
            self.leave_at = time.monotonic() + YIELD_SECONDS
            return
        self._request_stop()
        # A server has nothing to stop: the trainers that it serves may stop.
        idle = last_mark(self.page).state == State.IDLE
        may_stop = self.finished is not None or asks_whether_to_stop(self.page) or idle
        if may_stop and not failure_note.is_claimed(self.ring.note):
            self.end_at = time.monotonic() + TERM_SECONDS
        else:
            self._report(
                f"ended by {self.ended_by}",
                after=LAUNCHER_YIELD_SECONDS,
                status=self.leave_status,
            )

    def _request_stop(self) -> None:
        """Ask this rank, and by the ring all others, to stop with a checkpoint."""
        if not stop_is_requested(self.page):
            request_stop(self.page)
            self.neighbours.tell_next()

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
                self._leave(0)
            self._note_done()
        elif self.leave_at is not None and code < 0:
            self._leave(self.leave_status)
        elif code == 2:
            # A user's mistake, which all ranks agreed on and rank 0 has told.
            failure_note.claim(self._note(), failure_note.MISTAKE)
            self._leave(2)
        elif self.ended_by is not None and code == -signal.SIGKILL:
            self._report(f"ended by {self.ended_by}", after=0, status=self.leave_status)
        else:
            name = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            self._report(name, after=0, status=128 - code if code < 0 else code)

    def _drain_channel(self) -> None:
        self.channel.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self._on_channel(self.channel)

    def _on_channel(self, channel: socket.socket) -> None:
        try:
            data = channel.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data and channel in self.selector.get_map():
            self.selector.unregister(channel)  # the rank has ended
        for line in self.channel_lines.cut(data):
            message = json.loads(line)
            if "ring" in message:
                self._join(Ring(**message["ring"]))
            elif "listen" in message:
                self._listen(message["listen"], message["caller"])
            elif "segments" in message:
                self.sweeper.leave_nothing(message["segments"], message["staged"])
            elif "startup_timeout" in message:
                self.startup_timeout = message["startup_timeout"]
            elif "finished" in message:
                self.finished = time.monotonic()
            else:
                # The rank is alive until this watcher ends it, so nobody sees its end before
                # its own report; but its exception may itself follow from another rank's end.
                self._report(
                    message["cause"],
                    after=YIELD_SECONDS,
                    trace=message["trace"],
                    status=message["status"],
                )

    def _listen(self, ip: str, caller_ip: str) -> None:
        """Open this watcher's port, and tell the rank which it is."""
        answer: dict[str, int | str]
        try:
            answer = {"port": self.neighbours.listen(ip, caller_ip)}
        except OSError as error:
            answer = {"error": error.strerror or str(error)}
        self.channel.sendall(json.dumps(answer).encode() + b"\n")

    def _join(self, ring: Ring) -> None:
        self.ring = ring
        self.others_moved = time.monotonic()
        self.marks = [0] * len(ring.labels)
        if ring.rank == 0:
            failure_note.say_running()
        self.neighbours.join(ring)

    # The ring.

    def _news(self) -> News:
        """What this watcher knows."""
        return News(self.done, self.marks, stop_is_requested(self.page), self.dumped, self.told)

    def _take(self, news: News) -> None:
        """Learn what the previous watcher knows."""
        assert self.ring is not None
        is_new = (news.told and not self.told) or bool(news.done & ~self.done)
        self.told |= news.told
        self.done |= news.done
        for rank, number in enumerate(news.marks):
            if rank != self.ring.rank and number > self.marks[rank]:
                self.marks[rank] = number
                self.others_moved = self.neighbours.heard
        if is_new:
            self.neighbours.tell_next()
        if news.stop:
            self._request_stop()
        if news.dump:
            self._dump_stacks()
        self._end_if_all_done()

    def _on_previous_gone(self) -> None:
        assert self.ring is not None
        if self.ended_by is not None:  # as it was asked to
            self._report(
                f"ended by {self.ended_by}", after=LAUNCHER_YIELD_SECONDS, status=self.leave_status
            )
        # It may have ended after it claimed the note: then the note is taken, and this report is
        # not printed. A watcher that has claimed nothing was killed.
        rank = self.ring.previous
        self._report("its watcher was killed", after=LAUNCHER_YIELD_SECONDS, rank=rank)

    # What is done about it.

    def _note_done(self) -> None:
        """This rank has ended well, or has nothing left to do but to end."""
        assert self.ring is not None
        self.done |= 1 << self.ring.rank
        self.neighbours.tell_next()
        self._end_if_all_done()

    def _end_if_all_done(self) -> None:
        assert self.ring is not None
        if self.done == (1 << len(self.ring.labels)) - 1:
            if self.ended_by is not None and failure_note.batch_note():
                # The run may have stopped because of it; the batch script tells for what rank.
                who = self.ring.labels[self.ring.rank]
                failure_note.claim(self.ring.note, f"{who}: ended by {self.ended_by}")
            if self.ring.rank == 0:
                failure_note.say_ended_well()
            self._leave(0)

    def _check(self, now: float) -> None:
        """Look at the rank and at the previous watcher, once a beat."""
        if self.verdict is not None:
            return
        self.pulse.look(self.child, now)
        if (cause := self.pulse.why_stopped(now)) is not None:
            self._dump_stacks()
            self._report(cause, after=YIELD_SECONDS)
        if self.ring is None:
            if (cause := self.pulse.why_late(now, self.startup_timeout)) is not None:
                self._report(cause, after=0)
            return
        self.marks[self.ring.rank] = self.pulse.marks
        if self.finished is not None:
            if now - self.finished > LEAVE_SECONDS:
                self._note_done()
        elif self.child:
            stuck = self.pulse.why_stuck(now, self.ring, self.startup_timeout, self.others_moved)
            if stuck is not None:
                self._dump_stacks()
                self._report(stuck[0], after=stuck[1])
        if len(self.ring.labels) > 1 and now - self.neighbours.heard > SILENCE_SECONDS:
            cause = self.neighbours.why_previous_is_silent()
            self._report(cause, after=0, rank=self.ring.previous)

    def _dump_stacks(self) -> None:
        """Have every rank's stack written to its log."""
        if self.dumped:
            return
        self.dumped = True
        if self.child:
            os.kill(self.child, DUMP_SIGNAL)
        self.neighbours.tell_next()

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
        if claim is failure_note.Claim.WRITTEN and self.ring is not None:
            append_last_event(Path(self.ring.log_directory).parent, "failed", why=line)
        if claim is not failure_note.Claim.TAKEN and not self.told:
            noted = claim is failure_note.Claim.WRITTEN
            said = "" if noted and failure_note.batch_note() else f"distsage: {line}\n"
            with contextlib.suppress(OSError):
                os.write(2, f"{verdict.trace}{said}".encode())
            if not noted:
                self.told = True
                self.neighbours.tell_next()
        self._leave(verdict.status)

    def _leave(self, status: int) -> NoReturn:
        """End the rank and this watcher, and leave nothing of them on this host."""
        self.neighbours.leave_next()  # it need not wait for what follows
        if self.child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_SECONDS
        while self.child and time.monotonic() < deadline:
            if os.waitpid(self.child, os.WNOHANG) != (0, 0):
                self.child = 0
            time.sleep(0.005)
        if not self.child:  # else it waits within the kernel, and what is left goes when it has
            self.sweeper.sweep()
        os._exit(status)
