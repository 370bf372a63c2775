"""The budget of threads."""

import builtins
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
