"""Long evaluations and predictions say how far they are."""

from pathlib import Path

import pytest

from distsage import progress
from distsage.cli import main

TINY = ["--dataset", "synthetic:400:8:4", "--batch-size", "20", "--fan-out", "3,3"]
TINY += ["--num-hidden", "8", "--num-workers", "0", "--device", "cpu", "--num-epochs", "1"]


def test_evaluation_and_prediction_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LEAST_PAUSE_SECONDS", -1.0)
    monkeypatch.setattr(progress, "_PAUSE_SHARE", -1.0)
    run_dir = str(tmp_path / "run")
    main(["local", "--run-dir", run_dir, *TINY])
    assert "evaluating: 800 of 800 rows, 0 s left\n" in capsys.readouterr().err
    main(["predict", "--run-dir", run_dir, "--output", str(tmp_path / "classes.csv")])
    assert "predicting: 800 of 800 rows, 0 s left\n" in capsys.readouterr().err
