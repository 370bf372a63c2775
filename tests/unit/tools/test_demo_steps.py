"""The demo's steps and table; the demo itself runs in tests/mpi."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distsage.config import LocalConfig, TrainConfig
from distsage.errors import UserError
from distsage.partitioning.run import partition
from distsage.train.run_directory import RunDirectory
from tests.unit.partition_graphs import ring
from tools import demo
from tools.summary import summary_table


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_step_passes_on_what_it_prints_and_says_that_it_still_runs(capfd, monkeypatch):
    monkeypatch.setattr(demo, "_SILENCE_SECONDS", 0.2)
    code = "import sys, time; print('hel' 'lo'); time.sleep(1.5); print('by' 'e', file=sys.stderr)"
    demo._step("1/1  greeting", python(code), dict(os.environ, PYTHONUNBUFFERED="1"))
    printed = capfd.readouterr().out
    assert printed.index("     hello") < printed.index("... 1 s") < printed.index("bye")


def test_a_step_that_fails_ends_the_demo():
    with pytest.raises(UserError, match="step 1/1 failed with status 7"):
        demo._step("1/1  failing", python("raise SystemExit(7)"), dict(os.environ))


def test_a_step_that_takes_too_long_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_STEP_SECONDS", 1)
    monkeypatch.setattr(demo, "_SILENCE_SECONDS", 0.2)
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(UserError, match="has not ended after 1 s"):
        demo._step("1/1  sleeping", python(code), dict(os.environ))
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        assert time.monotonic() < deadline, "the child of the step still runs"
        time.sleep(0.05)


def test_only_a_demos_directory_is_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(UserError, match="is no earlier demo"),
        demo._fresh_directory(tmp_path / "mine"),
    ):
        pass
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with demo._fresh_directory(tmp_path / "demo") as path:
        (path / "parts").mkdir()
        (path / "note").write_text("of the first demo")
        with (
            pytest.raises(UserError, match="another demo is running"),
            demo._fresh_directory(path),
        ):
            pass
    with demo._fresh_directory(tmp_path / "demo") as path:
        assert [entry.name for entry in path.iterdir()] == [".distsage-demo"]


def test_a_terminated_demo_ends_its_step(tmp_path):
    command = [sys.executable, "-m", "tools.demo", "--output", str(tmp_path / "demo")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    while "splitting" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert not list((tmp_path / "demo").glob("parts*"))


def write_run(path: Path, config: object, scores: dict[str, float]) -> None:
    run = RunDirectory.begin(path, config)
    for epoch, seconds in enumerate((9.0, 0.5, 0.7)):
        evaluated = {"eval_seconds": 0.25} if epoch == 2 else {}
        run.record({"epoch": epoch, "loss": 1.0, "seconds": seconds, **evaluated})
    parts = dict.fromkeys(("train", "val", "test"), scores)
    run.finish({**parts, "best_epoch": 2, "epochs": 3, "hosts": 2, "trainers": 4, "edge_cut": 0})


def test_the_table(tmp_path):
    partition(ring(40), 2, tmp_path / "parts", method="random")
    manifest = json.loads((tmp_path / "parts" / "manifest.json").read_text())
    write_run(tmp_path / "run", TrainConfig(parts=tmp_path / "parts"), {"accuracy": 0.875})
    write_run(tmp_path / "plain", LocalConfig(dataset="x", ignore_edges=True), {"accuracy": 0.5})
    lines = summary_table(tmp_path / "run", tmp_path / "plain").splitlines()
    rows = [" ".join(line.split()) for line in lines if line]
    cut = manifest["edge_cut"]
    assert rows == [
        "graph 40 nodes, 80 directed edges",
        "parts 2, of 20 + 20 nodes",
        f"edge cut {cut} directed edges ({100 * cut / 80:.2f} %)",
        "hosts, trainers 2, 4",
        "epochs 3, the best is number 3",
        "epoch time 9.00 s the first, then 0.60 s (median)",
        "evaluation 0.25 s (median)",
        "accuracy validation test",
        "with the graph 0.8750 0.8750",
        "without the graph 0.5000 0.5000",
        f"checkpoint {tmp_path}/run/model.safetensors",
    ]
    scores = {"accuracy": 0.9, "roc_auc": 0.8125}
    write_run(tmp_path / "two", TrainConfig(parts=tmp_path / "parts"), scores)
    table = summary_table(tmp_path / "two")
    assert "roc auc" in table
    assert "0.8125" in table
    assert "without the graph" not in table
    (tmp_path / "two" / "summary.json").unlink()
    with pytest.raises(UserError, match="holds no finished run"):
        summary_table(tmp_path / "two")
