"""Servers and trainers listen to their job's ranks only, and believe what these have sent only."""

import gc
import json
import os
import pickle
import resource
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from dgl.distributed import kvstore, role, rpc

from distsage.launch.dgl import frames, handshake, transport
from distsage.launch.dgl.frames import FrameReader, FrameWriter, Message
from distsage.launch.dgl.handshake import Reception, Session, call_server
from distsage.launch.dgl.messages import Question, Tensors, from_plain, to_plain
from distsage.launch.dgl.transport import Transport
from distsage.launch.keys import derive_key
from distsage.launch.ports import listen

SECRET = bytes(range(32))
TRAINERS = ("rank 1 (trainer on a)", "rank 3 (trainer on b)")
SERVERS = ("rank 0 (server on a)", "rank 2 (server on b)")
MAX_BYTES = 1 << 20
PROGRAM = Path(__file__).parents[1] / "programs" / "reception_program.py"


@contextmanager
def receiving(
    trainers: tuple[str, ...] = TRAINERS[:1], server: int = 0
) -> Iterator[tuple[Reception, tuple[str, int]]]:
    listener = listen("127.0.0.1", "test")
    address = listener.getsockname()
    reception = Reception(listener, SECRET, server, trainers)
    yield reception, address
    if reception._thread.is_alive():  # ends with its last trainer
        for trainer in range(len(trainers)):
            call(address, trainer, server).connection.close()
        reception.sessions()


def call(address: tuple[str, int], trainer: int = 0, server: int = 0) -> Session:
    return call_server(address, SECRET, server, trainer, 20, SERVERS[server])


@pytest.fixture
def pair() -> Iterator[tuple[Session, Session]]:
    """The two ends of a connection that are proven: the trainer's and the server's."""
    with receiving() as (reception, address):
        trainer = call(address)
        (server,) = reception.sessions()
    with closing(trainer.connection), closing(server.connection):
        yield trainer, server


def as_server(session: Session, max_bytes: int = MAX_BYTES) -> Transport:
    return Transport([session], TRAINERS, max_bytes, peers="trainer")


def as_trainer(session: Session, max_bytes: int = MAX_BYTES) -> Transport:
    return Transport([session], SERVERS, max_bytes, peers="server")


def message(*tensors: torch.Tensor, seq: int = 0, trainer: int = 0, server: int = 0) -> Message:
    return Message(7, seq, trainer, server, {"tuple": ["rows", 5]}, tensors)


def framed(session: Session, *messages: Message) -> list[bytearray]:
    writer = FrameWriter(session.sends_with)
    return [bytearray(b"".join(writer.frame(each))) for each in messages]


# Who is listened to.


def test_both_sides_know_each_other_and_hear_each_other() -> None:
    with receiving(TRAINERS, server=1) as (reception, address):
        calls = [call(address, trainer, 1) for trainer in (1, 0)]
        sessions = reception.sessions()
    assert [session.peer for session in sessions] == [0, 1]
    server = Transport(sessions, TRAINERS, MAX_BYTES, peers="trainer")
    for session, number in zip(calls, (1, 0), strict=True):
        assert session.peer == 1
        trainer = as_trainer(session)
        trainer.send(1, message(torch.arange(number, 5), trainer=number, server=1))
        peer, heard = server.receive()
        assert (peer, heard.tensors[0].tolist()) == (number, list(range(number, 5)))
        server.send(number, message(seq=9, trainer=number, server=1))
        assert trainer.receive() == (1, Message(7, 9, number, 1, {"tuple": ["rows", 5]}, []))
        trainer.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    with pytest.raises(ConnectionRefusedError, match=r"rank 0 .* does not listen any more"):
        call(address)


def test_each_connection_and_each_direction_has_keys_of_its_own() -> None:
    keys = set()
    for _ in range(2):
        with receiving() as (reception, address):
            trainer = call(address)
            (server,) = reception.sessions()
        assert trainer.sends_with == server.receives_with
        assert trainer.receives_with == server.sends_with
        keys |= {trainer.sends_with, trainer.receives_with}
        assert SECRET.hex() not in repr(trainer)
        assert repr(trainer.sends_with) not in repr(trainer)
    assert len(keys) == 4


