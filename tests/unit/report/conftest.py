"""A tiny run that the tests of reports share."""

from pathlib import Path

import pytest

from distsage.cli import main

TINY = ["--dataset", "synthetic:400:8:4", "--batch-size", "20", "--fan-out", "3,3"]
TINY += ["--num-hidden", "8", "--num-workers", "0", "--device", "cpu"]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished local run: three epochs, two of them evaluated."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    options = ["--run-dir", str(run_dir), "--num-epochs", "3", "--eval-every", "2"]
    main(["local", *TINY, *options])
    return run_dir
