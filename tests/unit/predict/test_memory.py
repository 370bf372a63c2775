"""`predict` and `evaluate` within a bound on memory: the same bits, taken up after a kill."""

import contextlib
import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from distsage import limits
from distsage.cli import main
from distsage.config import EvaluateConfig, PredictConfig, TrainConfig
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.features.matrix import dense_table, feature_scales, sparse_rows
from distsage.limits import hold_to
from distsage.model import inference
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import infer
from distsage.partitioning.run import partition
from distsage.partitioning.verify import load_parts
from distsage.prediction import rooms, run
from distsage.prediction.output import rows_folder
from distsage.prediction.rooms import BoundedRooms
from distsage.prediction.run import write_predictions
from distsage.prediction.scores import evaluate
from distsage.train.records import read_run
from distsage.train.run_directory import RunDirectory
from distsage.train.tensor_file import read_tensors, write_tensors
from tests.unit.partition_graphs import random_directed
from tests.unit.runs import best_of, origin

N = 700
HIDDEN = 20
DRAWN = np.random.default_rng(9).integers(0, 12, N)

LARGE = 250_000
MEBIBYTES = 100


def graph_of(kind: str, **changes: object) -> Graph:
    rng = np.random.default_rng(1)
    width = 50 if kind == "wide" else 12
    rows = rng.standard_normal((N, width), np.float32)
    if kind.startswith("sparse"):
        rows[rng.random(rows.shape) < 0.8] = 0
        rows = scipy.sparse.csr_matrix(rows)
        if kind == "sparse ones":
            rows.data[:] = 1
    return random_directed(N, 9000, features=rows, **changes)


def write_run(path: Path, graph: Graph, **config: object) -> GraphSAGE:
    """A run of three layers, with weights that nobody has trained."""
    model = GraphSAGE(graph.num_features, HIDDEN, graph.num_classes, 3, 0.5, seed=3)
    asked = TrainConfig(**config)  # type: ignore[arg-type]
    RunDirectory.begin(path, asked).save_model(
        origin(asked, model, task=graph.task), best_of(model)
    )
    return model


