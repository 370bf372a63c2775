"""Predictions by original id: against direct inference, the run's own scores, and errors."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from distsage.cli import main
from distsage.config import EvaluateConfig, LocalConfig, PredictConfig, TrainConfig
from distsage.data.datasets import load_graph
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.features.matrix import feature_rows
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import infer
from distsage.partitioning.run import partition
from distsage.prediction.run import load_model, predict, write_predictions
from distsage.prediction.scores import evaluate
from distsage.train.local import train, without_edges
from distsage.train.run_directory import RunDirectory
from distsage.train.tensor_file import read_tensors, write_tensors
from tests.unit.partition_graphs import random_directed
from tests.unit.runs import best_of, origin

N = 60


def write_run(path: Path, graph: Graph, config: object, **model_changes: int) -> GraphSAGE:
    """A run directory as `distsage train` leaves it, with random weights."""
    arguments = {"in_features": graph.num_features, "num_classes": graph.num_classes}
    model = GraphSAGE(**arguments | model_changes, hidden=8, num_layers=2, dropout=0.5, seed=3)
    run = RunDirectory.begin(path, config)
    run.save_model(origin(config, model, task=graph.task), best_of(model))
    return model


def read(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Ids, values and column names of a written file."""
    if path.suffix == ".npz":
        loaded = np.load(path, allow_pickle=False)
        assert loaded.files == ["ids", "values"]
        return loaded["ids"], loaded["values"], []
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        columns = [table[name].to_numpy() for name in table.column_names]
        assert all(column.dtype == np.float32 for column in columns[1:])
        return columns[0], np.stack(columns[1:], 1), table.column_names
    with open(path, newline="") as stream:
        names, *rows = csv.reader(stream)
    ids = np.array([row[0] for row in rows])
    return ids, np.array([row[1:] for row in rows], np.float32), names


def layer(model: GraphSAGE, graph: Graph, index: int, h: np.ndarray) -> np.ndarray:
    """`W [h_v | mean of h_u] + b`, densely."""
    mean = np.zeros_like(h)
    for v in range(graph.num_nodes):
        sources = graph.topology.indices[graph.topology.indptr[v] : graph.topology.indptr[v + 1]]
        if len(sources):
            mean[v] = h[sources].mean(0)
    weight, bias = model.layers[index].weight, model.layers[index].bias
    return np.concatenate((h, mean), 1) @ weight.detach().numpy().T + bias.detach().numpy()


