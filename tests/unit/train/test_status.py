"""What a run says of itself while it trains: lines in a log, progress.json."""

import json
import math
import os
import re
import select
import sys
import termios
from itertools import pairwise
from pathlib import Path

import pytest

from distsage.launch.watch.progress import State
from distsage.train import status as module
from distsage.train.status import Status


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_000_000 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "_BAR_SECONDS", 0.01)
    return clock


def test_a_log_has_lines_at_intervals_that_grow(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    with Status(tmp_path, 1, 20_000) as status:
        status.begin(0, 0)
        for step in range(10_000):
            clock.now = float(step)
            status.step(1.5, 40)
            if capsys.readouterr().out:
                said.append(step)
    assert said[:3] == [10, 20, 30]
    pauses = [after - before for before, after in pairwise(said)]
    assert pauses == sorted(pauses)
    assert 500 < pauses[-1] <= 600
    assert len(said) < 60


def test_short_epochs_do_not_fill_the_log(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Status(tmp_path, 10_000, 1) as status:
        for epoch in range(1000):
            clock.now += 0.001
            status.begin(epoch, 0)
            status.step(1.5, 40)
            status.epoch(f"epoch {epoch + 1}", evaluated=epoch == 900)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*(f"epoch {k}" for k in range(1, 21)), "epoch 901"]


def test_a_line_and_the_file_say_where_the_run_is(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = []
    with Status(tmp_path, 2, 100, lambda *mark: marks.append(mark)) as status:
        status.begin(0, 0)
        status.mark("computing step 0 of epoch 0", State.WORKING)
        for step in range(41):
            clock.now = float(step)
            status.step(0.25, 400)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "step 11/100 of epoch 1/2  loss 0.2500  440 seeds/s  3 min left"
    assert marks == [("computing step 0 of epoch 0", State.WORKING)]
    said = json.loads((tmp_path / "progress.json").read_text())
    assert (said["epoch"], said["step"], said["loss"]) == (0, 41, 0.25)
    assert (said["doing"], said["state"]) == ("computing step 0 of epoch 0", "working")
    assert said["seconds_left"] == 159.0
    assert said["seeds_per_second"] == 410.0


def test_a_terminal_has_a_bar(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that goes on in its second epoch: the first one does not count as its pace."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (25, 120))
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with Status(tmp_path, 3, 100) as status:
            status.begin(1, 0)
            for step in range(51):
                clock.now = 2.0 * step
                status.step(0.25, 400)
            status.epoch("epoch   2/3  loss 0.2500", evaluated=True)
        data = b""
        while select.select([screen], [], [], 0)[0]:
            data += screen.read(1 << 16)
        shown = data.decode()
    assert "\repoch   2/3  loss 0.2500\r\n" in shown
    assert re.search(
        r"\repoch 2/3, step 51/100:  50%\|█.*\|, loss 0\.2500, 204 seeds/s, 5 min left", shown
    )


def test_a_disk_that_is_full_or_gone_does_not_end_the_run(tmp_path: Path) -> None:
    with Status(tmp_path / "gone", 1, 1) as status:
        status.begin(0, 0)
        status.step(math.nan, 1)