def test_a_trainer_with_another_secret_finds_no_server_of_its_job() -> None:
    with receiving() as (_, address), pytest.raises(PermissionError, match="rank 0 .*of this job"):
        call_server(address, b"another secret", 0, 0, 20, SERVERS[0])


def test_a_trainer_that_cannot_prove_itself_is_not_taken_in(caplog) -> None:
    with receiving() as (reception, address):
        with socket.create_connection(address) as stranger:
            stranger.sendall(hello())
            assert len(stranger.recv(64, socket.MSG_WAITALL)) == 64
            stranger.sendall(bytes(32))
            assert ended(stranger)
        trainer = call(address)
        (server,) = reception.sessions()
        as_trainer(trainer).send(0, message())
        assert as_server(server).receive()[0] == 0
    assert "claims to be rank 1 (trainer on a), and cannot prove it" in caplog.text


def hello(trainer: int = 0, server: int = 0) -> bytes:
    return handshake._HELLO.pack(handshake._MAGIC, server, trainer, os.urandom(32))


def ended(connection: socket.socket) -> bool:
    connection.settimeout(20)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


class Relay(threading.Thread):
    """Stands between a trainer and a server, and keeps what each says."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.target = target
        self.said: dict[str, bytes] = {"trainer": b"", "server": b""}

    def run(self) -> None:
        trainer, _ = self.listener.accept()
        server = socket.create_connection(self.target)
        with self.listener, trainer, server, selectors.DefaultSelector() as selector:
            selector.register(trainer, selectors.EVENT_READ, ("trainer", server))
            selector.register(server, selectors.EVENT_READ, ("server", trainer))
            while True:
                for key, _ in selector.select():
                    who, other = key.data
                    data = key.fileobj.recv(4096)  # type: ignore[union-attr]
                    if not data:
                        return
                    self.said[who] += data
                    other.sendall(data)


def relayed(trainer: int = 0) -> dict[str, bytes]:
    """What crosses the network when a trainer is taken in."""
    with receiving() as (reception, address):
        relay = Relay(address)
        relay.start()
        call(relay.address, trainer).connection.close()
        relay.join(20)
        reception.sessions()[0].connection.close()
    return relay.said


def test_no_key_crosses_the_network() -> None:
    said = b"".join(relayed().values())
    assert len(said) == 56 + 64 + 32 + 32
    for purpose in ("handshake server", "handshake trainer", "handshake taken in"):
        assert derive_key(SECRET, purpose) not in said
    assert SECRET not in said


def test_a_handshake_that_is_played_again_proves_nothing(caplog) -> None:
    said = relayed()
    with receiving() as (_, address), socket.create_connection(address) as stranger:
        stranger.sendall(said["trainer"])
        assert len(stranger.recv(64, socket.MSG_WAITALL)) == 64
        assert ended(stranger)
    assert "cannot prove it" in caplog.text


def test_a_server_that_plays_again_what_one_said_is_none() -> None:
    said = relayed()

    def answer() -> None:
        caller, _ = listener.accept()
        with caller:
            caller.sendall(said["server"])
            caller.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(PermissionError, match="rank 0 .*cannot prove to be of this job"):
            call(listener.getsockname())
        thread.join(20)


def test_who_calls_one_server_cannot_be_led_to_another(caplog) -> None:
    with receiving(server=1) as (_, address):
        relay = Relay(address)
        relay.start()
        with pytest.raises((TimeoutError, ConnectionError), match="rank 0"):
            call_server(relay.address, SECRET, 0, 0, 1, SERVERS[0])
    assert "call server 0" in caplog.text


def test_a_server_that_says_nothing_is_named_in_time() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(TimeoutError, match=r"rank 0 \(server on a\) at .* within 1 s"),
    ):
        call_server(silent.getsockname(), SECRET, 0, 0, 1, SERVERS[0])


class Harm:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


STRANGERS = {
    "garbage": b"\x93\x00\xff" * 500,
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a truncated hello": hello()[:40],
    "another trainer": hello(trainer=2**32 - 1),
    "a huge length": struct.pack("<QI", 0, 2**32 - 1) * 10,
    "a negative length": struct.pack("<qi", -1, -1) * 10,
    "a pickle": None,
    "nothing": b"",
}


@pytest.mark.parametrize("what", STRANGERS)
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays"])
def test_strangers_are_dropped_and_trainers_taken_in(
    what: str, closes: bool, tmp_path: Path, caplog
) -> None:
    harm = tmp_path / "harm"
    said = pickle.dumps(Harm(harm)) * 10 if what == "a pickle" else STRANGERS[what]
    with receiving() as (reception, address), socket.create_connection(address) as stranger:
        stranger.sendall(said)
        if closes:
            stranger.close()
        trainer = call(address)
        (server,) = reception.sessions()
        if not closes:
            assert ended(stranger)
        as_trainer(trainer).send(0, message())
        assert as_server(server).receive()[0] == 0
    assert "dropped 127.0.0.1:" in caplog.text
    assert not harm.exists()


def test_who_proves_nothing_in_time_is_dropped(monkeypatch, caplog) -> None:
    monkeypatch.setattr(handshake, "UNPROVEN_SECONDS", 0.2)
    with receiving() as (_, address), socket.create_connection(address) as stranger:
        assert ended(stranger)
        assert "has proven nothing" in caplog.text


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_connections_keep_no_trainer_out(monkeypatch, caplog) -> None:
    monkeypatch.setattr(handshake, "UNPROVEN_SECONDS", 1000.0)
    with receiving(TRAINERS) as (reception, address):
        strangers = [socket.create_connection(address) for _ in range(1000)]
        kept = handshake.UNPROVEN_CONNECTIONS + len(TRAINERS)
        assert all(ended(stranger) for stranger in strangers[:-kept])
        for number in range(len(TRAINERS)):
            assert call(address, number).peer == 0
        assert len(reception.sessions()) == len(TRAINERS)
        assert all(ended(stranger) for stranger in strangers), "nobody else is awaited any more"
        for stranger in strangers:
            stranger.close()
    assert 1 <= caplog.text.count("dropped") <= 22, "strangers do not fill the disk"


def test_a_server_without_descriptors_takes_its_trainer_in() -> None:
    with subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        env=os.environ | {"PYTHONPATH": str(PROGRAM.parents[3])},
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        address = ("127.0.0.1", int(program.stdout.readline()))
        strangers = [socket.create_connection(address) for _ in range(200)]
        trainer = as_trainer(call(address))
        trainer.send(0, message(torch.arange(3)))
        assert program.stdout.readline() == "0 [0, 1, 2]\n"
        for stranger in strangers:
            stranger.close()
        assert program.wait(timeout=20) == 0
        said = program.stdout.read()
    assert "no descriptor is left" in said


# What is believed.

DTYPES = sorted(frames._DTYPES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_arrive_as_they_were(dtype: str, pair: tuple[Session, Session]) -> None:
    numbers = torch.arange(7000) % 2 if dtype == "bool" else torch.arange(7000) % 100
    whole = numbers.to(frames._DTYPES[dtype])
    tensors = [
        *(whole, whole.view(70, 100), whole.view(70, 100).t(), whole[::3], whole[1:2]),
        *(whole[:0], whole.view(7, 1000)[:, :0], whole[5], whole[3:1031]),
    ]
    trainer, server = as_trainer(pair[0]), as_server(pair[1])
    trainer.send(0, message(*tensors))
    _, heard = server.receive()
    assert [t.dtype for t in heard.tensors] == [t.dtype for t in tensors]
    assert all(torch.equal(a, b) for a, b in zip(heard.tensors, tensors, strict=True))


def test_two_that_send_each_other_much_at_once_get_it(pair: tuple[Session, Session]) -> None:
    much = torch.arange(8 << 20)
    ends = as_trainer(pair[0], 1 << 30), as_server(pair[1], 1 << 30)
    heard: list[tuple[int, Message]] = []

    def talk(end: Transport) -> None:
        for seq in range(2):
            end.send(0, message(much, seq=seq))
        heard.extend(end.receive() for _ in range(2))
        end.close()

    threads = [threading.Thread(target=talk, args=(end,), daemon=True) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(heard) == 4
    assert all(torch.equal(each.tensors[0], much) for _, each in heard)


def refused(session: Session, *sent: bytes, says: str, max_bytes: int = MAX_BYTES) -> None:
    """The server gets so many bytes from the trainer's end, and refuses them."""
    trainer, server = session
    for data in sent:
        trainer.connection.setblocking(True)
        trainer.connection.sendall(data)
    listener = as_server(server, max_bytes)
    with pytest.raises(PermissionError, match=says) as refusal:
        [listener.receive() for _ in sent]
    assert "rank 1 (trainer on a)" in str(refusal.value)