ID_KINDS = {
    "integers": np.random.default_rng(5).permutation(N) * 10 - 7,
    "strings": np.array([f'gene "{v * 7 % N}", human' for v in range(N)]),
    "none": None,
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
@pytest.mark.parametrize("kind", ID_KINDS)
def test_parts_give_back_every_node_under_its_original_id(kind, suffix, tmp_path):
    ids = ID_KINDS[kind]
    graph = random_directed(N, 400, original_ids=ids)
    parts = tmp_path / "parts"
    partition(graph, 3, parts, method="random")
    model = write_run(tmp_path / "run", graph, TrainConfig(parts=parts))
    hidden = np.maximum(layer(model, graph, 0, graph.features), 0)
    logits = layer(model, graph, 1, hidden)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    expected = {
        "probabilities": exponentials / exponentials.sum(1, keepdims=True),
        "embeddings": hidden,
    }
    names = np.arange(N) if ids is None else ids
    for what, values in expected.items():
        output = tmp_path / f"{what}{suffix}"
        write_predictions(PredictConfig(run_dir=tmp_path / "run", output=output, what=what))
        found_ids, found, columns = read(output)
        order = np.argsort(names)
        assert (
            found_ids.tolist()
            == (names[order].astype(str) if suffix == ".csv" else names[order]).tolist()
        )
        np.testing.assert_allclose(found, values[order], rtol=1e-4, atol=1e-5)
        if columns:
            assert columns == ["id", *(f"{what[0]}{j}" for j in range(values.shape[1]))]
    assert not list(tmp_path.glob(".*"))  # no temporary file stays


def test_several_labels_per_node_have_probabilities_of_their_own(tmp_path):
    labels = np.random.default_rng(1).integers(0, 2, (N, 5)).astype(np.float32)
    graph = random_directed(N, 400, labels=labels, num_classes=5)
    partition(graph, 2, tmp_path / "parts", method="random")
    config = TrainConfig(conf_file=tmp_path / "parts" / "small.json")
    model = write_run(tmp_path / "run", graph, config)
    write_predictions(PredictConfig(run_dir=tmp_path / "run", output=tmp_path / "p.npz"))
    logits = infer(model, graph.topology, feature_rows(graph.features)).double().numpy()
    expected = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(read(tmp_path / "p.npz")[1], expected, atol=1e-5)


@pytest.mark.parametrize("ignore_edges", [False, True])
def test_a_local_runs_predictions_have_its_test_accuracy(ignore_edges, tmp_path):
    config = LocalConfig(
        run_dir=tmp_path / "run",
        dataset="synthetic:1500:8",
        num_epochs=3,
        eval_every=1,
        num_hidden=16,
        fan_out="5,5",
        batch_size=50,
        num_workers=0,
        split="0.5/0.2/0.2",
        seed=4,
        ignore_edges=ignore_edges,
    )
    train(config)
    write_predictions(PredictConfig(run_dir=config.run_dir, output=tmp_path / "p.npz"))
    ids, probabilities, _ = read(tmp_path / "p.npz")
    graph = load_graph("synthetic:1500:8", split="0.5/0.2/0.2", seed=4)
    assert ids.tolist() == list(range(1500))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    right = probabilities.argmax(1) == graph.labels
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert right[graph.test_mask].mean() == pytest.approx(summary["test"]["accuracy"], abs=1e-9)
    scores, _ = evaluate(EvaluateConfig(run_dir=config.run_dir))
    assert scores == {mask: summary[mask] for mask in ("train", "val", "test")}
    (tmp_path / "some.txt").write_text("\n".join(map(str, np.flatnonzero(graph.val_mask))))
    some = EvaluateConfig(run_dir=config.run_dir, nodes=str(tmp_path / "some.txt"))
    assert list(evaluate(some)[0].values()) == [summary["val"]]

    description, weights = RunDirectory(config.run_dir).load_model()
    model = GraphSAGE(**description["model"])
    model.load_state_dict(weights)
    topology = without_edges(graph.topology) if ignore_edges else graph.topology
    logits = infer(model, topology, feature_rows(graph.features))
    np.testing.assert_array_equal(probabilities, torch.softmax(logits, 1).numpy())


def test_parts_and_datasets_that_have_moved(tmp_path):
    graph = random_directed(N, 400)
    partition(graph, 2, tmp_path / "parts", method="random")
    write_run(tmp_path / "run", graph, TrainConfig(parts=tmp_path / "parts"))
    write_predictions(PredictConfig(run_dir=tmp_path / "run", output=tmp_path / "before.csv"))
    shutil.move(tmp_path / "parts", tmp_path / "moved")
    with pytest.raises(UserError, match="name where they lie now with --parts"):
        write_predictions(PredictConfig(run_dir=tmp_path / "run", output=tmp_path / "after.csv"))
    moved = {"parts": tmp_path / "moved"}
    write_predictions(
        PredictConfig(run_dir=tmp_path / "run", output=tmp_path / "after.csv", **moved)
    )
    assert (tmp_path / "before.csv").read_bytes() == (tmp_path / "after.csv").read_bytes()
    with pytest.raises(UserError, match="not on a dataset"):
        write_predictions(
            PredictConfig(run_dir=tmp_path / "run", output=tmp_path / "x.csv", dataset="cora")
        )

    source = np.stack([np.repeat(np.arange(N), 2), (np.arange(2 * N) * 7) % N])
    for name in ("old.npz", "new.npz"):
        np.savez(
            tmp_path / name,
            num_nodes=N,
            edge_src=source[0],
            edge_dst=source[1],
            features=graph.features,
            labels=graph.labels,
            train_mask=graph.train_mask,
            val_mask=graph.val_mask,
            test_mask=graph.test_mask,
        )
    config = LocalConfig(dataset=str(tmp_path / "old.npz"), dataset_root=tmp_path)
    write_run(tmp_path / "local", graph, config)
    write_predictions(PredictConfig(run_dir=tmp_path / "local", output=tmp_path / "old.csv"))
    (tmp_path / "old.npz").unlink()
    with pytest.raises(UserError, match="there is no file or directory"):
        write_predictions(PredictConfig(run_dir=tmp_path / "local", output=tmp_path / "new.csv"))
    new = {"dataset": str(tmp_path / "new.npz")}
    write_predictions(PredictConfig(run_dir=tmp_path / "local", output=tmp_path / "new.csv", **new))
    assert (tmp_path / "old.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()


@pytest.fixture
def trained(tmp_path):
    graph = random_directed(N, 400)
    partition(graph, 2, tmp_path / "parts", method="random")
    write_run(tmp_path / "run", graph, TrainConfig(parts=tmp_path / "parts"))
    return tmp_path


@pytest.mark.parametrize("changes", [{"in_features": 3}, {"num_classes": 7}])
def test_a_model_of_another_graph_is_refused(trained, changes):
    graph = random_directed(N, 400)
    write_run(trained / "other", graph, TrainConfig(parts=trained / "parts"), **changes)
    what = "features" if "in_features" in changes else "classes"
    number = next(iter(changes.values()))
    with pytest.raises(UserError, match=f"was trained on {number} {what} but the graph small has"):
        write_predictions(PredictConfig(run_dir=trained / "other", output=trained / "p.csv"))
    assert not (trained / "p.csv").exists()


def damage_weights(run: Path) -> None:
    (run / "model.safetensors").write_bytes(b"not weights")


def change_the_description(run: Path) -> None:
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content.replace(b"multiclass", b"multilabel"))


def exchange_the_model(run: Path) -> None:
    """A whole file, but of weights that are not those of the model that it describes."""
    weights, description = read_tensors(run / "model.safetensors")
    description["model"]["hidden"] = 9
    write_tensors(run / "model.safetensors", weights, description)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (shutil.rmtree, "holds no trained model .cannot read model.safetensors"),
        (lambda run: (run / "model.safetensors").unlink(), "cannot read model.safetensors"),
        (damage_weights, "is damaged"),
        (change_the_description, "is damaged: its checksum is not that of its content"),
        (exchange_the_model, "is damaged: its weights are not those that it describes"),
    ],
)
def test_runs_that_cannot_be_used(trained, damage, sentence):
    damage(trained / "run")
    with pytest.raises(UserError, match=sentence):
        write_predictions(PredictConfig(run_dir=trained / "run", output=trained / "p.csv"))


