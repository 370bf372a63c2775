"""Tables with categories, standardised: trained on as by hand, and what a model says of others."""

import json
from pathlib import Path

import numpy as np
import pytest

from distsage.cli import main
from distsage.config import LocalConfig, PredictConfig
from distsage.data.datasets import load_graph
from distsage.errors import UserError
from distsage.prediction.run import write_predictions
from distsage.train import local
from distsage.train.run_directory import RunDirectory
from distsage.train.tensor_file import read_tensors, write_tensors
from tests.unit.data.test_encoding import by_hand, mixed, train_rows
from tests.unit.data_files import write

OPTIONS = {
    "num_epochs": 2,
    "eval_every": 2,
    "num_hidden": 8,
    "fan_out": "3,3",
    "batch_size": 10,
    "num_workers": 0,
    "device": "cpu",
}
READING = {"categorical": "city,job", "feature_norm": "standard", "fill": "mean"}


def values(run_dir: Path, output: Path, **where: object) -> np.ndarray:
    write_predictions(PredictConfig(run_dir=run_dir, output=output, **where))
    with np.load(output) as written:
        return written["values"]


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "epochs.jsonl").open()]


def expand(nodes, standardise_as=None):
    """The same table with all columns dense, standardised by the train nodes of another."""
    train = (nodes if standardise_as is None else standardise_as).pipe(
        lambda table: by_hand(table)[train_rows(table)].astype(np.float64)
    )
    dense = by_hand(nodes).astype(np.float64)
    dense[:, :2] = (dense[:, :2] - train[:, :2].mean(0)) / train[:, :2].std(0)
    expanded = nodes[["id", "label", "split"]].copy()
    for column in range(dense.shape[1]):
        expanded[f"x{column}"] = dense[:, column].astype(np.float32)
    return expanded


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a mixed table, beside the table."""
    path = tmp_path_factory.mktemp("trained")
    dataset = write(path / "mixed", *mixed())
    config = {"run_dir": path / "run", "input_layer": "multiply", **READING, **OPTIONS}
    local.train(LocalConfig(dataset=dataset, **config))
    return path


def test_training_on_a_mixed_table_is_training_on_it_expanded_by_hand(
    trained: Path, tmp_path: Path
) -> None:
    edges, nodes = mixed()
    other = write(tmp_path / "by_hand", edges, expand(nodes))
    local.train(LocalConfig(dataset=other, run_dir=tmp_path / "run", **OPTIONS))
    summary = json.loads((trained / "run" / "summary.json").read_text())
    assert summary["input_layer"] == "sparse"
    assert losses(trained / "run") == pytest.approx(losses(tmp_path / "run"), rel=1e-5)
    np.testing.assert_allclose(
        values(trained / "run", tmp_path / "a.npz"),
        values(tmp_path / "run", tmp_path / "b.npz"),
        rtol=1e-4,
    )


def test_predictions_for_another_table_with_a_category_that_is_new(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edges, nodes = mixed(1)
    nodes.loc[[3, 8, 9], "City"] = "Atlantis"
    other = write(tmp_path / "other", edges, nodes[nodes.columns[::-1]])
    found = values(trained / "run", tmp_path / "a.npz", dataset=other)
    said = [r.message for r in caplog.records if "city 3" in r.message]
    assert len(said) == 1
    # The same with the features by hand, through a model of the same weights without an encoding.
    description, weights = RunDirectory(trained / "run").load_model()
    expanded = write(tmp_path / "by_hand", edges, expand(nodes, standardise_as=mixed()[1]))
    local.train(LocalConfig(dataset=expanded, run_dir=tmp_path / "run", **OPTIONS))
    copy_weights(trained / "run", tmp_path / "run")
    np.testing.assert_allclose(found, values(tmp_path / "run", tmp_path / "b.npz"), rtol=1e-4)
    assert description["encoding"]["categories"][1] == ["job", ["-1", "9", "10"]]
    assert weights["layers.0.weight"].shape[1] == 2 * 9


def copy_weights(source: Path, target: Path) -> None:
    weights, _ = read_tensors(source / "model.safetensors")
    _, description = read_tensors(target / "model.safetensors")
    write_tensors(target / "model.safetensors", weights, description)


def test_parts_are_standardised_once(trained: Path, tmp_path: Path) -> None:
    dataset = str(trained / "mixed")
    reading = [f"--{name.replace('_', '-')}={value}" for name, value in READING.items()]
    common = ["partition", "--num-parts", "2", "--part-method", "random"]
    main([*common, "--dataset", dataset, "--output", str(tmp_path / "parts"), *reading])
    raw = [*common, "--dataset", dataset, "--output", str(tmp_path / "raw"), reading[0]]
    main(raw)
    write(tmp_path / "mixed", *mixed(2))
    new = [*common, "--dataset", str(tmp_path / "mixed"), "--output", str(tmp_path / "new")]
    main([*new, *reading])
    run = trained / "run"
    expected = values(run, tmp_path / "a.npz")
    again = values(run, tmp_path / "b.npz", parts=tmp_path / "parts")
    np.testing.assert_allclose(again, expected, rtol=1e-4)
    for parts, sentence in (
        ("raw", "the model takes standardised features, and theirs are not"),
        ("new", "theirs are standardised by other numbers than the model's"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            values(run, tmp_path / "c.npz", parts=tmp_path / parts)
        assert "name the parts that it was trained on" in str(caught.value)

    # A run on the parts keeps their numbers, and goes on with them only.
    config = {"run_dir": tmp_path / "run", **OPTIONS}
    local.train(LocalConfig(parts=tmp_path / "parts", **config))
    graph = load_graph(dataset, **READING)
    description, _ = RunDirectory(tmp_path / "run").load_model()
    assert graph.encoding is not None
    assert description["encoding"] == graph.encoding.to_json()
    with pytest.raises(UserError, match="is of other features .the model takes standardised"):
        local.train(LocalConfig(parts=tmp_path / "raw", resume="auto", **config))
