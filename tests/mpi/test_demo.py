"""`make demo`, on a smaller graph."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi


def test_the_demo_ends_with_the_scores_of_its_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.demo", "--nodes", "3000", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.rpartition("\ngraph ")[2]
    for run in ("train", "without-graph"):
        summary = json.loads((tmp_path / run / "summary.json").read_text())
        for mask in ("val", "test"):
            assert f"{summary[mask]['accuracy']:.4f}" in table
    summary = json.loads((tmp_path / "train" / "summary.json").read_text())
    assert (summary["hosts"], summary["trainers"]) == (2, 2)
    assert f"{summary['edge_cut']:,} directed edges" in table
    assert (tmp_path / "train" / "model.safetensors").exists()
    assert "train/model.safetensors" in table