def test_a_repeated_frame_is_refused(pair) -> None:
    (frame,) = framed(pair[0], message(torch.arange(5)))
    refused(pair, frame, frame, says="frame 0 came where frame 1 was due")


def test_frames_in_another_order_are_refused(pair) -> None:
    first, second = framed(pair[0], message(seq=1), message(seq=2))
    refused(pair, second, first, says="frame 1 came where frame 0 was due")


def test_a_frame_that_is_left_out_is_missed(pair) -> None:
    first, _, third = framed(pair[0], message(), message(), message())
    refused(pair, first, third, says="frame 2 came where frame 1 was due")


def test_a_frame_of_the_other_direction_is_refused(pair) -> None:
    (frame,) = framed(pair[1], message())
    refused(pair, frame, says="frame 0 was changed on its way")


def test_a_frame_of_another_connection_is_refused(pair) -> None:
    with receiving() as (reception, address):
        other = call(address)
        reception.sessions()[0].connection.close()
    (frame,) = framed(other, message())
    refused(pair, frame, says="frame 0 was changed on its way")
    other.connection.close()


@pytest.mark.parametrize("size", [1, 300, 5000, 300_000])
def test_a_bit_that_changes_on_its_way_is_noticed(size: int, pair) -> None:
    """Wherever it is: in the prefix, the head, the tensors or a tag."""
    rng = np.random.default_rng(size)
    (frame,) = framed(pair[0], message(torch.arange(size, dtype=torch.uint8)))
    ends = [*range(60), *range(len(frame) - 20, len(frame))]
    for at in {*ends, *rng.integers(len(frame), size=40).tolist()}:
        changed = bytearray(frame)
        changed[at % len(frame)] ^= 1 << int(rng.integers(8))
        with pytest.raises(PermissionError, match="frame"):
            read(FrameReader(pair[1].receives_with, MAX_BYTES), changed)
    assert read(FrameReader(pair[1].receives_with, MAX_BYTES), frame).tensors[0].numel() == size


