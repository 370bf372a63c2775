"""A prediction in one process that is killed at any moment goes on to the same bytes."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

import distsage
from distsage import progress
from distsage.config import PredictConfig, TrainConfig
from distsage.partitioning.run import partition
from distsage.prediction.output import OutputDirectory
from distsage.prediction.run import write_predictions
from tests.unit.partition_graphs import random_directed
from tests.unit.predict.test_predict import write_run

OURS = str(Path(distsage.__file__).parent)
BEFORE, WHILE_IT_WRITES = 2, 6
SEED = 13


def calls_of(do: Callable[[], None], last: int | None = None) -> tuple[int, int]:
    """Run `do` in a child that counts its calls, and ends by SIGKILL at the last one, if given.

    A call is one of a function of distsage, or one that such a function makes of Python itself,
    such as os.fsync.

    Returns:
        How many calls there were before the directory was begun, and all (0, 0 of a killed child).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os.environ["OMP_NUM_THREADS"] = "1"  # one thread makes all calls
        count, begun, status = 0, 0, 1

        def count_call(frame: FrameType, event: str, _: object) -> None:
            nonlocal count, begun
            if event in ("call", "c_call") and frame.f_code.co_filename.startswith(OURS):
                count += 1
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                if frame.f_code is OutputDirectory.begin.__code__:
                    begun = begun or count

        sys.setprofile(count_call)
        try:
            do()
            status = 0
        finally:
            sys.setprofile(None)
            os.write(writer, f"{begun} {count}".encode())
            os._exit(status)
    os.close(writer)
    with open(reader) as stream:
        said = stream.read() or "0 0"
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if last is None else -signal.SIGKILL)
    begun, count = map(int, said.split())
    return begun, count


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of progress after some seconds, so that the same calls are made each time."""
    monkeypatch.setattr(progress, "_LEAST_PAUSE_SECONDS", 1e9)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("killed")
    ids = np.array([f"n{v * 7 % 200}" for v in range(200)])
    graph = random_directed(200, 1500, original_ids=ids)
    partition(graph, 6, path / "parts", method="random")
    write_run(path / "run", graph, TrainConfig(parts=path / "parts"))
    return path / "run"


@pytest.mark.parametrize("file_format", ["parquet", "npy"])
def test_a_killed_prediction_goes_on_to_the_same_bytes(
    file_format: str, run: Path, tmp_path: Path
) -> None:
    def predict(output: Path) -> None:
        write_predictions(PredictConfig(run_dir=run, output=output, file_format=file_format))

    predict(tmp_path / "whole")
    whole = content(tmp_path / "whole")
    begun, calls = calls_of(partial(predict, tmp_path / "counted"))
    rng = np.random.default_rng(SEED)
    before = rng.choice(np.arange(1, begun), BEFORE, replace=False)
    while_it_writes = rng.choice(np.arange(begun, calls), WHILE_IT_WRITES, replace=False)
    states = set()
    for moment in (*before.tolist(), *while_it_writes.tolist()):
        output = tmp_path / str(moment)
        calls_of(partial(predict, output), last=moment)
        left = content(output)
        states.add(len(left))
        written = {name: data for name, data in left.items() if not name.startswith((".", "_"))}
        assert written.items() <= whole.items(), f"half-written at call {moment} of {calls}"
        predict(output)
        assert content(output) == whole, f"killed at call {moment} of {calls}"
    assert len(states) > WHILE_IT_WRITES // 2, "the moments are spread"


def test_the_next_one_removes_what_a_killed_prediction_left_of_a_file(
    run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "p.parquet"
    predict = partial(write_predictions, PredictConfig(run_dir=run, output=output))
    predict()
    whole = output.read_bytes()
    _, calls = calls_of(predict)
    left = set()
    for before_the_end in (15, 30, 60):
        output.unlink()
        calls_of(predict, last=calls - before_the_end)
        left |= {path.suffix for path in tmp_path.iterdir()}
        (tmp_path / ".other.parquet.7.tmp").touch()
        predict()
        assert {path.name for path in tmp_path.iterdir()} == {output.name, ".other.parquet.7.tmp"}
        assert output.read_bytes() == whole
    assert ".tmp" in left, "a moment is while it writes"


def test_parts_that_are_written_are_not_written_again(run: Path, tmp_path: Path) -> None:
    config = PredictConfig(run_dir=run, output=tmp_path / "out")
    other = PredictConfig(run_dir=run, output=tmp_path / "a")
    begun, calls = calls_of(partial(write_predictions, other))
    calls_of(partial(write_predictions, config), last=(begun + calls) // 2)
    notes = list(config.output.glob("_part-*.json"))
    first = {path: path.stat().st_ino for path in config.output.glob("part-*")}
    write_predictions(config)
    assert 0 < len(notes) < 6
    again = {path: path.stat().st_ino for path in config.output.glob("part-*")}
    kept = {path: inode for path, inode in first.items() if again[path] == inode}
    assert len(kept) == len(notes)
