"""A job whose rows do not fit into memory writes the same bytes, and gives the same scores."""

import re
from pathlib import Path

import pytest
from conftest import Partitioned, planted
from jobs import Job, mpirun
from test_predict import write_run

from distsage.config import EvaluateConfig
from distsage.prediction.scores import evaluate, lines

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]

LITTLE_MEMORY = Path(__file__).with_name("little_memory_program.py")


def files_of(said: str) -> set[str]:
    """Of rows, by what the program has said."""
    return set(re.findall(r"in the file (\S+): \d+ bytes", said))


def test_rows_in_files(partitioned: Partitioned, tmp_path: Path) -> None:
    """Three parts on two hosts of two pairs: all kinds of halo rows, and rows for other writers."""
    parts, run = partitioned(planted(), 3), tmp_path / "run"
    write_run(run, parts)
    for name, program in (
        ("memory", ["-m", "distsage"]),
        ("files", [LITTLE_MEMORY, "whole"]),
    ):
        where = ["--run-dir", run, "--output", tmp_path / name, "--emulated-hosts", 2]
        said = mpirun(8, *program, "predict", *where, "--what", "logits").stderr
        in_files = {name.split("/")[0] for name in files_of(said)}
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


def test_a_job_goes_on_after_the_last_layer_that_all_trainers_have_finished(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    """One is killed when it begins the last of three; the other may have finished that, too."""
    parts, run = partitioned(planted(), 3), tmp_path / "run"
    write_run(run, parts)

    def asked(output: str) -> list[object]:
        return ["predict", "--run-dir", run, "--output", tmp_path / output, "--emulated-hosts", 2]

    mpirun(4, "-m", "distsage", *asked("undisturbed"))
    Job(4, LITTLE_MEMORY, "trainer-1/layer-2.rows", *asked("killed")).wait(None)
    again = files_of(mpirun(4, LITTLE_MEMORY, "whole", *asked("killed")).stderr)
    layers = {name for name in again if "layer-" in name}
    assert layers == {"trainer-0/layer-2.rows", "trainer-1/layer-2.rows"}
    written = {path.name: path for path in (tmp_path / "undisturbed").glob("*.parquet")}
    assert len(written) == 3
    for name, path in written.items():
        assert (tmp_path / "killed" / name).read_bytes() == path.read_bytes()


def test_scores_of_rows_in_files(partitioned: Partitioned, tmp_path: Path) -> None:
    parts, run = partitioned(planted(), 3), tmp_path / "run"
    write_run(run, parts)
    ended = mpirun(4, LITTLE_MEMORY, "whole", "evaluate", "--run-dir", run, "--emulated-hosts", 2)
    in_files = {name.split("/")[0] for name in files_of(ended.stderr)}
    assert in_files == {"rows-trainer-0", "rows-trainer-1"}
    expected = lines(*evaluate(EvaluateConfig(run_dir=run)))
    assert expected in ended.stdout
    assert not list((run / "evaluation").glob("rows*"))
