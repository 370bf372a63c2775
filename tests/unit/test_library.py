"""`import distsage`: what it offers, what it brings with it, and that the commands do the same."""

import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsage
from distsage.cli import main

GRAPH = "synthetic:2000:12"
OPTIONS = {"num_hidden": 16, "batch_size": 200, "num_epochs": 2, "num_workers": 0}


def test_the_import_brings_nothing_heavy() -> None:
    code = (
        "import sys, distsage; assert set(distsage.__all__) <= set(dir(distsage)); "
        "distsage.read_run, distsage.Parts, distsage.Graph; "
        "print([m for m in ('torch', 'dgl', 'numba', 'mpi4py', 'pandas') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")


@pytest.mark.parametrize("name", distsage.__all__)
def test_every_name_has_hints_and_a_docstring(name: str) -> None:
    value = getattr(distsage, name)
    assert value.__name__ == name
    assert len(inspect.getdoc(value) or "") > 40
    if inspect.isfunction(value):
        hints = typing.get_type_hints(value)
        assert set(inspect.signature(value).parameters) <= set(hints)
        assert "return" in hints


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = distsage.trian


def test_names_stay_after_their_rooms_are_imported() -> None:
    import distsage.partitioning.run
    import distsage.prediction.run

    assert callable(distsage.partition)
    assert callable(distsage.predict)


@pytest.fixture(scope="module")
def graph() -> distsage.Graph:
    return distsage.load_graph(GRAPH)


@pytest.fixture(scope="module")
def run(graph: distsage.Graph, tmp_path_factory: pytest.TempPathFactory) -> distsage.Run:
    return distsage.train_local(graph, tmp_path_factory.mktemp("runs") / "a", **OPTIONS)


def test_a_run(run: distsage.Run) -> None:
    assert [record["epoch"] for record in run.epochs] == [0, 1]
    assert run.summary["epochs"] == 2
    assert run.config["num_hidden"] == 16
    assert distsage.read_run(str(run.path)) == run


def test_predictions_are_those_that_were_scored(run: distsage.Run, graph: distsage.Graph) -> None:
    model = distsage.load_model(run.path)
    values = distsage.predict(model, graph)
    assert (values.dtype, values.shape) == (np.float32, (2000, graph.num_classes))
    right = values.argmax(1) == graph.labels
    # The best epoch's weights, whose validation score the summary holds.
    assert right[graph.val_mask].mean() == pytest.approx(run.summary["val"]["accuracy"])
    assert distsage.predict(model, graph, "embeddings").shape == (2000, 16)


def test_the_commands_do_the_same(run: distsage.Run, graph: distsage.Graph, tmp_path: Path) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    main(["local", "--dataset", GRAPH, "--run-dir", str(tmp_path / "b"), *words])
    mine = distsage.read_run(tmp_path / "b")
    assert [r["loss"] for r in mine.epochs] == [r["loss"] for r in run.epochs]
    main(["predict", "--run-dir", str(tmp_path / "b"), "--output", str(tmp_path / "p.npz")])
    written = np.load(tmp_path / "p.npz")["values"]
    assert np.array_equal(written, distsage.predict(distsage.load_model(run.path), graph))


def test_a_dataset_by_name_with_its_options(tmp_path: Path) -> None:
    options = {**OPTIONS, "num_epochs": 1, "split": "0.5/0.2/0.3", "fan_out": [-1]}
    run = distsage.train_local(GRAPH, tmp_path / "c", **options)
    assert (run.config["dataset"], run.config["fan_out"]) == (GRAPH, "-1")
    main(["predict", "--run-dir", str(run.path), "--output", str(tmp_path / "p.npz")])


def test_a_graph_in_memory_is_asked_for_in_memory(
    run: distsage.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--dataset", GRAPH]):
        with pytest.raises(SystemExit) as leaving:
            main(["predict", f"--run-dir={run.path}", f"--output={tmp_path / 'p.npz'}", *more])
        assert leaving.value.code == 2
        assert "trained on a graph in memory" in capsys.readouterr().err


def test_mistakes(graph: distsage.Graph, tmp_path: Path) -> None:
    with pytest.raises(distsage.UserError, match="is no run directory"):
        distsage.read_run(tmp_path)
    with pytest.raises(distsage.UserError, match="--dropout is 2"):
        distsage.train_local(graph, tmp_path / "d", dropout=2)
    with pytest.raises(TypeError, match="drop_out"):
        distsage.train_local(graph, tmp_path / "d", drop_out=0.2)
    with pytest.raises(distsage.UserError, match="a graph in memory takes no split"):
        distsage.train_local(graph, tmp_path / "d", split="0.5/0.2/0.3")
    assert not (tmp_path / "d").exists()


def test_damaged_and_unfinished_records(run: distsage.Run, tmp_path: Path) -> None:
    for name in ("config.yaml", "epochs.jsonl"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    with open(tmp_path / "epochs.jsonl", "a") as stream:
        stream.write('{"epoch": 2, "lo')
    unfinished = distsage.read_run(tmp_path)
    assert (len(unfinished.epochs), unfinished.summary) == (2, {})
    (tmp_path / "epochs.jsonl").write_text('{"epoch": 0, "loss": 1, "seconds": 1}\n{"epoch"\n')
    with pytest.raises(distsage.UserError, match=r"epochs\.jsonl is damaged in line 2"):
        distsage.read_run(tmp_path)
    for content, sentence in (("- a\n", "holds no options"), ("'a", "is damaged")):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(distsage.UserError, match=sentence):
            distsage.read_run(tmp_path)


def test_parts(graph: distsage.Graph, tmp_path: Path) -> None:
    report = distsage.partition(graph, 2, tmp_path / "parts", method="random")
    parts = distsage.Parts.open(tmp_path / "parts")
    assert parts.num_parts == 2
    assert parts.manifest.edge_cut == report.edge_cut


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "library.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["classes"].shape == (5000,)
    assert names["logits"].shape == (5000, names["graph"].num_classes)
    assert names["first_layer"].shape == (5000, 256)