def test_outputs_that_cannot_be_written(trained, capsys):
    (trained / "taken.csv").mkdir()
    for output, sentence in (
        ("taken.csv", "is a directory"),
        ("nowhere/p.csv", "there is no directory"),
        ("p.txt", "ends in none of .csv, .parquet and .npz"),
    ):
        with pytest.raises(SystemExit) as leaving:
            main(["predict", "--run-dir", f"{trained}/run", "--output", str(trained / output)])
        assert leaving.value.code == 2
        printed = capsys.readouterr().err
        assert sentence in printed
        assert len(printed.splitlines()) == 1


def test_a_full_disk_leaves_the_older_file(trained, monkeypatch):
    output = trained / "p.parquet"
    write_predictions(PredictConfig(run_dir=trained / "run", output=output))
    before = output.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_batch", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_predictions(PredictConfig(run_dir=trained / "run", output=output, what="embeddings"))
    assert output.read_bytes() == before
    assert not list(trained.glob(".*"))


def test_one_graph_only():
    with pytest.raises(UserError, match="give --parts or --dataset, not both"):
        PredictConfig(run_dir=Path("r"), output=Path("p.csv"), parts=Path("parts"), dataset="cora")


def test_one_process_writes_directories_too(trained):
    """By the parts, or in one piece; for some nodes, and of every layer."""
    run, graph = trained / "run", random_directed(N, 400)
    what = {"what": "logits", "nodes": "val"}
    write_predictions(PredictConfig(run_dir=run, output=trained / "v.npz", **what))
    write_predictions(PredictConfig(run_dir=run, output=trained / "v", **what))
    ids, values, _ = read(trained / "v.npz")
    assert ids.tolist() == np.flatnonzero(graph.val_mask).tolist()
    table = pyarrow.parquet.read_table(trained / "v").sort_by("id")
    assert table["id"].to_pylist() == ids.tolist()
    assert table["l1"].to_pylist() == values[:, 1].tolist()
    names = sorted(path.name for path in (trained / "v").iterdir())
    assert names == ["_manifest.json", "part-00000.parquet", "part-00001.parquet"]
    model = load_model(run)
    np.testing.assert_allclose(predict(model, graph, "logits")[ids], values, rtol=1e-5)
    hidden = np.maximum(layer(model.network, graph, 0, graph.features), 0)
    found = predict(model, graph, "embeddings", 1)
    np.testing.assert_allclose(found, hidden, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="has no hidden layer 2; give --layer from 1 to 1"):
        predict(model, graph, "embeddings", 2)


def test_predictions_of_another_model_are_not_mixed_with_the_first_ones(trained, capsys):
    config = PredictConfig(run_dir=trained / "run", output=trained / "out")
    write_predictions(config)
    write_predictions(config)
    assert "is whole already" in capsys.readouterr().out
    weights, description = read_tensors(trained / "run" / "model.safetensors")
    description["epoch"] += 1
    write_tensors(trained / "run" / "model.safetensors", weights, description)
    with pytest.raises(UserError, match="holds other predictions, which differ in model"):
        write_predictions(config)


def test_parts_of_a_graph_that_has_grown(trained):
    """GraphSAGE answers for nodes that it has never seen, from features and neighbours."""
    grown = random_directed(2 * N, 900)
    partition(grown, 3, trained / "grown", method="random")
    output = trained / "grown.npz"
    write_predictions(
        PredictConfig(
            run_dir=trained / "run", output=output, what="logits", parts=trained / "grown"
        )
    )
    ids, values, _ = read(output)
    assert len(ids) == 2 * N
    np.testing.assert_allclose(
        values, predict(load_model(trained / "run"), grown, "logits"), rtol=1e-4, atol=1e-4
    )


def test_predictions_have_the_type_of_features_that_the_run_was_evaluated_with(tmp_path):
    graph = random_directed(N, 400)
    graph = dataclasses.replace(graph, features=graph.features + np.float32(1 / 3))
    partition(graph, 2, tmp_path / "parts", method="random")
    config = TrainConfig(parts=tmp_path / "parts", feat_dtype="bfloat16")
    write_run(tmp_path / "run", graph, config)
    model = load_model(tmp_path / "run")
    rounded = torch.from_numpy(graph.features).bfloat16().float().numpy()
    same = dataclasses.replace(model, description={**model.description, "config": {}})
    expected = predict(same, dataclasses.replace(graph, features=rounded), "logits")
    np.testing.assert_allclose(predict(model, graph, "logits"), expected, rtol=1e-4)
