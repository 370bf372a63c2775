"""What `distsage watch` and `distsage runs` say of runs in every state."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from distsage.cli import main
from distsage.report import watch as module
from distsage.report.text import list_runs
from distsage.report.watch import curve, watch
from distsage.train import records
from distsage.train.records import read_run

EXAMPLE = Path(__file__).parents[2] / "page" / "run"


class LiveRun:
    """A copy of the example that the test lets go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(EXAMPLE, path)
        (path / "summary.json").unlink()
        self._epochs = (path / "epochs.jsonl").read_text().splitlines(keepends=True)
        (path / "epochs.jsonl").write_text(self._epochs[0])
        (path / "events.jsonl").unlink()
        self.event("began", job="1", requeues=0)
        self.tell(epoch=1, step=1, doing="computing step 1 of epoch 1", state="working")

    def event(self, event: str, **facts: Any) -> None:
        with open(self.path / "events.jsonl", "a") as stream:
            stream.write(json.dumps({"time": time.time(), "event": event, **facts}) + "\n")

    def tell(self, since: float = 0.0, **facts: Any) -> None:
        progress = json.loads((EXAMPLE / "progress.json").read_text())
        now = time.time()
        facts = {**progress, "time": now, "since": now - since, "seconds_left": 90.0, **facts}
        (self.path / "progress.json").write_text(json.dumps(facts))

    def next_epoch(self) -> None:
        done = len((self.path / "epochs.jsonl").read_text().splitlines())
        (self.path / "epochs.jsonl").write_text("".join(self._epochs[: done + 1]))


@pytest.fixture
def run(tmp_path: Path) -> LiveRun:
    return LiveRun(tmp_path / "live")


