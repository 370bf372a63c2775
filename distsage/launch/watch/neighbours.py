"""The connections of a watcher in the ring: it hears the previous one and calls the next.

Strangers can reach a watcher's port. It takes connections from the previous rank's address alone,
few at a time, and believes nothing that is not signed (`distsage.launch.watch.link`). Runs in every
rank's watcher, within its event loop.
"""

import contextlib
import errno
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from distsage.launch.watch import failure_note
from distsage.launch.watch.link import MOST_LINE_BYTES, Lines, Link, News, nonce
from distsage.launch.watch.ring import MOST_STRANGERS, PROOF_SECONDS, SILENCE_SECONDS, Ring

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass
class _Caller:
    """A connection to this watcher's port: a stranger, until it has signed a line.

    Attributes:
        connection: to it.
        since: when it could begin to prove itself.
        greeting: the nonce that it was sent.
        lines: that it sends.
        link: to it; None until it has replied.
    """

    connection: socket.socket
    since: float
    greeting: bytes = field(default_factory=nonce)
    lines: Lines = field(default_factory=Lines)
    link: Link | None = None


@dataclass
class _Called:
    """A connection to the next watcher; `link` is None until that has greeted."""

    connection: socket.socket
    lines: Lines = field(default_factory=Lines)
    link: Link | None = None