def values(path: Path) -> np.ndarray:
    with np.load(path) as written:
        return written["values"]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_PIECE_BYTES", 20_000)
    monkeypatch.setattr(inference, "_TORCH_PIECE_BYTES", 20_000)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every room is a file."""
    monkeypatch.setattr(rooms, "free_memory", lambda: 0)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    graph = graph_of("dense")
    partition(graph, 3, tmp_path / "parts", method="random")
    write_run(tmp_path / "run", graph, parts=tmp_path / "parts")
    return tmp_path


def left_in(path: Path) -> set[str]:
    return {each.name for each in path.iterdir()} - {"parts", "run"}


@pytest.mark.levels
@pytest.mark.usefixtures("small_pieces", "no_memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["dense", "wide", "sparse", "sparse ones"])
def test_rows_in_files_are_those_in_memory(kind: str, dtype: str, tmp_path: Path) -> None:
    """Averaged or multiplied first; features out of several parts, against those of one matrix."""
    graph = graph_of(kind)
    partition(graph, 3, tmp_path / "parts", method="random")
    model = write_run(tmp_path / "run", graph, parts=tmp_path / "parts", feat_dtype=dtype)
    joined, _ = load_parts(tmp_path / "parts")
    scale = feature_scales(joined.features) if dtype == "int8" else None
    if scale is not None:
        model.scale_inputs(torch.from_numpy(scale))
    as_matrix = sparse_rows if kind.startswith("sparse") else dense_table
    logits = infer(model.eval(), joined.topology, as_matrix(joined.features, dtype, scale))
    ids = np.asarray(joined.original_ids)

    output = tmp_path / "p.npz"
    write_predictions(PredictConfig(run_dir=tmp_path / "run", output=output, what="logits"))
    np.testing.assert_array_equal(values(output), logits.numpy()[np.argsort(ids)])
    assert left_in(tmp_path) == {"p.npz"}


@pytest.mark.usefixtures("no_memory")
def test_a_dataset_too(tmp_path: Path) -> None:
    options = ["--dataset=synthetic:500:8:10", f"--run-dir={tmp_path}/run", "--device=cpu"]
    main(["local", *options, "--num-epochs=1", "--num-hidden=8", "--num-workers=0"])
    for name, memory in (("a.npz", None), ("b.npz", "100G")):
        config = PredictConfig(run_dir=tmp_path / "run", output=tmp_path / name, memory=memory)
        write_predictions(config)
    np.testing.assert_array_equal(values(tmp_path / "a.npz"), values(tmp_path / "b.npz"))
    assert left_in(tmp_path) == {"a.npz", "b.npz"}
    before = set((tmp_path / "run").iterdir())
    scores = read_run(tmp_path / "run").summary
    for memory in (None, "100G"):
        found, _ = evaluate(EvaluateConfig(run_dir=tmp_path / "run", memory=memory))
        assert found == {mask: scores[mask] for mask in ("train", "val", "test")}
    assert set((tmp_path / "run").iterdir()) == before


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "labels",
    [DRAWN % 3, DRAWN % 2, np.eye(4, dtype=np.float32)[DRAWN % 4]],
    ids=["three", "two", "several"],
)
def test_scores_of_rows_in_files_are_those_of_rows_in_memory(
    labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    graph = graph_of("dense", labels=labels, num_classes=classes)
    partition(graph, 3, tmp_path / "parts", method="random")
    write_run(tmp_path / "run", graph, parts=tmp_path / "parts")
    in_memory, _ = evaluate(EvaluateConfig(run_dir=tmp_path / "run"))
    before = set((tmp_path / "run").iterdir())
    sizes: list[int] = []
    monkeypatch.setattr(rooms, "free_memory", lambda: 0)
    allocate = rooms.allocate
    monkeypatch.setattr(
        rooms, "allocate", lambda path, size: (sizes.append(size), allocate(path, size))
    )
    assert evaluate(EvaluateConfig(run_dir=tmp_path / "run"))[0] == in_memory
    assert sizes[0] == graph.labels.nbytes
    assert len(sizes) > 3  # and three layers
    assert set((tmp_path / "run").iterdir()) == before


def interrupted(monkeypatch: pytest.MonkeyPatch, after: float) -> list[int]:
    """Notes rows as they are computed; Ctrl-C comes when there are more than so many."""
    told: list[int] = []

    def advance(count: int) -> None:
        told.append(count)
        if sum(told) > after:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "progress", lambda *_: contextlib.nullcontext(advance))
    return told


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["p.npz", "out"])
def test_finished_layers_are_not_computed_again(
    name: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"run_dir": trained / "run", "what": "logits", "file_format": "parquet"}
    write_predictions(PredictConfig(output=trained / f"whole-{name}", **where))
    monkeypatch.setattr(rooms, "free_memory", lambda: 0)
    config = PredictConfig(output=trained / name, **where)
    interrupted(monkeypatch, 2 * N)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(config)
    folder = rows_folder(config.output, is_file=config.is_file)
    assert {each.name for each in folder.iterdir()} == {"owner.txt", "layer-1.json", "layer-1.rows"}
    (folder / "layer-2.rows").write_bytes(b"what a kill leaves")

    told = interrupted(monkeypatch, np.inf)
    write_predictions(config)
    assert told[0] == 2 * N
    assert sum(told) == 3 * N
    assert left_in(trained) == {name, f"whole-{name}"}
    for path in (trained / f"whole-{name}").glob("part*"):  # of a directory
        assert path.read_bytes() == (trained / name / path.name).read_bytes()
    if name == "p.npz":
        np.testing.assert_array_equal(values(trained / "whole-p.npz"), values(trained / "p.npz"))
    else:
        names = {path.name for path in (trained / name).iterdir()}
        assert names == {path.name for path in (trained / f"whole-{name}").iterdir()}


@pytest.mark.usefixtures("small_pieces")
def test_an_evaluation_goes_on_after_a_kill(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvaluateConfig(run_dir=trained / "run")
    whole, _ = evaluate(config)
    monkeypatch.setattr(rooms, "free_memory", lambda: 0)
    interrupted(monkeypatch, 2 * N)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    folder = trained / "run" / "evaluation" / "rows"
    assert {each.name for each in folder.iterdir()} == {"owner.txt", "layer-1.json", "layer-1.rows"}
    told = interrupted(monkeypatch, np.inf)
    assert evaluate(config)[0] == whole
    assert told[0] == 2 * N
    assert not list((trained / "run" / "evaluation").iterdir())


def cut(folder: Path, trained: Path) -> None:
    with open(folder / "layer-1.rows", "r+b") as stream:
        stream.truncate(100)


def change_the_model(folder: Path, trained: Path) -> None:
    weights, description = read_tensors(trained / "run" / "model.safetensors")
    weights["layers.0.weight"] *= 2
    write_tensors(trained / "run" / "model.safetensors", weights, description)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("change", [cut, change_the_model])
def test_layers_of_something_else_are_not_taken_up(
    change: Callable[[Path, Path], None], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "free_memory", lambda: 0)
    config = PredictConfig(run_dir=trained / "run", output=trained / "p.npz")
    interrupted(monkeypatch, 2 * N)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(config)
    change(trained / ".p.npz.rows", trained)
    told = interrupted(monkeypatch, np.inf)
    write_predictions(config)
    assert sum(told) == 3 * N > told[0] + 2 * N
    monkeypatch.undo()
    write_predictions(PredictConfig(run_dir=trained / "run", output=trained / "again.npz"))
    np.testing.assert_array_equal(values(trained / "p.npz"), values(trained / "again.npz"))


@pytest.mark.parametrize("name", ["p.npz", "out"])
def test_two_predictions_do_not_share_an_output(name: str, trained: Path) -> None:
    config = PredictConfig(run_dir=trained / "run", output=trained / name)
    with BoundedRooms(rows_folder(config.output, is_file=config.is_file)) as other:
        other.own()
        if config.is_file:
            (trained / f".{name}.7.tmp").write_bytes(b"what the other writes")
        with pytest.raises(UserError, match="belongs to a job that is running"):
            write_predictions(config)
        if config.is_file:
            assert (trained / f".{name}.7.tmp").exists()
    write_predictions(config)
    assert left_in(trained) == {name}


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("name", ["p.npz", "out"])
def test_a_full_disk(name: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left on device; make room .* another --output"):
        write_predictions(PredictConfig(run_dir=trained / "run", output=trained / name))
    assert left_in(trained) == set()


@pytest.fixture
def unbound() -> Iterator[None]:
    """Later tests may use all memory again."""
    yield
    hold_to(None)


@pytest.mark.usefixtures("unbound")
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_too_small_a_limit_is_named_with_what_it_would_take(
    command: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [command, "--run-dir", f"{trained}/run"]
    if command == "predict":
        options += ["--output", f"{trained}/p.npz"]
    before = set((trained / "run").iterdir())
    with pytest.raises(SystemExit) as ended:
        main([*options, "--memory", "1M"])
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    doing = "predicting" if command == "predict" else "evaluating"
    assert f"{doing}, with all rows in files, takes" in said
    (least,) = (int(number) for number in re.findall(r"give --memory (\d+)M or more", said))
    assert left_in(trained) == set()
    main([*options, "--memory", f"{least + 50}M"])
    assert left_in(trained) == ({"p.npz"} if command == "predict" else set())
    assert set((trained / "run").iterdir()) == before


def test_a_graph_several_times_larger_than_memory(tmp_path: Path) -> None:
    """The kernel refuses this process more; without --memory it fails."""
    rows = np.random.default_rng(0).standard_normal((LARGE, 64), np.float32)
    for name, count in (("small", 100), ("large", LARGE)):
        graph = random_directed(count, 4 * count, features=rows[:count])
        partition(graph, 2, tmp_path / f"{name}-parts", method="random")
        model = GraphSAGE(64, 128, graph.num_classes, 3, 0.5, seed=3)
        config = TrainConfig(parts=tmp_path / f"{name}-parts")
        run_directory = RunDirectory.begin(tmp_path / name, config)
        run_directory.save_model(origin(config, model), best_of(model))
    needed = LARGE * (64 + 2 * 128) * 4
    assert needed > 3 * MEBIBYTES << 20
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.unit.programs.predict_within", str(MEBIBYTES)),
            *(str(tmp_path / name) for name in ("small", "large", "p.npz")),
        ],
        # What threads set aside counts: stacks of 8 MiB and arenas of 64 MiB, by default.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20)),
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "ARROW_DEFAULT_MEMORY_POOL": "system",
        },
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ended.returncode == 0, ended.stderr
    write_predictions(PredictConfig(run_dir=tmp_path / "large", output=tmp_path / "whole.npz"))
    np.testing.assert_array_equal(values(tmp_path / "p.npz"), values(tmp_path / "whole.npz"))


@pytest.mark.usefixtures("unbound")
def test_a_share_is_one_of_what_the_job_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of --memory, which is each process's own."""
    monkeypatch.setattr(limits, "_own_memory", lambda: 100)
    monkeypatch.setattr(limits, "_free_for_job", lambda: 1000)
    monkeypatch.setattr(limits, "_share", None)
    hold_to(300)
    limits.take_share(4)
    assert limits.free_memory() == 200
    limits.take_share(10)
    assert limits.free_memory() == 100
    assert limits.more_memory(150) == "use a machine with more"
