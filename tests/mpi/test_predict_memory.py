"""A job whose rows do not fit into memory writes the same bytes, and gives the same scores."""

import re
from pathlib import Path

import pytest
from conftest import Partitioned, planted
from jobs import mpirun
from test_predict import write_run

from distsage.config import EvaluateConfig
from distsage.prediction.scores import evaluate, lines

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]

LITTLE_MEMORY = Path(__file__).with_name("little_memory_program.py")


def test_rows_in_files(partitioned: Partitioned, tmp_path: Path) -> None:
    """Three parts on two hosts of two pairs: all kinds of halo rows, and rows for other writers."""
    parts, run = partitioned(planted(), 3), tmp_path / "run"
    write_run(run, parts)
    for name, program in (
        ("memory", ["-m", "distsage"]),
        ("files", [LITTLE_MEMORY]),
    ):
        where = ["--run-dir", run, "--output", tmp_path / name, "--emulated-hosts", 2]
        said = mpirun(8, *program, "predict", *where, "--what", "logits").stderr
        in_files = set(re.findall(r"in a file of (trainer-\d): \d+ bytes", said))
        assert in_files == ({f"trainer-{rank}" for rank in range(4)} if name == "files" else set())
    written = {path.name: path.read_bytes() for path in (tmp_path / "memory").glob("*.parquet")}
    assert len(written) == 3
    for name, content in written.items():
        assert (tmp_path / "files" / name).read_bytes() == content
    assert {path.name for path in (tmp_path / "files").iterdir()} == {
        *written,
        "_manifest.json",
        "_job",
    }


def test_scores_of_rows_in_files(partitioned: Partitioned, tmp_path: Path) -> None:
    parts, run = partitioned(planted(), 3), tmp_path / "run"
    write_run(run, parts)
    ended = mpirun(4, LITTLE_MEMORY, "evaluate", "--run-dir", run, "--emulated-hosts", 2)
    in_files = set(re.findall(r"in a file of rows-(trainer-\d): \d+ bytes", ended.stderr))
    assert in_files == {"trainer-0", "trainer-1"}
    expected = lines(*evaluate(EvaluateConfig(run_dir=run)))
    assert expected in ended.stdout
    assert not list((run / "evaluation").glob("rows*"))
