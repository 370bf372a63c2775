"""How far a long stage is: a bar on a terminal, lines in a log."""

import os
import select
import sys
import termios
from itertools import pairwise

import pytest

from distsage import progress as module
from distsage.progress import human_seconds, progress


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


def test_a_terminal_has_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BAR_AFTER_SECONDS", 0)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (25, 80))
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress("reading edges", 10, "edges") as advance:
            advance(10)
        terminal.write("end\n")  # a terminal hands over in pieces
        terminal.flush()
        shown = b""
        while not shown.endswith(b"end\r\n"):
            assert select.select([screen], [], [], 10)[0]
            shown += screen.read(1 << 16)
    pieces = shown.decode().split("\r")
    assert "reading edges:   0%" in pieces[1]
    assert pieces[-3].strip() == ""  # the line is blank again
    assert pieces[-2] == "end"


def test_times() -> None:
    assert [human_seconds(s) for s in (None, 7, 300, 7500)] == ["?", "7 s", "5 min", "2 h 05 min"]
