"""How servers and trainers know each other: who connects proves first that it is of the job.

Server and trainer challenge each other with random numbers and answer under keys that are derived
from the job's secret. The keys themselves are never sent. Each connection that both have proven
gets two keys of its own, one for each direction. Runs on server and trainer ranks.

    trainer to server    Hello: the server's and the trainer's number, and a nonce
    server to trainer    a nonce, and its proof
    trainer to server    its proof
    server to trainer    that it has taken the trainer in
"""

import errno
import hmac
import logging
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from distsage.launch.keys import derive_key

log = logging.getLogger(__name__)

KEY_BYTES = 32
# The first bytes of a connection, so that a stranger's are told apart at once.
_MAGIC = b"distsage rpc 1\n\0"
_HELLO = struct.Struct("<16sII32s")  # magic, server's number, trainer's number, nonce
_NONCE_BYTES = _PROOF_BYTES = 32

# Connections that have proven nothing: so many at a time, and each for so many seconds. A proof
# takes milliseconds.
UNPROVEN_CONNECTIONS = 64
UNPROVEN_SECONDS = 10.0
# A server that has no descriptor left for a connection tries again after so many seconds.
_PAUSE_SECONDS = 0.1
# So many strangers have a line of their own in the log, and then every thousandth.
_STRANGERS_NOTED = 20

_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True)
class Session:
    """A connection that both sides have proven.

    Attributes:
        connection: between the two.
        peer: the other's number, among the servers or among the trainers.
        sends_with: the key of what this side sends.
        receives_with: the key of what the other side sends.
    """

    connection: socket.socket
    peer: int
    sends_with: bytes = field(repr=False)
    receives_with: bytes = field(repr=False)


@dataclass(frozen=True)
class _Transcript:
    """What both have said, and what follows from it; everything is bound to all of it."""

    secret: bytes
    said: bytes

    def proof(self, purpose: str) -> bytes:
        return derive_key(derive_key(self.secret, f"handshake {purpose}"), "proof", self.said)

    def session_key(self, direction: str) -> bytes:
        return derive_key(derive_key(self.secret, f"session {direction}"), "key", self.said)


