"""Graphs that a model was not trained on: never partitioned, grown, or with another task."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from distsage.cli import main
from distsage.config import EvaluateConfig, LocalConfig, PredictConfig, TrainConfig
from distsage.data.datasets import load_graph
from distsage.errors import UserError
from distsage.partitioning.parts import Parts
from distsage.prediction.distributed import _job_config
from distsage.prediction.run import load_model, predict, write_predictions
from distsage.prediction.scores import evaluate
from distsage.train import local
from distsage.train.run_directory import RunDirectory
from distsage.train.tensor_file import read_tensors, write_tensors
from tests.unit.data_files import write
from tests.unit.predict.test_predict import layer
from tests.unit.predict.test_tables import OPTIONS, values
from tests.unit.runs import best_of, origin

N = 90
READING = {"feature_norm": "standard", "split": "0.5/0.2/0.3"}


def town(num_nodes: int = N, num_classes: int = 3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables with names of nodes, two features of other sizes, and no masks."""
    rng = np.random.default_rng(2)
    names = np.array([f"n{v}" for v in rng.permutation(num_nodes)])
    ends = names[rng.integers(0, num_nodes, (2, 3 * num_nodes))]
    nodes = pd.DataFrame(
        {
            "id": names,
            "age": rng.normal(40, 12, num_nodes).astype(np.float32),
            "label": np.arange(num_nodes) % num_classes,
            "income": rng.normal(2e4, 1e3, num_nodes).astype(np.float32),
        }
    )
    return pd.DataFrame({"src": ends[0], "dst": ends[1]}), nodes


def several_labels(nodes: pd.DataFrame) -> pd.DataFrame:
    """The same nodes, with as many columns of labels as there were classes."""
    ones = {f"label_{c}": (nodes["label"] != c).astype(int) for c in range(3)}
    return nodes.drop(columns="label").assign(**ones)


def partition(dataset: str, output: Path, *options: str) -> Path:
    words = ["--dataset", dataset, "--output", str(output), "--part-method", "random"]
    main(["partition", *words, "--num-parts", "4", *options])
    return output


