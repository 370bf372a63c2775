"""The budget of threads, and work that they share."""

import builtins
import threading
from pathlib import Path
from typing import Any

import pytest

from distsage.kernels import threads
from distsage.limits import usable_cores


def test_the_budget_is_what_is_stated_or_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for stated, expected in (("3", 3), ("4,2", 4), ("0", 1), ("many", usable_cores())):
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert threads.budget() == expected
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.budget() == usable_cores()


def test_asking_for_the_budget_reads_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels ask many times a step; reading the control groups took a quarter of its time."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads.budget()
    opened = []

    def refuse(path: Any, *arguments: Any, **named: Any) -> Any:
        opened.append(path)
        raise AssertionError(path)

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert threads.budget() >= 1
    assert opened == []


def test_each_item_once_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    together = threading.Barrier(3)

    def square(item: int) -> int:
        if item < 3:
            together.wait(60)  # which one thread alone would wait for in vain
        return item * item

    assert threads.each_in_threads(square, range(20)) == [item * item for item in range(20)]
    assert threads.each_in_threads(square, []) == []


@pytest.mark.parametrize(("budget", "most"), [("1", 5), ("5", 1)])
def test_one_thread_is_the_one_that_asks(
    budget: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", budget)
    found = threads.each_in_threads(lambda _: threading.current_thread(), range(4), most)
    assert set(found) == {threading.current_thread()}


def test_a_failure_is_raised_when_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = threading.active_count()
    done: list[int] = []
    failed = threading.Event()

    def work(item: int) -> None:
        if item == 1:
            failed.set()
            raise OSError("full")
        assert failed.wait(60)
        done.append(item)

    with pytest.raises(OSError, match="full"):
        threads.each_in_threads(work, range(2))
    assert done == [0]
    assert threading.active_count() == before
