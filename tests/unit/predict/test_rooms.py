"""Rows of layers in files, without a model."""

from pathlib import Path

import pytest
import torch

from distsage.prediction import rooms as module
from distsage.prediction.rooms import BoundedRooms

ABOUT = {"model": "of a test"}


def bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> BoundedRooms:
    """Rooms of which none fits into memory."""
    monkeypatch.setattr(module, "require_memory", lambda *_: None)
    monkeypatch.setattr(module, "free_memory", lambda: 0)
    rooms = BoundedRooms(folder)
    rooms.prepare(0, ABOUT)
    return rooms


def test_headway_is_told_while_rows_go_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SYNCED_BYTES", 1 << 14)
    told = []
    with bounded(tmp_path / "rows", monkeypatch) as rooms:
        rows = rooms.layer(0, 5000, 4)  # 80,000 bytes
        rooms.finish(0, rows, lambda: told.append(1))
    assert len(told) == 5


def test_layers_stay_until_they_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that trainers of which some are a layer ahead have one in common."""

    def compute(rooms: BoundedRooms) -> None:
        for layer in range(3):
            rows = rooms.layer(layer, 10, 2)
            rows[:] = layer
            rooms.finish(layer, rows, lambda: None)
            rooms.forget(layer - 2)
        raise InterruptedError

    with pytest.raises(InterruptedError), bounded(tmp_path / "rows", monkeypatch) as rooms:
        compute(rooms)
    with bounded(tmp_path / "rows", monkeypatch) as rooms:
        assert rooms.finished(4) == [1, 2]
        assert torch.equal(rooms.taken_up(1), torch.ones(10, 2))
    assert not (tmp_path / "rows").exists()