def trained_on_parts(path: Path, parts: Path, local_run: Path) -> Path:
    """A run as `distsage train` leaves it, with the weights of a local one."""
    manifest, model = Parts.open(parts).manifest, load_model(local_run).network
    config = TrainConfig(parts=parts, run_dir=path)
    names = ("undirected", "split", "split_index", "feature_norm")
    saved = origin(
        config,
        model,
        task=manifest.task,
        content={
            **{name: manifest.configuration.get(name) for name in names},
            "split_seed": manifest.configuration["seed"],
        },
        encoding=manifest.configuration["encoding"],
        rows_divided=manifest.rows_divided,
    )
    RunDirectory.begin(path, config).save_model(saved, best_of(model))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables, a local run on them, their parts, and a run on these."""
    path: Path = tmp_path_factory.mktemp("trained")
    dataset = write(path / "town", *town())
    config = LocalConfig(dataset=dataset, run_dir=path / "local", seed=5, **READING, **OPTIONS)
    local.train(config)
    reading = [f"--{name.replace('_', '-')}={value}" for name, value in READING.items()]
    partition(dataset, path / "parts", "--seed=5", *reading)
    trained_on_parts(path / "run", path / "parts", path / "local")
    return path


@pytest.mark.parametrize("run", ["local", "run"])
def test_a_dataset_that_was_never_partitioned_and_its_parts(
    run: str, trained: Path, tmp_path: Path
) -> None:
    where = {"parts": trained / "parts"}, {"dataset": str(trained / "town")}
    for name, given in zip("ab", where, strict=True):
        write_predictions(
            PredictConfig(run_dir=trained / run, output=tmp_path / f"{name}.npz", **given)
        )
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a["ids"].tolist() == b["ids"].tolist() == sorted(town()[1]["id"])
        np.testing.assert_allclose(a["values"], b["values"], rtol=1e-5, atol=1e-6)
    scores = [evaluate(EvaluateConfig(run_dir=trained / run, **given))[0] for given in where]
    assert scores[0] == scores[1] == evaluate(EvaluateConfig(run_dir=trained / "local"))[0]


def grown() -> tuple[pd.DataFrame, pd.DataFrame, set[str]]:
    """30 nodes more, without labels, rows in another order; and the old nodes whose two hops of
    neighbours are what they were."""
    rng = np.random.default_rng(3)
    edges, nodes = town()
    old = nodes["id"].to_numpy()
    new = np.array([f"new{v}" for v in range(30)])
    joined = np.concatenate((old, new))
    more = pd.DataFrame({"src": rng.choice(joined, 100), "dst": rng.choice(new, 100)})
    into_old = pd.DataFrame({"src": new[:3], "dst": old[:3]})
    fresh = pd.DataFrame({"id": new, "age": rng.normal(60, 3, 30), "income": rng.normal(0, 9, 30)})
    touched = set(old[:3])
    touched |= set(edges["dst"][edges["src"].isin(touched)])
    nodes = pd.concat((nodes, fresh)).sample(frac=1, random_state=1)
    nodes["label"] = nodes["label"].astype("Int64")
    return pd.concat((edges, more, into_old)), nodes, set(old) - touched


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_graph_that_has_grown(suffix: str, trained: Path, tmp_path: Path) -> None:
    """Every row is computed by hand; old ones are the same where their neighbours are."""
    edges, nodes, untouched = grown()
    dataset = write(tmp_path / "grown", edges, nodes, suffix)
    what = {"what": "logits"}
    output = tmp_path / "grown.npz"
    write_predictions(
        PredictConfig(run_dir=trained / "local", output=output, dataset=dataset, **what)
    )
    with np.load(output) as written:
        found = dict(zip(written["ids"].tolist(), written["values"], strict=True))
    assert len(found) == N + 30

    network = load_model(trained / "local").network
    encoding = load_graph(str(trained / "town"), **READING, seed=5).encoding
    assert encoding is not None
    graph = load_graph(dataset, split=READING["split"], encoding=encoding)
    hidden = np.maximum(layer(network, graph, 0, graph.features), 0)
    expected = layer(network, graph, 1, hidden)
    assert graph.original_ids is not None
    for name, row in zip(graph.original_ids.tolist(), expected, strict=True):
        np.testing.assert_allclose(found[name], row, rtol=1e-4, atol=1e-5)

    before = tmp_path / "before.npz"
    write_predictions(PredictConfig(run_dir=trained / "local", output=before, **what))
    with np.load(before) as written:
        was = dict(zip(written["ids"].tolist(), written["values"], strict=True))
    same = {name for name in was if np.allclose(was[name], found[name], rtol=1e-5, atol=1e-6)}
    assert same == untouched
    assert 0 < len(untouched) < N


def other_features(nodes: pd.DataFrame) -> pd.DataFrame:
    return nodes.rename(columns={"income": "rent"})


def four_classes(nodes: pd.DataFrame) -> pd.DataFrame:
    return nodes.assign(label=np.arange(len(nodes)) % 4)


@pytest.mark.parametrize("by", ["dataset", "parts"])
@pytest.mark.parametrize(
    ("change", "of_dataset", "of_parts"),
    [
        (
            several_labels,
            "was trained for one label per node but the graph town has several labels per node",
            None,
        ),
        (four_classes, "was trained on 3 classes but the graph town has 4", None),
        (other_features, "has no column 'income'", "their columns have other names"),
    ],
)
def test_another_task_is_refused(
    change, of_dataset, of_parts, by, trained, tmp_path, monkeypatch, capsys
):
    edges, nodes = town()
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "town", edges, change(nodes))
    where = ["--dataset", other]
    run = trained / "local"
    if by == "parts":
        # Not standardised, as the other's numbers would be refused first.
        write(tmp_path / "town", *town())
        config = {"run_dir": tmp_path / "plain", "split": READING["split"], **OPTIONS}
        local.train(LocalConfig(dataset=str(tmp_path / "town"), **config))
        run = tmp_path / "plain"
        parts = partition(other, tmp_path / "parts", "--split", READING["split"])
        where = ["--parts", str(parts)]
    sentence = (of_parts or of_dataset) if by == "parts" else of_dataset
    output = tmp_path / "out"
    commands = [["predict", "--output", str(output)], ["predict", "--output", f"{output}.csv"]]
    for command, *words in (*commands, ["evaluate"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([command, "--run-dir", str(run), *words, *where])
        said = capsys.readouterr().err
        assert leaving.value.code == 2
        assert sentence in said
        assert said.count("\n") == 1
    if by == "parts":  # rank 0 of a job says it, before anything is started
        with pytest.raises(UserError, match=sentence):
            _job_config(PredictConfig(run_dir=run, output=output, parts=parts))
    assert not list(tmp_path.glob("out*"))


def test_a_model_of_several_labels_and_a_graph_of_one(tmp_path: Path) -> None:
    edges, nodes = town()
    dataset = write(tmp_path / "several", edges, several_labels(nodes))
    reading = {"split": READING["split"]}
    local.train(LocalConfig(dataset=dataset, run_dir=tmp_path / "run", **reading, **OPTIONS))
    assert set(evaluate(EvaluateConfig(run_dir=tmp_path / "run"))[0]["val"]) == {"micro_f1"}
    one = write(tmp_path / "one", edges, nodes)
    sentence = "trained for several labels per node but the graph one has one label per node"
    with pytest.raises(UserError, match=sentence):
        values(tmp_path / "run", tmp_path / "p.npz", dataset=one)
    with pytest.raises(UserError, match=sentence):
        evaluate(EvaluateConfig(run_dir=tmp_path / "run", dataset=one))
    graph = load_graph(one, **reading)
    with pytest.raises(UserError, match=sentence):
        predict(load_model(tmp_path / "run"), graph)
    assert not (tmp_path / "p.npz").exists()
    bare = write(tmp_path / "bare", edges, nodes.drop(columns="label"))
    found = values(tmp_path / "run", tmp_path / "bare.npz", dataset=bare)
    np.testing.assert_array_equal(found, values(tmp_path / "run", tmp_path / "own.npz"))


def counted_words(path: Path, *, sparse: bool) -> str:
    """A dataset whose rows of features have other sums."""
    rng = np.random.default_rng(8)
    counts = rng.integers(0, 4, (N, 6)).astype(np.float32)
    ends, node = rng.integers(0, N, (2, 4 * N)), np.arange(N)
    arrays = {"num_nodes": N, "edge_src": ends[0], "edge_dst": ends[1], "labels": node % 3}
    arrays |= {"train_mask": node % 4 == 0, "val_mask": node % 4 == 1, "test_mask": node % 4 > 1}
    if sparse:
        matrix = scipy.sparse.csr_matrix(counts)
        arrays |= {"feat_indptr": matrix.indptr, "feat_indices": matrix.indices}
        arrays |= {"feat_shape": matrix.shape, "feat_data": matrix.data}
    else:
        arrays["features"] = counts
    np.savez(path, **arrays)
    return str(path)


def forget_the_norm(run_dir: Path) -> None:
    """As runs were that are older."""
    weights, description = read_tensors(run_dir / "model.safetensors")
    del description["rows_divided"]
    write_tensors(run_dir / "model.safetensors", weights, description)


@pytest.mark.parametrize(
    ("sparse", "same", "other", "sentence"),
    [
        (True, "row", "none", "divided by their sums (--feature-norm), and theirs were not"),
        (
            False,
            "none",
            "row",
            "their rows were divided by their sums (--feature-norm), and the model",
        ),
    ],
    ids=["sparse", "dense"],
)
def test_parts_of_another_feature_norm_are_refused(
    sparse: bool,
    same: str,
    other: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`auto` is either, by how features are stored."""
    dataset = counted_words(tmp_path / "words.npz", sparse=sparse)
    for norm in ("auto", same, other):
        partition(dataset, tmp_path / norm, "--feature-norm", norm)
    run = tmp_path / "run"
    local.train(LocalConfig(parts=tmp_path / "auto", run_dir=run, **OPTIONS))
    as_trained = values(run, tmp_path / "auto.npz")
    np.testing.assert_array_equal(
        values(run, tmp_path / "same.npz", parts=tmp_path / same), as_trained
    )
    output, parts = tmp_path / "out", tmp_path / other
    for command, *words in (["predict", "--output", str(output)], ["evaluate"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([command, "--run-dir", str(run), "--parts", str(parts), *words])
        said = capsys.readouterr().err
        assert leaving.value.code == 2
        assert sentence in said
        assert said.count("\n") == 1
    assert not output.exists()
    with pytest.raises(UserError, match=r"divided by their sums \(--feature-norm\)"):
        _job_config(PredictConfig(run_dir=run, output=output, parts=parts))
    forget_the_norm(run)
    assert (values(run, tmp_path / "other.npz", parts=parts) != as_trained).any()


def test_a_dataset_that_is_stored_otherwise_becomes_the_same_features(tmp_path: Path) -> None:
    dataset = counted_words(tmp_path / "words.npz", sparse=True)
    local.train(LocalConfig(dataset=dataset, run_dir=tmp_path / "run", **OPTIONS))
    dense = counted_words(tmp_path / "dense.npz", sparse=False)
    expected = values(tmp_path / "run", tmp_path / "a.npz")
    found = values(tmp_path / "run", tmp_path / "b.npz", dataset=dense)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    assert leaving.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence


@pytest.mark.parametrize("labels", ["no column", "empty"])
def test_tables_without_labels(
    labels: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run whose masks were drawn."""
    edges, nodes = town()
    nodes = nodes.drop(columns="label") if labels == "no column" else nodes.assign(label=None)
    bare = write(tmp_path / "town", edges, nodes)
    run = trained / "local"
    expected = values(run, tmp_path / "a.npz")
    np.testing.assert_array_equal(values(run, tmp_path / "b.npz", dataset=bare), expected)
    where = ["--run-dir", run, "--dataset", bare]
    output = tmp_path / "out"
    sentence = refusal(capsys, "predict", *where, "--output", output, "--nodes", "val")
    assert "0 labelled nodes are too few for a split of 0.5/0.2/0.3" in sentence
    sentence = refusal(capsys, "evaluate", *where)
    assert ("has no column 'label'" if labels == "no column" else "no node is labelled") in sentence
    assert not output.exists()


def test_arrays_without_labels_and_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one file, or in a directory with a file for each."""
    dataset, run = counted_words(tmp_path / "words.npz", sparse=False), tmp_path / "run"
    local.train(LocalConfig(dataset=dataset, run_dir=run, **OPTIONS))
    expected = values(run, tmp_path / "all.npz")
    with np.load(dataset) as loaded:
        arrays = {key: loaded[key] for key in loaded.files}
    test = arrays["test_mask"]
    for key in ("labels", "train_mask", "val_mask"):
        del arrays[key]
    np.savez(tmp_path / "partly.npz", **arrays)
    partly = {"dataset": str(tmp_path / "partly.npz")}
    found = values(run, tmp_path / "test.npz", nodes="test", **partly)
    np.testing.assert_array_equal(found, expected[test])
    del arrays["test_mask"]
    (tmp_path / "bare").mkdir()
    for key, array in arrays.items():
        np.save(tmp_path / "bare" / f"{key}.npy", array)
    bare = {"dataset": str(tmp_path / "bare")}
    np.testing.assert_array_equal(values(run, tmp_path / "bare.npz", **bare), expected)
    (tmp_path / "ids.txt").write_text("7\n3\n")
    found = values(run, tmp_path / "two.npz", nodes=str(tmp_path / "ids.txt"), **bare)
    np.testing.assert_array_equal(found, expected[[3, 7]])

    where = ["--run-dir", run, "--dataset", tmp_path / "bare"]
    output = tmp_path / "out"
    for path in (output, output.with_suffix(".csv")):
        sentence = refusal(capsys, "predict", *where, "--output", path, "--nodes", "test")
        assert "the graph bare has no test nodes; predict for all of its nodes, or" in sentence
    assert "has no labels; its keys are" in refusal(capsys, "evaluate", *where)
    assert not list(tmp_path.glob("*out*"))
    graph = load_graph(str(tmp_path / "bare"), only_masks=())
    np.testing.assert_array_equal(predict(load_model(run), graph), expected)
