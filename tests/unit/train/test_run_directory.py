"""A disk that fills: one sentence, and every file of a run is whole, or as it was."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distsage.cli import main
from distsage.config import LocalConfig
from distsage.errors import UserError
from distsage.model.graphsage import GraphSAGE
from distsage.partitioning.run import partition
from distsage.train.checkpoint import Checkpoint, weights_of
from distsage.train.run_directory import RunDirectory
from tests.unit.file_limit import room_for
from tests.unit.partition_graphs import random_directed
from tests.unit.runs import best_of, origin

CONFIG = LocalConfig(dataset="cora")
RECORD = {"epoch": 0, "loss": 0.5}
CHECKPOINT = "checkpoints/000001-00000002.safetensors"


def model(seed: int) -> GraphSAGE:
    return GraphSAGE(in_features=4, hidden=8, num_classes=3, num_layers=2, dropout=0.5, seed=seed)


def save_model(run: RunDirectory, model: GraphSAGE) -> None:
    run.save_model(origin(CONFIG, model), best_of(model))


def checkpoint(epoch: int) -> Checkpoint:
    own = model(epoch)
    return Checkpoint(
        origin=origin(CONFIG, own),
        epoch=epoch,
        step=2,
        attempts={},
        seconds=1.0,
        elapsed=2.0,
        loss_sums=torch.zeros(1, dtype=torch.float64),
        counters=torch.zeros(1, 0, dtype=torch.float64),
        counter_names=(),
        weights=weights_of(own),
        optimizer={},
        best=None,
    )


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("write", "room", "file"),
    [
        (lambda run: run.record(RECORD), 45, "epochs.jsonl"),
        (lambda run: save_model(run, model(1)), 400, "model.safetensors"),
        (lambda run: run.save_checkpoint(checkpoint(1)), 400, CHECKPOINT),
        (lambda run: run.finish({"long": "x" * 5000}), 4000, "summary.json"),
        (lambda run: RunDirectory.begin(run.path / "next", CONFIG), 40, "next"),
    ],
    ids=["epochs.jsonl", "model.safetensors", "checkpoint", "summary.json", "config.yaml"],
)
def test_a_full_disk_leaves_every_file_as_it_was(
    write: Callable[[RunDirectory], None], room: int, file: str, tmp_path: Path
) -> None:
    run = RunDirectory.begin(tmp_path / "run", CONFIG)
    run.record(RECORD)
    save_model(run, model(0))
    run.save_checkpoint(checkpoint(0))
    before = contents(run.path)
    assert len(before["epochs.jsonl"]) < 45 < 2 * len(before["epochs.jsonl"])
    assert len(before["model.safetensors"]) > 400
    sentence = f"cannot write {run.path / file}: File too large; make room there, or name another"
    with pytest.raises(UserError, match=re.escape(sentence)), room_for(room):
        write(run)
    if (run.path / "next").exists():
        (run.path / "next").rmdir()  # empty
    assert contents(run.path) == before
    run.record({**RECORD, "epoch": 1})  # and it goes on where there is room again
    lines = (run.path / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_a_killed_job_was_writing_goes_away(goes_on: bool, tmp_path: Path) -> None:
    run = RunDirectory.begin(tmp_path, CONFIG)
    run.record(RECORD)
    run.save_checkpoint(checkpoint(1))
    save_model(run, model(1))
    for file in contents(tmp_path):
        path = tmp_path / file
        path.with_name(f".{path.name}.4711.tmp").write_text("half")
    foreign = tmp_path / ".ip_config.txt.4711.tmp"  # rank 0 may be writing it at this moment
    foreign.write_text("half")
    if goes_on:
        RunDirectory.go_on(tmp_path, CONFIG, tmp_path, 1)
    else:
        RunDirectory.begin(tmp_path, CONFIG)
    assert list(tmp_path.rglob(".*")) == [foreign]


def test_a_directory_has_one_owner_as_long_as_that_lives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, run_dir = tmp_path / "parts", tmp_path / "run"
    partition(random_directed(60, 300), 1, parts, method="random")
    local = ["local", "--parts", str(parts), "--run-dir", str(run_dir), "--num-epochs", "1"]
    hold = (
        "import time; from pathlib import Path; from distsage.files import own_directory\n"
        f"lock = own_directory(Path({str(run_dir)!r}), 'job 4711 on a, b', '--run-dir')\n"
        "print('held', flush=True); time.sleep(120)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SystemExit) as end:
            main(local)
        other.kill()  # as a job whose host is lost: nothing is put in order
    assert end.value.code == 2
    said = capsys.readouterr().err
    belongs = f"distsage: {run_dir} belongs to a job that is running (job 4711 on a, b, process "
    assert said.startswith(belongs)
    assert said.endswith("; name another --run-dir, or wait until it has ended\n")
    assert [path.name for path in run_dir.iterdir()] == ["owner.txt"]
    assert run_dir.stat().st_mode & 0o777 == 0o700
    for _ in range(2):  # the dead one's, and one's own of before
        main(local)
    assert (run_dir / "earlier-1" / "summary.json").exists()


def test_runs_that_name_no_directory_do_not_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    pattern = r"runs/\d{4}-\d\d-\d\d-\d{6}-4711"
    assert re.fullmatch(pattern, str(LocalConfig(dataset="cora").run_dir))
    monkeypatch.delenv("SLURM_JOB_ID")
    assert str(LocalConfig(dataset="cora").run_dir).endswith(f"-{os.getpid()}")
    assert LocalConfig(dataset="cora", run_dir=Path("runs/x")).run_dir == Path("runs/x")


def test_training_on_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, run_dir = tmp_path / "parts", tmp_path / "run"
    partition(random_directed(60, 300), 1, parts, method="random")
    options = ["--parts", str(parts), "--run-dir", str(run_dir), "--num-workers", "0"]
    options += ["--fan-out", "2,2,2", "--num-hidden", "512", "--num-epochs", "2"]
    with pytest.raises(SystemExit) as end, room_for(2**20):  # the weights take 2 MiB
        main(["local", *options, "--eval-every", "2"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    first = run_dir / "checkpoints" / "000000-00000000.safetensors"
    assert said.startswith(f"distsage: cannot write {first}: ")
    assert said.endswith("; make room there, or name another --run-dir\n")
    assert said.count("\n") == 1
    assert {path.name for path in run_dir.iterdir()} == {
        *("config.yaml", "run.json", "events.jsonl", "progress.json", "checkpoints", "owner.txt")
    }
    assert list(first.parent.iterdir()) == []
