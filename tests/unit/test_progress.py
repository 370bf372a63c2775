"""How far a long stage is: a bar on a terminal, lines in a log."""

import os
import select
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from distsage import progress as module
from distsage.progress import elapsed, human_seconds, progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_has_lines_at_intervals_that_grow(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    said, lines = [], []
    with progress("reading edges", 40_000, "edges") as advance:
        for second in range(1, 10_001):
            clock.now = float(second)
            advance(2)
            if line := capsys.readouterr().err:
                said.append(second)
                lines.append(line)
    assert lines[0] == "reading edges: 20 of 40,000 edges, 5 h 33 min left\n"
    assert lines[-1].startswith(f"reading edges: {2 * said[-1]:,} of 40,000 edges, ")
    assert said[:3] == [10, 20, 30]
    pauses = [after - before for before, after in pairwise(said)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 600
    assert len(said) < 60


def test_where_nobody_knows_how_much_there_is(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("reading edges", None, "edges") as advance:
        clock.now = 11.0
        advance(5000)
    assert capsys.readouterr().err == "reading edges: 5,000 edges\n"


def test_a_short_stage_and_other_ranks_say_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("reading edges", 10, "edges") as advance:
        clock.now = 9.0
        advance(10)
    with progress("reading edges", 10, "edges", shown=False) as advance:
        clock.now = 1000.0
        advance(10)
    assert capsys.readouterr() == ("", "")


@contextmanager
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], bytes]]:
    """A terminal as standard error; yields what reads what it shows, up to some bytes."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (25, 80))
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", buffering=0) as shown:
        monkeypatch.setattr(sys, "stderr", terminal)

        def read(end: bytes) -> bytes:
            found = b""
            while end not in found:
                assert select.select([shown], [], [], 10)[0], found
                found += shown.read(1 << 16)
            return found

        yield read


def test_a_terminal_has_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BAR_AFTER_SECONDS", 0)
    with screen(monkeypatch) as read:
        with progress("reading edges", 10, "edges") as advance:
            advance(10)
        print("end", file=sys.stderr, flush=True)
        shown = read(b"end\r\n")
    pieces = shown.decode().split("\r")
    assert "reading edges:   0%" in pieces[1]
    assert pieces[-3].strip() == ""  # the line is blank again
    assert pieces[-2] == "end"


def test_times() -> None:
    assert [human_seconds(s) for s in (None, 7, 300, 7500)] == ["?", "7 s", "5 min", "2 h 05 min"]


def test_a_stage_that_cannot_be_counted_says_how_long_it_takes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked = threading.Semaphore(0)

    def is_due(self: module.Pace, now: float) -> bool:
        looked.release()
        return now - self._last >= 10

    monkeypatch.setattr(module, "_TICK_SECONDS", 0.001)
    monkeypatch.setattr(module.Pace, "is_due", is_due)

    def at(second: float) -> str:
        """What is said by then."""
        clock.now = second
        while looked.acquire(blocking=False):
            pass
        for _ in range(3):  # the first may have read the clock before, the third follows the line
            assert looked.acquire(timeout=60)
        return capsys.readouterr().err

    with elapsed("assigning nodes"):
        assert at(9) == ""
        assert at(61) == "assigning nodes: 1 min so far\n"
        assert at(70) == ""
    with elapsed("assigning nodes", shown=False):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BAR_AFTER_SECONDS", "_TICK_SECONDS"):
        monkeypatch.setattr(module, name, 0.001)
    with screen(monkeypatch) as read, elapsed("assigning nodes"):
        shown = read(b"assigning nodes: 00:00")
    assert shown.startswith(b"\r")