class Neighbours:
    """What a watcher hears from the previous one, and tells the next one.

    Args:
        selector: of the watcher's event loop, which calls a key's data with its connection.
        news: what the watcher knows.
        take: told what the previous watcher knows.
        previous_gone: called when the previous watcher has ended the connection.

    Attributes:
        heard: when the previous watcher was last heard (`time.monotonic`); at first, when the
            watcher joined the ring.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        news: Callable[[], News],
        take: Callable[[News], None],
        previous_gone: Callable[[], None],
    ) -> None:
        self._selector = selector
        self._news = news
        self._take = take
        self._previous_gone = previous_gone
        self._ring: Ring | None = None
        self._listener: socket.socket | None = None
        self._caller_ip = ""
        self._strangers: dict[socket.socket, _Caller] = {}  # the oldest first
        self._previous: _Caller | None = None
        self._next: _Called | None = None
        self.heard = time.monotonic()

    def listen(self, ip: str, caller_ip: str) -> int:
        """Open this watcher's port, and return it.

        Args:
            ip: to listen on.
            caller_ip: from which alone connections are taken.

        Raises:
            OSError: it cannot listen there.
        """
        self._listener = socket.create_server((ip, 0), backlog=128)
        self._listener.setblocking(False)
        self._caller_ip = caller_ip
        self._selector.register(self._listener, selectors.EVENT_READ, self._on_connection)
        port: int = self._listener.getsockname()[1]
        return port

    def join(self, ring: Ring) -> None:
        """Call the next watcher, and let those who have called prove themselves from now on."""
        self._ring = ring
        self.heard = time.monotonic()
        for caller in self._strangers.values():
            caller.since = self.heard
            self._selector.register(caller.connection, selectors.EVENT_READ, self._on_caller)
        self._call_next()

    def tell_next(self) -> None:
        """Tell the next watcher what this one knows."""
        if self._next is None or self._next.link is None:
            return
        line = self._next.link.sign(self._news())
        # If the next watcher takes no messages, the one after it hears nothing and reports it.
        with contextlib.suppress(OSError):
            self._next.connection.send(line)

    def beat(self, now: float) -> None:
        """Tell the next watcher what is new, and see to this watcher's port; once a beat."""
        if self._listener is not None and self._listener not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ, self._on_connection)
        if self._ring is None:
            return
        for caller in list(self._strangers.values()):
            if now - caller.since > PROOF_SECONDS:
                self._forget(caller.connection)
        if self._next is None:
            self._call_next()
        self.tell_next()

    def why_previous_is_silent(self) -> str:
        """Say why. The kernel of its host answers while the host has power. Blocks 1 s at most."""
        assert self._ring is not None
        ip, port = self._ring.addresses[self._ring.previous]
        try:
            socket.create_connection((ip, port), timeout=1.0).close()
        except OSError:
            return f"{failure_note.HOST_LOST} (no sign of life for {SILENCE_SECONDS:.0f} s)"
        return "its watcher is stopped"

    def leave_next(self) -> None:
        """End the connection to the next watcher, which then ends, too."""
        if self._next is not None:
            self._next.connection.close()

    # The previous watcher, and strangers.

    def _on_connection(self, listener: socket.socket) -> None:
        for _ in range(MOST_STRANGERS):  # others wait until the loop comes round again
            try:
                connection, (ip, _) = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._selector.unregister(listener)  # until the next beat
                    return
                continue  # the caller has gone
            if ip != self._caller_ip:
                connection.close()
                continue
            if len(self._strangers) == MOST_STRANGERS:
                self._forget(next(iter(self._strangers)))
            connection.setblocking(False)
            caller = _Caller(connection, time.monotonic())
            self._strangers[connection] = caller
            with contextlib.suppress(OSError):
                connection.send(caller.greeting + b"\n")
            if self._ring is not None:
                self._selector.register(connection, selectors.EVENT_READ, self._on_caller)

    def _on_caller(self, connection: socket.socket) -> None:
        caller = self._strangers.get(connection) or self._previous
        assert caller is not None
        try:
            data = connection.recv(MOST_LINE_BYTES)
            lines = caller.lines.cut(data)
        except BlockingIOError:
            return
        except (ConnectionError, ValueError):
            data, lines = b"", []
        try:
            for line in lines:
                self._hear(caller, line)
        except ValueError:
            data = b""
        if not data:
            self._forget(connection)
            if caller is self._previous:
                self._previous = None
                self._previous_gone()

    def _hear(self, caller: _Caller, line: bytes) -> None:
        """Take a line of whoever calls.

        Raises:
            ValueError: it is not of this job.
        """
        assert self._ring is not None
        if caller.link is None:
            key = bytes.fromhex(self._ring.key)
            caller.link = Link(key, self._ring.previous, self._ring.rank, caller.greeting, line)
            return
        news = caller.link.read(line, len(self._ring.labels))
        if caller is not self._previous:
            if news is None:
                raise ValueError("a stranger")
            del self._strangers[caller.connection]
            if self._previous is not None:  # it has called again
                self._forget(self._previous.connection)
            self._previous = caller
        if news is not None:
            self.heard = time.monotonic()
            self._take(news)

    # The next watcher.

    def _call_next(self) -> None:
        """Connect to the next watcher; it greets when the connection is there."""
        assert self._ring is not None
        if len(self._ring.addresses) == 1:
            return
        connection = socket.socket()
        connection.setblocking(False)
        own_ip, _ = self._ring.addresses[self._ring.rank]
        ip, port = self._ring.addresses[self._ring.next]
        try:
            connection.bind((own_ip, 0))
            connection.connect((ip, port))
        except BlockingIOError:
            pass  # it is on its way
        except OSError:
            connection.close()  # with the next beat again; the next watcher counts the silence
            return
        self._next = _Called(connection)
        self._selector.register(connection, selectors.EVENT_READ, self._on_called)

    def _on_called(self, connection: socket.socket) -> None:
        assert self._ring is not None
        assert self._next is not None
        try:
            data = connection.recv(MOST_LINE_BYTES)
            if self._next.link is not None or not data:
                raise ConnectionError  # it has gone; and after its greeting it says nothing
            for greeting in self._next.lines.cut(data)[:1]:
                reply = nonce()
                connection.send(reply + b"\n")
                key = bytes.fromhex(self._ring.key)
                self._next.link = Link(key, self._ring.rank, self._ring.next, greeting, reply)
                self.tell_next()
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._forget(connection)  # called again with the next beat
            self._next = None

    def _forget(self, connection: socket.socket) -> None:
        """Close a connection of the ring."""
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        self._strangers.pop(connection, None)
        connection.close()
