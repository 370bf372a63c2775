"""TensorBoard's event files, read here byte by byte, and the examples for other trackers."""

import json
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from distsage.cli import main
from distsage.errors import UserError
from distsage.train.records import read_epochs
from distsage.train.tensorboard import TENSORBOARD, Curves

PAGE = Path(__file__).parents[3] / "docs" / "run-directory.md"
EXAMPLE = Path(__file__).parents[2] / "page" / "run"
TINY = ["--dataset", "synthetic:400:8:4", "--batch-size", "20", "--fan-out", "3,3"]
TINY += ["--num-hidden", "8", "--num-workers", "0", "--device", "cpu", "--tensorboard"]


def masked_crc32c(data: bytes) -> int:
    """As the record format wants it: Castagnoli's polynomial, rotated, and a constant added."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(run_dir: Path) -> list[Event]:
    """Of the only event file in a run directory."""
    (path,) = (run_dir / TENSORBOARD).iterdir()
    data = path.read_bytes()
    found = []
    while data:
        length, crc = struct.unpack("<QI", data[:12])
        body, end = data[12 : 12 + length], 12 + length + 4
        assert (crc, *struct.unpack("<I", data[end - 4 : end])) == (
            masked_crc32c(data[:8]),
            masked_crc32c(body),
        )
        found.append(Event.FromString(body))
        data = data[end:]
    return found


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag."""
    version, start, *rest = events(run_dir)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (0, SessionLog.START)
    found: dict[str, list[tuple[int, float]]] = {}
    for event in rest:
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_checksums_are_those_of_the_standard() -> None:
    assert masked_crc32c(b"123456789") == (
        ((0xE3069283 >> 15) | (0xE3069283 << 17)) + 0xA282EAD8
    ) & (2**32 - 1)


def test_the_curve_of_a_run_that_goes_on_has_no_repetition(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for epochs in ("3", "5"):
        words = ["--run-dir", str(run_dir), "--eval-every", "2", "--resume", "auto", *TINY]
        main(["local", *words, "--num-epochs", epochs])
    shown = curves(run_dir)
    records = read_epochs(run_dir)
    assert [record["epoch"] for record in records] == list(range(5))
    assert shown["loss"] == [
        (record["epoch"] + 1, pytest.approx(record["loss"])) for record in records
    ]
    assert [step for step, _ in shown["accuracy/val"]] == [2, 3, 4, 5]
    assert shown["learning rate"] == [(step, pytest.approx(0.003)) for step in range(1, 6)]
    assert {"seconds/epoch", "seconds/evaluation", "seconds/forward, mean of trainers"} <= set(
        shown
    )
    assert {"bytes/received", "bytes/sent", "bytes/memory of host 0"} <= set(shown)


def test_what_is_trained_again_is_there_once(tmp_path: Path) -> None:
    """In one process, as after a loss that was no number."""
    records = read_epochs(EXAMPLE)
    file = tmp_path / "epochs.jsonl"
    written: list[dict[str, Any]] = []
    told = Curves(tmp_path, 0.01)

    def record(epoch: dict[str, Any]) -> None:
        written.append(epoch)
        file.write_text("".join(f"{json.dumps(each)}\n" for each in written))
        told.record(epoch)

    for epoch in records[:4]:
        record(epoch)
    del written[2:]  # rolled back
    record({**records[2], "loss": 99.0})
    record(records[3])
    losses = [*(each["loss"] for each in records[:2]), 99.0, records[3]["loss"]]
    assert curves(tmp_path)["loss"] == [
        (step, pytest.approx(loss)) for step, loss in enumerate(losses, 1)
    ]
    times = [event.wall_time for event in events(tmp_path)[2:]]
    assert times == sorted(times)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / TENSORBOARD).write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*tensorboard: .*; name another --run-dir"):
        Curves(tmp_path, 0.01).record(read_epochs(EXAMPLE)[0])


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_examples_for_other_trackers(
    tracker: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tracker is a stand-in; how it is called is the page's."""
    (code,) = [
        block
        for block in re.findall(
            r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
        )
        if f"import {tracker}" in block
    ]
    logged, began = [], []

    def log(values: dict[str, float], *, step: int) -> None:
        logged.append((step, values))

    stand_in = SimpleNamespace(
        init=lambda *, project, config: began.append(config),
        log_params=began.append,
        log=log,
        log_metrics=log,
    )
    monkeypatch.setitem(sys.modules, tracker, stand_in)
    assert "runs/demo/train" in code
    exec(code.replace("runs/demo/train", str(EXAMPLE)), {})
    records = read_epochs(EXAMPLE)
    assert [step for step, _ in logged] == [record["epoch"] for record in records]
    assert logged[-1][1] == {"loss": records[-1]["loss"], **records[-1]["val"]}
    assert began[0]["num_epochs"] == 7
