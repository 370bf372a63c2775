"""Records of runs: one documented schema, and what is read of directories that are not as usual."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from distsage.errors import UserError
from distsage.train.about import SCHEMA
from distsage.train.records import find_runs, read_run
from distsage.train.usage import waits_for
from tests.unit.report.schema import strangers


def test_a_run_writes_what_the_documentation_says(tiny_run: Path) -> None:
    run = read_run(tiny_run)
    assert list(strangers(run)) == []
    assert run.about["schema"] == SCHEMA == 1
    assert run.state == ("finished", "all 3 epochs")
    assert [event["event"] for event in run.events] == [
        *("began", "checkpoint", "checkpoint", "checkpoint", "finished")
    ]
    assert (run.progress["epoch"], run.progress["step"]) == (2, run.about["steps_per_epoch"])
    (host,) = run.epochs[-1]["hosts"]
    assert host["trainer_bytes"] > 10 * 2**20
    assert host["trainer_cpu_seconds"] >= 0


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny run as it was when it still ran."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    (copy / "summary.json").unlink()
    events = (copy / "events.jsonl").read_text().splitlines(keepends=True)
    (copy / "events.jsonl").write_text("".join(events[:-1]))
    return copy


def test_a_run_of_before_the_schema_is_read(copied: Path) -> None:
    for name in ("run.json", "events.jsonl", "progress.json"):
        (copied / name).unlink()
    run = read_run(copied)
    assert (run.about, run.events, run.state[0]) == ({}, [], "unknown")
    assert len(run.epochs) == 3


def test_a_run_of_a_later_schema_is_refused(copied: Path) -> None:
    about = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**about, "schema": 2}))
    with pytest.raises(UserError, match=r"newer distsage \(schema 2; this one reads up to 1\)"):
        read_run(copied)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("epochs.jsonl", "{}\n", "epochs.jsonl is damaged in line 1"),
        ("epochs.jsonl", "3\n", "epochs.jsonl is damaged in line 1"),
        ("events.jsonl", '{"time": 1}\n', "has no event"),
        ("run.json", "[]", "holds no JSON object"),
        ("config.yaml", "- 3\n", "holds no options"),
    ],
)
def test_damage_is_one_sentence(copied: Path, file: str, content: str, sentence: str) -> None:
    (copied / file).write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_run(copied)


def test_a_line_that_is_being_written_is_left_out(copied: Path) -> None:
    with open(copied / "epochs.jsonl", "a") as stream:
        stream.write('{"epoch": 3, "lo')
    assert len(read_run(copied).epochs) == 3


def test_why_a_run_is_over(copied: Path) -> None:
    def state_after(**event: object) -> tuple[str, str]:
        with open(copied / "events.jsonl", "a") as stream:
            stream.write(json.dumps({"time": time.time(), **event}) + "\n")
        return read_run(copied).state

    now = time.time()
    progress = json.loads((copied / "progress.json").read_text())
    (copied / "progress.json").write_text(json.dumps({**progress, "time": now, "doing": "resting"}))
    assert read_run(copied).state == ("running", "resting")
    assert state_after(event="stopped", why="it was asked to") == (
        "stopped",
        "with a checkpoint, because it was asked to",
    )
    assert state_after(event="resumed")[0] == "running"
    assert state_after(event="failed", why="rank 2: killed") == ("failed", "rank 2: killed")


def test_a_run_without_a_word_is_silent(copied: Path) -> None:
    for name in ("progress.json", "events.jsonl"):
        text = (copied / name).read_text()
        records = [json.loads(line) for line in text.splitlines()]
        lines = [json.dumps({**record, "time": record["time"] - 1000}) for record in records]
        (copied / name).write_text("".join(f"{line}\n" for line in lines))
    state, why = read_run(copied).state
    assert state == "silent"
    assert why.startswith("no word for ")


def test_runs_are_found_by_their_configuration(tiny_run: Path, tmp_path: Path) -> None:
    assert [run.path for run in find_runs(tiny_run.parent)] == [tiny_run]
    shutil.copytree(tiny_run, tmp_path / "of-today" / "first")
    assert [run.path for run in find_runs(tmp_path)] == [tmp_path / "of-today" / "first"]
    with pytest.raises(UserError, match="there is no directory"):
        find_runs(tiny_run / "nowhere")


def test_everybody_waits_for_the_trainer_that_comes_last() -> None:
    busy = np.array([[1.0, 5.0], [2.0, 1.0], [4.0, 2.0]])  # trainers 0 and 1 on host 0, 2 on host 1
    waits = waits_for(busy, np.array([0, 0, 1]))
    # Step 0 waits for host 1: 3 s and 2 s on host 0. Step 1 waits for host 0: 4 s there, 3 s on 1.
    assert waits.tolist() == [[4.0, 5.0], [3.0, 0.0]]
    assert waits_for(np.zeros((3, 0)), np.array([0, 0, 1])).tolist() == [[0, 0], [0, 0]]
