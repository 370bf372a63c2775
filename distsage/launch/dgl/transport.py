"""Carries DGL's requests and answers over connections of the job's own. Servers and trainers.

A trainer has one connection to every server, made by `distsage.launch.dgl.handshake`, and what
crosses it are the frames of `distsage.launch.dgl.frames`. One thread does it all: while it waits
for a message it goes on sending what did not fit into a connection before, so that two ranks that
send each other much never wait for each other.
"""

import logging
import selectors
import time
from collections import deque
from collections.abc import Iterator, Sequence

from distsage.launch.dgl.frames import FrameReader, FrameWriter, Message
from distsage.launch.dgl.handshake import Session
from distsage.launch.roles import Role

log = logging.getLogger(__name__)

# A wait for a message says so in the log this often. The rank's watcher bounds it: a server that
# does not answer is stuck, stopped or lost, and its own watcher names it.
_NOTE_SECONDS = 10.0
# What is still to be sent when a rank leaves is a few hundred bytes.
_CLOSE_SECONDS = 10.0
# The system is asked to send so much at once, where there is so much.
_PACKET_BYTES = 64 * 1024


class _Link:
    """One connection to a peer that has proven itself.

    Args:
        session: of it.
        name: of the peer, for messages.
        max_bytes: of one message's tensors.
    """

    def __init__(self, session: Session, name: str, max_bytes: int) -> None:
        self.peer = session.peer
        self.name = name
        self.connection = session.connection
        self._writer = FrameWriter(session.sends_with)
        self._reader = FrameReader(session.receives_with, max_bytes)
        self._frames: deque[Iterator[memoryview]] = deque()
        self._to_send: deque[memoryview] = deque()
        self._frame = self._reader.frame()
        self._to_fill = next(self._frame)
        self._between_frames = True

    def enqueue(self, message: Message) -> None:
        self._frames.append(self._writer.frame(message))

    def flush(self) -> bool:
        """Send as much as the connection takes; whether that is all."""
        while self._gather():
            try:
                sent = self.connection.sendmsg(self._to_send)
            except BlockingIOError:
                return False
            except OSError as error:
                raise ConnectionError(f"{self.name}: cannot send to it ({error})") from error
            while sent:
                first = self._to_send.popleft()
                if sent < len(first):
                    self._to_send.appendleft(first[sent:])
                sent -= min(sent, len(first))
        return True

    def _gather(self) -> bool:
        """Take pieces to send at once, so that a short message is one packet; whether any are."""
        while self._frames and sum(map(len, self._to_send)) < _PACKET_BYTES:
            piece = next(self._frames[0], None)
            if piece is None:
                self._frames.popleft()
            else:
                self._to_send.append(piece)
        return bool(self._to_send)

    def read(self) -> Message | None:
        """Read on. The next message, if all of it has come.

        Raises:
            PermissionError: what came is not what the peer has sent.
            ConnectionError: the connection ends inside a message.
            EOFError: it ends between two messages.
        """
        while True:
            try:
                count = self.connection.recv_into(self._to_fill)
            except BlockingIOError:
                return None
            except ConnectionError as error:
                raise self._ended(str(error)) from error
            if count == 0:
                raise self._ended("closed")
            self._between_frames = False
            self._to_fill = self._to_fill[count:]
            try:
                while not self._to_fill:
                    self._to_fill = next(self._frame)
            except StopIteration as whole:
                self._frame = self._reader.frame()
                self._to_fill = next(self._frame)
                self._between_frames = True
                message: Message = whole.value
                return message
            except PermissionError as error:
                raise PermissionError(
                    f"refused what came over the connection of {self.name}: {error}"
                ) from error

    def _ended(self, how: str) -> Exception:
        if self._between_frames:
            return EOFError(f"{self.name} has left ({how})")
        return ConnectionError(f"{self.name}: the connection ended inside a message ({how})")


class Transport:
    """All connections of this rank.

    Args:
        sessions: one for each peer, in the order of their numbers.
        names: of the peers, for messages.
        max_bytes: of one message's tensors.
        peers: what they are. A server's trainers may leave between two messages, as they do at the
            end; a trainer's servers stay as long as it does.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        names: Sequence[str],
        max_bytes: int,
        *,
        peers: Role,
    ) -> None:
        self._links = {
            session.peer: _Link(session, names[session.peer], max_bytes) for session in sessions
        }
        self._peers = peers
        self.last_sender = -1
        """The peer whose message was received last."""
        self._selector = selectors.DefaultSelector()
        for link in self._links.values():
            self._selector.register(link.connection, selectors.EVENT_READ, link)

    def send(self, peer: int, message: Message) -> None:
        """Send a message. Returns when the connection takes no more of it for now.

        The rest goes out while this rank waits for messages. The tensors must stay as they are
        until then.

        Raises:
            ConnectionError: the peer has left.
        """
        link = self._links.get(peer)
        if link is None:
            raise ConnectionError(f"peer {peer} has left already")
        link.enqueue(message)
        self._flush(link)

    def receive(self) -> tuple[int, Message]:
        """The next message of any peer, and the peer's number. Blocks; releases the GIL.

        Raises:
            PermissionError: what came is not what a peer has sent, or it speaks for another.
            ConnectionError: a peer has left that must not.
        """
        waited = 0.0
        while True:
            events = self._selector.select(_NOTE_SECONDS)
            if not events:
                waited += _NOTE_SECONDS
                names = ", ".join(link.name for link in self._links.values())
                log.info("has waited %.0f s for a message of %s", waited, names)
            for key, ready in events:
                link: _Link = key.data
                if ready & selectors.EVENT_WRITE:
                    self._flush(link)
                if ready & selectors.EVENT_READ:
                    message = self._read(link)
                    if message is not None:
                        self._check_sender(link, message)
                        self.last_sender = link.peer
                        return link.peer, message
            if not self._links:
                raise ConnectionError("all trainers have left, and none has said goodbye")

    def close(self) -> None:
        """Send what is still to be sent and close all connections. Blocks.

        A server lets its trainers go first: one that still waits for an answer of another server
        would take a server that is gone for lost. The watcher bounds how long that may take.

        Raises:
            TimeoutError: a peer does not take what it is sent.
        """
        deadline = time.monotonic() + _CLOSE_SECONDS
        for link in self._links.values():
            while not link.flush():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{link.name} does not take what it is sent")
                with selectors.DefaultSelector() as waiting:
                    waiting.register(link.connection, selectors.EVENT_WRITE)
                    waiting.select(left)
        while self._peers == "trainer" and self._links:
            for key, _ in self._selector.select():
                message = self._read(key.data)
                assert message is None, f"{key.data.name} asks for more after the goodbye"
        for link in self._links.values():
            link.connection.close()
        self._links.clear()
        self._selector.close()

    def _flush(self, link: _Link) -> None:
        wanted = selectors.EVENT_READ
        if not link.flush():
            wanted |= selectors.EVENT_WRITE
        if self._selector.get_key(link.connection).events != wanted:
            self._selector.modify(link.connection, wanted, link)

    def _check_sender(self, link: _Link, message: Message) -> None:
        sender = message.server_id if self._peers == "server" else message.client_id
        if sender != link.peer:
            raise PermissionError(f"{link.name} speaks as if it were {self._peers} {sender}")

    def _read(self, link: _Link) -> Message | None:
        try:
            return link.read()
        except EOFError as left:
            if self._peers == "server":
                raise ConnectionError(str(left)) from left
            log.info("%s", left)
        self._selector.unregister(link.connection)
        link.connection.close()
        del self._links[link.peer]
        return None