def test_a_live_run_is_followed_to_its_end(
    run: LiveRun, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = {"doing": "waiting for batch 0 of epoch 2", "state": "waiting", "since": 31.0}
    turns = [
        run.next_epoch,
        lambda: None,  # nothing new: nothing is said
        lambda: (run.next_epoch(), run.tell(epoch=3, step=0, **waiting)),
        lambda: shutil.copy(EXAMPLE / "summary.json", run.path),
    ]
    assert watch(run.path, lambda _: turns.pop(0)()) is True
    assert turns == []
    said = capsys.readouterr().out
    assert said.count(f"{run.path}: ") == 4
    assert f"{run.path}: running, computing step 1 of epoch 1\nepoch 2/7, step 1/2, " in said
    assert "90 s left" in said
    assert "has been waiting for batch 0 of epoch 2 for 31 s" in said
    assert f"{run.path}: finished, all 7 epochs" in said
    assert "node1" in said


def test_a_killed_run_says_why(run: LiveRun, capsys: pytest.CaptureFixture[str]) -> None:
    why = "rank 2 (server on node1): killed by SIGKILL"
    assert watch(run.path, lambda _: run.event("failed", why=why)) is False
    assert f"{run.path}: failed, {why}" in capsys.readouterr().out


def test_a_requeued_run_goes_on(run: LiveRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.event("stopped", why="Slurm's time limit is near")
    with pytest.raises(SystemExit) as end:
        main(["watch", str(run.path)])
    assert end.value.code == 1
    assert "stopped, with a checkpoint, because Slurm's time limit is near" in (
        capsys.readouterr().out
    )
    run.event("resumed", job="1", requeues=1, source=str(run.path), epoch=1, step=1)
    assert read_run(run.path).state[0] == "running"


@pytest.fixture
def slurm(run: LiveRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `run` a job of a Slurm whose squeue gives the lines of this file, one at a time."""
    about = json.loads((run.path / "run.json").read_text())
    about["environment"]["slurm"] = {"SLURM_JOB_ID": "17"}
    (run.path / "run.json").write_text(json.dumps(about))
    answers = tmp_path / "answers"
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(
        f"""#!/bin/sh
case "$*" in *17*) ;; *) exit 1 ;; esac
head -n 1 {answers}; sed -i 1d {answers}
"""
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    return answers


def test_a_requeued_run_is_followed(
    run: LiveRun, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through its end, Slurm's queue and its coming up, back to an earlier step, to the end."""
    slurm.write_text("RUNNING\nCOMPLETING\nPENDING\nPENDING\nRUNNING\n")
    went_on = {"job": "17", "requeues": 1, "source": str(run.path)}
    turns = [
        lambda: run.event("stopped", why="Slurm's time limit is near"),
        *[lambda: None] * 4,
        lambda: run.event("resumed", epoch=1, step=0, **went_on),
        lambda: run.tell(epoch=1, step=1),
        run.next_epoch,
        lambda: shutil.copy(EXAMPLE / "summary.json", run.path),
    ]
    assert watch(run.path, lambda _: turns.pop(0)()) is True
    assert turns == []
    said = capsys.readouterr().out
    stopped = (
        f"{run.path}: stopped, with a checkpoint, because Slurm's time limit is near\njob 1 is "
    )
    assert [said.count(f"{stopped}{state}") for state in ("COMPLETING", "PENDING")] == [1, 1]
    again = f"{run.path}: running, coming up\njob 17 went on at step 0 of epoch 2 (requeue 1)"
    assert again in said
    assert said.rindex("PENDING") < said.index(again) < said.index(": finished, all 7 epochs")
    assert "epoch 2/7, step 1/2, " not in said[said.index(again) : said.index(again) + 150]


def test_a_job_that_slurm_has_no_more_ends_the_watch(
    run: LiveRun, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.write_text("RUNNING\nCOMPLETING\n")
    run.event("failed", why="rank 2 (server on node1): killed by SIGKILL")
    assert watch(run.path, lambda _: None) is False
    assert slurm.read_text() == ""
    assert capsys.readouterr().out.count("failed, rank 2 (server on node1): killed") == 3


def test_a_job_that_runs_but_not_this_run_ends_the_watch(
    run: LiveRun, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an interactive job does, or one of several trainings."""
    slurm.write_text("RUNNING\n" * 10)
    run.event("stopped", why="it was asked to")
    monkeypatch.setattr(module, "_COMING_UP_SECONDS", -1.0)
    assert watch(run.path, lambda _: None) is False
    assert slurm.read_text() == "RUNNING\n" * 8


def test_a_finished_run_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    def sleep(_: float) -> None:
        raise AssertionError("it is over")

    assert watch(EXAMPLE, sleep) is True
    assert capsys.readouterr().out.count(f"{EXAMPLE}: finished, all 7 epochs") == 1


def test_a_silent_run_says_what_it_did_last(
    run: LiveRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "SILENT_SECONDS", -1.0)
    assert watch(run.path, lambda _: None) is False
    assert ": silent, no word for 0 s, when it was computing step 1" in capsys.readouterr().out


def test_a_failure_of_an_earlier_job_is_no_failure_of_this_one(run: LiveRun) -> None:
    (run.path / "failure.txt").write_text("rank 3: killed by SIGKILL\n")
    assert read_run(run.path).state == ("failed", "rank 3: killed by SIGKILL")
    os.utime(run.path / "failure.txt", (1e9, 1e9))
    assert read_run(run.path).state[0] == "running"


def test_the_list_names_the_options_in_which_runs_differ(run: LiveRun) -> None:
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("dropout: 0.5", "dropout: 0.1"))
    listed = list_runs([read_run(EXAMPLE), read_run(run.path)]).splitlines()
    assert [line.split()[:2] for line in listed[1:3]] == [["run", "finished"], ["live", "running"]]
    assert [line.split() for line in listed[4:]] == [
        ["differ", "in", "dropout"],
        ["run", "0.5"],
        ["live", "0.1"],
    ]
    assert list_runs([]) == "no runs here"


def test_curves() -> None:
    assert curve([3.0, 2.0, 1.0]) == "█▅▁"
    assert curve([1.0, 1.0]) == "▁▁"
    assert len(curve([float(k) for k in range(1000)])) <= 60
    assert curve([float("nan")]) == ""
