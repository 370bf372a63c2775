"""A watcher's port is reached by others than the job's watchers: whatever they send, it goes on."""

import contextlib
import os
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from distsage.launch.watch.link import MOST_LINE_BYTES, Lines, Link, News, nonce

PROGRAM = Path(__file__).parents[1] / "programs" / "watched_program.py"
SIZE = 3
KEY = bytes(32)  # of the program's ring
MOST_STRANGERS = 16


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 45
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Ring:
    """Three ranks that serve until they are told that it is enough."""

    def __init__(self, directory: Path, held: bool) -> None:
        self.directory = directory
        if held:
            (directory / "hold").touch()
        root = str(PROGRAM.parents[3])
        self.ranks = [
            subprocess.Popen(
                [
                    *(sys.executable, PROGRAM, str(rank), str(SIZE), directory),
                    *("until-enough", directory / "note"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "PYTHONPATH": root},
            )
            for rank in range(SIZE)
        ]

    def port(self, rank: int) -> int:
        path = self.directory / f"port-{rank}"
        wait_for(path.exists)
        return int(path.read_text().split()[0])

    def call(self, rank: int, ip: str = "127.0.0.1") -> socket.socket:
        """Connect to a rank's watcher, as a user of the host of the rank before can."""
        return socket.create_connection(("127.0.0.1", self.port(rank)), 10, (ip, 0))

    def serves(self) -> None:
        """Wait until all ranks have joined the ring."""
        wait_for(lambda: len(list(self.directory.glob("serves-*"))) == SIZE)

    def memory(self, rank: int) -> int:
        """Of the rank's watcher."""
        size: int = psutil.Process(self.ranks[rank].pid).memory_info().rss
        return size

    def ends_well(self) -> None:
        """Outlive the silence after which a watcher misses the previous one; then end."""
        time.sleep(11)
        (self.directory / "enough").touch()
        outputs = [rank.communicate(timeout=45)[0] for rank in self.ranks]
        assert (outputs, [rank.returncode for rank in self.ranks]) == ([""] * SIZE, [0] * SIZE)

    def release(self) -> None:
        """Let ranks that were held join the ring."""
        (self.directory / "hold").unlink()

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.communicate()


@dataclass(frozen=True)
class Act:
    """What strangers do to a ring, which has to end well.

    Attributes:
        do: it.
        held: whether the ranks join the ring only when it releases them.
    """

    do: Callable[[Ring], None]
    held: bool


ACTS: dict[str, Act] = {}


def act(*, held: bool = False) -> Callable[[Callable[[Ring], None]], Callable[..., None]]:
    """Makes a test of what is done to a ring: it looks at what has come of it."""

    def test_of(do: Callable[[Ring], None]) -> Callable[..., None]:
        ACTS[do.__name__] = Act(do, held)

        def test(outcomes: Mapping[str, Future[None]]) -> None:
            outcomes[do.__name__].result()

        return test

    return test_of


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Future[None]]:
    """All acts at once, each on a ring of its own, since most of their time is waiting."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(8192, hard)), hard))

    def happen(one: Act, directory: Path) -> None:
        ring = Ring(directory, one.held)
        try:
            one.do(ring)
        finally:
            ring.kill()

    directories = {name: tmp_path_factory.mktemp(name[:30]) for name in ACTS}
    with ThreadPoolExecutor(len(ACTS)) as pool:
        return {name: pool.submit(happen, one, directories[name]) for name, one in ACTS.items()}


LINES = {
    "a number": b"1\n",
    "a list": b"[]\n",
    "null": b"null\n",
    "an object": b"{}\n",
    "deep nesting": b"[" * 200_000,
    "no text": bytes(range(256)) * 100 + b"\n",
    "another nonce, not signed": nonce() + b'\n{"number": 1, "told": true}\n',
    "another nonce, signed wrongly": nonce() + b"\n" + b"0" * 64 + b" {}\n" * 1000,
    "a pickle": b"cposix\nsystem\n(S'touch stranger'\ntR.\n",
}


def send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # the watcher hangs up
        connection.sendall(data)


@act()
def test_the_job_goes_on_whatever_a_stranger_says(ring: Ring) -> None:
    ring.serves()
    for line in LINES.values():
        for rank in range(SIZE):
            with ring.call(rank) as connection:
                send(connection, line)
    ring.ends_well()


@act(held=True)
def test_the_job_goes_on_whatever_a_stranger_said_before_it_came_up(ring: Ring) -> None:
    held = []
    for rank in range(SIZE):
        for line in LINES.values():
            held.append(ring.call(rank))
            send(held[-1], line)
        held += [ring.call(rank) for _ in range(200)]
    ring.release()
    ring.serves()
    ring.ends_well()
    for connection in held:
        connection.close()


@act()
def test_a_line_without_an_end_takes_no_memory(ring: Ring) -> None:
    ring.serves()
    before = ring.memory(1)
    with ring.call(1) as connection:
        for _ in range(208):
            send(connection, b"x" * 2**20)
        assert ring.memory(1) - before < 8 * 2**20
    ring.ends_well()


@act()
def test_strangers_that_stay_silent_are_few_and_do_not_stay(ring: Ring) -> None:
    ring.serves()
    watcher = psutil.Process(ring.ranks[1].pid)
    usual = watcher.num_fds()
    held = [ring.call(1) for _ in range(1100)]
    assert watcher.num_fds() < 4 * MOST_STRANGERS
    # The watchers' own connections may have come meanwhile.
    wait_for(lambda: watcher.num_fds() <= usual + MOST_STRANGERS // 2)
    ring.ends_well()
    for connection in held:
        connection.close()


@act()
def test_a_watcher_that_can_open_no_file_waits(ring: Ring) -> None:
    ring.serves()
    watcher = psutil.Process(ring.ranks[1].pid)
    held = [ring.call(1) for _ in range(4)]
    wait_for(lambda: watcher.num_fds() > 0)
    resource.prlimit(watcher.pid, resource.RLIMIT_NOFILE, (watcher.num_fds() + 2, 4096))
    held += [ring.call(1) for _ in range(8)]
    before = sum(watcher.cpu_times()[:2])
    time.sleep(4)
    assert sum(watcher.cpu_times()[:2]) - before < 1.0, "it asks again and again"
    resource.prlimit(watcher.pid, resource.RLIMIT_NOFILE, (1024, 4096))
    ring.ends_well()
    for connection in held:
        connection.close()


@act()
def test_other_hosts_are_not_listened_to(ring: Ring) -> None:
    ring.serves()
    with ring.call(1, ip="127.0.0.7") as connection:
        assert connection.recv(100) == b""
    with ring.call(1) as connection:
        assert len(connection.recv(100)) == 65  # a greeting
    ring.ends_well()


class Eavesdropper:
    """Stands between two watchers: hears all, and puts in what it likes."""

    def __init__(self, port: int) -> None:
        self.heard = b""
        self.carries = True
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self) -> None:
        with contextlib.suppress(ConnectionError):  # at the end
            self._carry_until_the_end()

    def _carry_until_the_end(self) -> None:
        caller, _ = self._listener.accept()
        called = socket.create_connection(("127.0.0.1", self._port))
        lines: list[bytes] = []
        both = selectors.DefaultSelector()
        for side in (caller, called):
            both.register(side, selectors.EVENT_READ)
        while self.carries:
            for source in [key.fileobj for key, _ in both.select()]:
                data = source.recv(1 << 16)
                self.heard += data
                self.carries = bool(data)
                if source is called:
                    caller.sendall(data)
                    continue
                called.sendall(data)
                lines.append(data)
                if b"".join(lines).count(b"\n") < 2:
                    continue  # who cuts in before the caller's proof has both hung up on
                # What was said before, what nobody said, and at times a line without an end, which
                # spoils the next one.
                for old in lines[1:]:
                    called.sendall(old)
                called.sendall(b"1\n" + b"0" * 64 + b' {"told": true}\n')
                if len(lines) % 3 == 0:
                    called.sendall(data[:50])


@act(held=True)
def test_lines_that_are_repeated_or_put_in_count_for_nothing(ring: Ring) -> None:
    between = Eavesdropper(ring.port(1))
    path = ring.directory / "port-1"
    _, rest = path.read_text().split(" ", 1)
    path.write_text(f"{between.port} {rest}")
    ring.release()
    ring.serves()
    ring.ends_well()
    assert len(between.heard) > 1000
    assert KEY.hex().encode() not in between.heard


# The protocol by itself.


def news(**changes: object) -> News:
    values = {"done": 1, "marks": [5, 6, 7], "stop": False, "dump": False, "told": False, **changes}
    return News(**values)  # type: ignore[arg-type]


def pair(greeting: bytes, reply: bytes, key: bytes = KEY) -> tuple[Link, Link]:
    return Link(KEY, 0, 1, greeting, reply), Link(key, 0, 1, greeting, reply)


def test_a_line_is_read_once_and_in_its_connection_only() -> None:
    greeting, reply = nonce(), nonce()
    caller, called = pair(greeting, reply)
    first, second = caller.sign(news()).strip(), caller.sign(news(told=True)).strip()
    for stranger in (
        Link(KEY, 0, 1, nonce(), reply),  # recorded, and sent to another connection
        Link(KEY, 2, 1, greeting, reply),  # between others
        Link(bytes(31) + b"1", 0, 1, greeting, reply),
    ):
        assert stranger.read(first, 3) is None
    assert called.read(second.replace(b"true", b"false"), 3) is None
    assert called.read(second, 3) == news(told=True)
    assert called.read(second, 3) is None
    assert called.read(first, 3) is None
    assert called.read(caller.sign(news(done=7)).strip(), 3) == news(done=7)


@pytest.mark.parametrize("said", [b"", b"x" * 64, b"0" * 63, b"0" * 65, b"\xff" * 64])
def test_what_is_no_nonce_is_refused(said: bytes) -> None:
    with pytest.raises(ValueError, match="nonce"):
        Link(KEY, 0, 1, nonce(), said)


@pytest.mark.parametrize(
    "wrong",
    [
        {"done": -1},
        {"done": 8},
        {"done": True},
        {"done": 1.0},
        {"marks": [1, 2]},
        {"marks": [1, 2, 3, 4]},
        {"marks": [1, 2, -3]},
        {"marks": [1, 2, 2**63]},
        {"marks": [1, 2, "3"]},
        {"marks": 3},
        {"stop": 1},
        {"dump": None},
        {"told": "true"},
    ],
)
def test_values_are_checked(wrong: dict[str, object]) -> None:
    caller, called = pair(nonce(), nonce())
    with pytest.raises(ValueError, match="n"):
        called.read(caller.sign(news(**wrong)).strip(), 3)


def test_a_line_has_a_bound() -> None:
    lines = Lines()
    assert lines.cut(b"a\nb\nc" + b"c" * (MOST_LINE_BYTES - 1)) == [b"a", b"b"]
    with pytest.raises(ValueError, match="too long"):
        lines.cut(b"c")