class Reception:
    """A server's side: takes in each trainer that proves itself, in a thread of its own.

    When all trainers are in it closes the listener: from then on nobody can connect. Strangers cost
    a server no more than UNPROVEN_CONNECTIONS connections at any time, and one for each trainer,
    since all may come at once; the oldest gives way.

    Args:
        listener: bound and listening; closed here.
        secret: of the job.
        server: this server's number.
        trainers: how messages name each trainer, by its number.
    """

    def __init__(
        self, listener: socket.socket, secret: bytes, server: int, trainers: Sequence[str]
    ) -> None:
        self._listener = listener
        self._secret = secret
        self._server = server
        self._trainers = trainers
        self._callers: dict[socket.socket, _Caller] = {}  # the oldest first
        self._sessions: dict[int, Session] = {}
        self._strangers = 0
        self._error: Exception | None = None
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name="reception", daemon=True)
        self._thread.start()

    def sessions(self) -> list[Session]:
        """One for each trainer, by number. Blocks until all are in; watched by the watcher."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return [self._sessions[number] for number in range(len(self._trainers))]

    def _run(self) -> None:
        try:
            with self._listener, self._selector:
                self._listener.setblocking(False)
                self._selector.register(self._listener, selectors.EVENT_READ)
                while len(self._sessions) < len(self._trainers):
                    self._wait()
                for connection in list(self._callers):
                    self._drop(connection, "all trainers are in")
        except Exception as error:  # noqa: BLE001 - raised again by `sessions`
            self._error = error

    def _wait(self) -> None:
        for key, _ in self._selector.select(1.0 if self._callers else None):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj in self._callers:  # not dropped meanwhile
                assert isinstance(key.fileobj, socket.socket)
                self._hear(key.fileobj)
        now = time.monotonic()
        for connection, caller in list(self._callers.items()):
            if now > caller.deadline:
                self._drop(connection, f"has proven nothing for {UNPROVEN_SECONDS:.0f} s")

    def _accept(self) -> None:
        if len(self._callers) >= UNPROVEN_CONNECTIONS + len(self._trainers):
            self._drop(next(iter(self._callers)), "gives way to a newer connection")
        try:
            connection, address = self._listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                if self._callers:
                    self._drop(next(iter(self._callers)), "gives way: no descriptor is left")
                else:
                    time.sleep(_PAUSE_SECONDS)  # others of this process hold them
            return  # or the caller has gone before it was taken in
        connection.setblocking(False)
        caller = _Caller(address, time.monotonic() + UNPROVEN_SECONDS, self._prove(connection))
        self._callers[connection] = caller
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        """Read what has come, up to what the handshake waits for."""
        caller = self._callers[connection]
        try:
            data = connection.recv(caller.wanted - len(caller.heard))
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(connection, str(error))
            return
        try:
            if not data:
                raise _StrangerError("closed the connection before it had proven anything")
            caller.hear(data)
        except StopIteration as proven:
            self._selector.unregister(connection)
            del self._callers[connection]
            session: Session = proven.value
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sessions[session.peer] = session
        except (OSError, _StrangerError) as why:
            self._drop(connection, str(why))

    def _prove(self, connection: socket.socket) -> Generator[int, bytes, Session]:
        """The handshake: yields how many bytes it waits for, gets them, returns the session."""
        hello = yield _HELLO.size
        magic, server, trainer, _ = _HELLO.unpack(hello)
        if magic != _MAGIC:
            raise _StrangerError(f"begins with {hello[:16]!r}")
        if server != self._server or trainer >= len(self._trainers):
            raise _StrangerError(f"claims to be trainer {trainer} and to call server {server}")
        nonce = secrets.token_bytes(_NONCE_BYTES)
        said = _Transcript(self._secret, hello + nonce)
        connection.sendall(nonce + said.proof("server"))
        proof = yield _PROOF_BYTES
        if not hmac.compare_digest(proof, said.proof("trainer")):
            raise _StrangerError(f"claims to be {self._trainers[trainer]}, and cannot prove it")
        # A trainer comes again if it was made to give way before it knew that it was in.
        if (earlier := self._sessions.pop(trainer, None)) is not None:
            earlier.connection.close()
        connection.sendall(said.proof("taken in"))
        return Session(
            connection,
            trainer,
            sends_with=said.session_key("to trainer"),
            receives_with=said.session_key("to server"),
        )

    def _drop(self, connection: socket.socket, why: str) -> None:
        self._selector.unregister(connection)
        caller = self._callers.pop(connection)
        self._strangers += 1
        if self._strangers <= _STRANGERS_NOTED or self._strangers % 1000 == 0:
            log.warning("dropped %s:%d: %s (%d so far)", *caller.address, why, self._strangers)
        connection.close()


class _StrangerError(Exception):
    """Why a connection is not of the job."""


class _Caller:
    """A connection that has proven nothing yet."""

    def __init__(
        self, address: tuple[str, int], deadline: float, proving: Generator[int, bytes, Session]
    ) -> None:
        self.address = address
        self.deadline = deadline
        self._proving = proving
        self.heard = b""
        self.wanted = next(proving)

    def hear(self, data: bytes) -> None:
        """Go on with the handshake; raises StopIteration with the session at its end."""
        self.heard += data
        if len(self.heard) == self.wanted:
            heard, self.heard = self.heard, b""
            self.wanted = self._proving.send(heard)


def call_server(
    address: tuple[str, int], secret: bytes, server: int, trainer: int, seconds: float, name: str
) -> Session:
    """A trainer's side: connect to a server, and have both prove themselves. Blocks.

    Args:
        address: (ip, port) of the server, which listens already.
        secret: of the job.
        server, trainer: their numbers.
        seconds: that this may take.
        name: of the server, for messages.

    Raises:
        TimeoutError, ConnectionError: the server does not answer.
        PermissionError: whoever listens there is not of this job.
    """
    deadline = time.monotonic() + seconds
    while True:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.settimeout(_left(deadline))
            connection.connect(address)
            return _prove_to_server(connection, secret, server, trainer, deadline)
        except (TimeoutError, ConnectionRefusedError, PermissionError) as error:
            connection.close()
            _explain(error, address, seconds, name)
        except ConnectionError:
            # Among very many strangers a connection may have had to give way.
            connection.close()
            time.sleep(_PAUSE_SECONDS)
        except BaseException:
            connection.close()
            raise


def _explain(error: OSError, address: tuple[str, int], seconds: float, name: str) -> NoReturn:
    where = f"{name} at {address[0]}:{address[1]}"
    if isinstance(error, PermissionError):
        raise PermissionError(f"{where}: {error}") from None
    if isinstance(error, ConnectionRefusedError):
        raise ConnectionRefusedError(f"{where} does not listen any more") from None
    raise TimeoutError(f"{where} did not answer within {seconds:.0f} s") from None


def _prove_to_server(
    connection: socket.socket, secret: bytes, server: int, trainer: int, deadline: float
) -> Session:
    hello = _HELLO.pack(_MAGIC, server, trainer, secrets.token_bytes(_NONCE_BYTES))
    connection.sendall(hello)
    answer = _receive(connection, _NONCE_BYTES + _PROOF_BYTES, deadline)
    said = _Transcript(secret, hello + answer[:_NONCE_BYTES])
    if not hmac.compare_digest(answer[_NONCE_BYTES:], said.proof("server")):
        raise PermissionError("whoever listens there cannot prove to be of this job")
    connection.sendall(said.proof("trainer"))
    if not hmac.compare_digest(
        _receive(connection, _PROOF_BYTES, deadline), said.proof("taken in")
    ):
        raise PermissionError("what it answered was changed on its way")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setblocking(False)
    return Session(
        connection,
        server,
        sends_with=said.session_key("to server"),
        receives_with=said.session_key("to trainer"),
    )


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        connection.settimeout(_left(deadline))
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionResetError("closed during the handshake")
        data += more
    return data


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