def read(reader: FrameReader, data: bytes) -> Message:
    """Read a frame from memory; zeros follow it."""
    data = data + bytes(frames.MAX_HEAD_BYTES + 32)
    frame = reader.frame()
    at = 0
    try:
        wanted = next(frame)
        while True:
            wanted[:] = data[at : at + len(wanted)]
            at += len(wanted)
            wanted = frame.send(None)
    except StopIteration as whole:
        result: Message = whole.value
        return result


def test_a_changed_tensor_ends_the_connection_and_names_the_peer(pair) -> None:
    (frame,) = framed(pair[0], message(torch.arange(5000)))
    frame[len(frame) // 2] ^= 4
    refused(pair, frame, says="frame 0 was changed on its way")


@pytest.mark.parametrize("kept", [1, 11, 30, 2000, -1])
def test_a_truncated_frame_is_named(kept: int, pair) -> None:
    (frame,) = framed(pair[0], message(torch.arange(5000)))
    pair[0].connection.sendall(frame[:kept])
    pair[0].connection.close()
    with pytest.raises(ConnectionError, match=r"rank 1 .*ended inside a message"):
        as_server(pair[1]).receive()


@pytest.mark.parametrize("length", [2**32 - 1, frames.MAX_HEAD_BYTES + 1])
def test_a_huge_head_is_refused_before_it_is_read(length: int, pair) -> None:
    refused(pair, struct.pack("<QI", 0, length), says=f"announces {length} bytes")


def announced(session: Session, *shape: int) -> bytes:
    """The beginning of a frame that only the peer itself can have written."""
    head = json.dumps([7, 0, 0, 0, 0, None, [["float32", list(shape)]]]).encode()
    prefix = struct.pack("<QI", 0, len(head))
    return prefix + head + frames._Tagger(session.sends_with).head_tag(prefix, head)


@pytest.mark.parametrize("shape", [(2**60,), (2**40, 2**40), (MAX_BYTES // 4 + 1,)])
def test_tensors_that_no_message_of_the_job_has_are_refused(shape: tuple[int, ...], pair) -> None:
    refused(pair, announced(pair[0], *shape), says="announces .* messages have 1048576 at most")


@pytest.mark.parametrize("shape", [(-1,), (-5, -5), (0, -1)])
def test_tensors_of_a_negative_size_are_refused(shape: tuple[int, ...], pair) -> None:
    refused(pair, announced(pair[0], *shape), says="negative size")


def test_a_pickle_is_not_read(pair, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    payload = pickle.dumps(Harm(harm))
    refused(pair, payload * 10, says="frame .* was due")
    assert not harm.exists()
    with pytest.raises(PermissionError, match="no rank of this job says"):
        from_plain(Question, payload, [])
    assert not harm.exists()


# What is made of it.


def same(request: rpc.Request | rpc.Response) -> object:
    """What comes out at the other end."""
    plain, tensors = to_plain(request)
    made = from_plain(type(request), json.loads(json.dumps(plain)), tensors)
    assert type(made) is type(request)
    return made.__getstate__()


def test_requests_and_answers_come_out_as_they_went_in() -> None:
    handlers = (kvstore.default_pull_handler, kvstore.default_push_handler)
    shape = torch.empty(5, 3).shape
    for request in (
        Question("neighbours", (10, 2**64 - 1), torch.arange(3)),
        Tensors((torch.arange(3),)),
        Tensors((torch.arange(3), torch.arange(4))),
        kvstore.SendMetaToBackupRequest("a", "int64", shape, "node~_N", *handlers),
        kvstore.GetSharedDataResponse({"a": (shape, "int64", "node~_N")}),
        kvstore.GetPartShapeResponse(shape),
        role.GetRoleResponse({"default": {(0, 0), (1, 1)}}),
        rpc.ShutDownRequest(0),
        rpc.ClientBarrierRequest(),
    ):
        assert same(request) == request.__getstate__() or isinstance(request, Question | Tensors)
    subject, arguments, tensor = same(Question("rows", ("a",), torch.arange(3)))  # type: ignore[misc]
    assert (subject, arguments, tensor.tolist()) == ("rows", ("a",), [0, 1, 2])
    (only,) = same(Tensors((torch.arange(3),)))  # type: ignore[misc]
    assert only.tolist() == [0, 1, 2]


def test_a_message_keeps_no_tensor_that_nobody_has_any_more(pair) -> None:
    """Not even until Python looks for cycles: a trainer would hold many batches' rows."""
    trainer, server = as_trainer(pair[0]), as_server(pair[1])
    gc.collect()
    gc.disable()
    try:
        sent = torch.arange(5)
        plain, tensors = to_plain(Tensors((sent,)))
        trainer.send(0, Message(7, 0, 0, 0, plain, tensors))
        _, heard = server.receive()
        made = from_plain(Tensors, heard.data, heard.tensors)
        still = [weakref.ref(sent), weakref.ref(made.tensors[0])]
        del sent, tensors, heard, made
        assert [ref() for ref in still] == [None, None]
    finally:
        gc.enable()


def test_functions_are_not_sent() -> None:
    with pytest.raises(TypeError, match="builtin_function_or_method is not sent"):
        to_plain(kvstore.RegisterPullHandlerRequest("a", os.system))
    plain, tensors = to_plain(rpc.ClientBarrierRequest())
    with pytest.raises(PermissionError, match="asks for RegisterPullHandlerRequest"):
        from_plain(kvstore.RegisterPullHandlerRequest, plain, tensors)


@pytest.mark.parametrize(
    "said",
    [
        {"function": "system"},
        {"function": ["default_pull_handler"]},
        {"tensor": 1},
        {"tensor": -1},
        {"tensor": "0"},
        {"object": []},
        {"tuple": 5},
        {"tuple": [], "set": []},
        {},
        [{"tuple": [{"os.system": "true"}]}],
    ],
    ids=str,
)
def test_anything_else_is_refused(said: object) -> None:
    with pytest.raises(PermissionError, match="no rank of this job says"):
        from_plain(Question, said, [torch.arange(1)])


def test_nobody_can_speak_for_another(pair) -> None:
    trainer, server = as_trainer(pair[0]), as_server(pair[1])
    trainer.send(0, message(trainer=1))
    with pytest.raises(PermissionError, match=r"rank 1 .* as if it were trainer 1"):
        server.receive()
    server.send(0, message(server=1))
    with pytest.raises(PermissionError, match=r"rank 0 .* as if it were server 1"):
        trainer.receive()


# Who leaves.


def test_a_server_that_leaves_is_named(pair) -> None:
    pair[1].connection.close()
    with pytest.raises(ConnectionError, match=r"rank 0 \(server on a\) has left"):
        as_trainer(pair[0]).receive()


def test_trainers_may_leave_but_not_all_without_a_word() -> None:
    with receiving(TRAINERS) as (reception, address):
        first, second = (call(address, trainer) for trainer in (0, 1))
        server = Transport(reception.sessions(), TRAINERS, MAX_BYTES, peers="trainer")
    first.connection.close()
    as_trainer(second).send(0, message(seq=3, trainer=1))
    assert server.receive()[1].msg_seq == 3
    second.connection.close()
    with pytest.raises(ConnectionError, match="all trainers have left"):
        server.receive()


def test_servers_stay_until_their_trainers_have_left() -> None:
    """One trainer says goodbye while another still waits for an answer of another server."""
    with receiving(TRAINERS) as (reception, address):
        first, second = (as_trainer(call(address, number)) for number in (0, 1))
        server = Transport(reception.sessions(), TRAINERS, MAX_BYTES, peers="trainer")
    closing_server = threading.Thread(target=server.close, daemon=True)
    first.close()
    closing_server.start()
    closing_server.join(0.3)
    assert closing_server.is_alive()
    server.send(1, message(seq=4, trainer=1))
    assert second.receive()[1].msg_seq == 4
    second.close()
    closing_server.join(20)
    assert not closing_server.is_alive()


def test_what_is_sent_last_arrives_before_the_end(pair) -> None:
    trainer, server = as_trainer(pair[0], 1 << 30), as_server(pair[1], 1 << 30)
    much = torch.arange(4 << 20)
    trainer.send(0, message(much))
    thread = threading.Thread(target=trainer.close, daemon=True)
    thread.start()
    assert torch.equal(server.receive()[1].tensors[0], much)
    thread.join(20)
    assert not thread.is_alive()


def test_a_peer_that_takes_nothing_is_named_at_the_end(pair, monkeypatch) -> None:
    monkeypatch.setattr(transport, "_CLOSE_SECONDS", 0.2)
    trainer = as_trainer(pair[0])
    trainer.send(0, message(torch.zeros(16 << 20)))
    with pytest.raises(TimeoutError, match=r"rank 0 .* does not take"):
        trainer.close()


def test_a_long_wait_says_for_whom_in_the_log(pair, monkeypatch, caplog) -> None:
    monkeypatch.setattr(transport, "_NOTE_SECONDS", 0.05)
    caplog.set_level("INFO")
    trainer = as_trainer(pair[0])

    def answer_late() -> None:
        while "has waited" not in caplog.text:
            time.sleep(0.01)
        as_server(pair[1]).send(0, message())

    thread = threading.Thread(target=answer_late, daemon=True)
    thread.start()
    trainer.receive()
    thread.join(20)
    assert "for a message of rank 0 (server on a)" in caplog.text
