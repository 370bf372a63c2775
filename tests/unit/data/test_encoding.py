"""Category columns, missing values and standardisation, against the same done densely by hand."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from distsage.data import encoding as encodings
from distsage.data.datasets import load_graph
from distsage.data.encoding import Encoding, disagreement
from distsage.errors import UserError
from tests.unit.data_files import small_arrays, write

N = 40


def mixed(seed: int = 0, num_nodes: int = N) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two dense columns and two category columns, in turns."""
    rng = np.random.default_rng(seed)
    node = np.arange(num_nodes)
    nodes = pd.DataFrame(
        {
            "id": node,
            "City": rng.choice(["Köln", "NA", "a b", "Rome"], num_nodes),
            "age": rng.normal(40, 12, num_nodes).astype(np.float32),
            "label": node % 3,
            "job": rng.choice([10, 9, -1], num_nodes),
            "income": np.where(node % 5 == 0, 0, rng.normal(2e4, 1e3, num_nodes)),
            "split": np.array(["train", "val", "test", "train"])[node % 4],
        }
    )
    edges = pd.DataFrame({"src": node, "dst": (node * 7 + 1) % num_nodes})
    return edges, nodes


def by_hand(nodes: pd.DataFrame) -> np.ndarray:
    """As pandas expands them: dense columns first."""
    dense = nodes[["age", "income"]].to_numpy(np.float32)
    city = [(nodes["City"] == value) for value in ("Köln", "NA", "Rome", "a b")]
    city = [city[position] for position in np.argsort(["Köln", "NA", "Rome", "a b"])]
    job = [(nodes["job"] == value) for value in (-1, 9, 10)]
    return np.column_stack([dense, *city, *job]).astype(np.float32)


def train_rows(nodes: pd.DataFrame) -> np.ndarray:
    return (nodes["split"] == "train").to_numpy()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_category_columns_become_sparse_one_hot_columns(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "_ROWS", 7)
    edges, nodes = mixed()
    graph = load_graph(write(tmp_path / "g", edges, nodes, suffix), categorical="city, JOB")
    features = graph.features
    assert scipy.sparse.issparse(features)
    assert (features.dtype, features.format) == (np.float32, "csr")
    assert features.has_canonical_format
    assert features.nnz == np.count_nonzero(by_hand(nodes))
    np.testing.assert_array_equal(features.toarray(), by_hand(nodes))
    assert graph.encoding == Encoding(
        2,
        ("age", "income"),
        {"city": tuple(sorted(["Köln", "NA", "Rome", "a b"])), "job": ("-1", "9", "10")},
    )


def test_parquet_says_by_its_types_what_is_a_category(tmp_path: Path) -> None:
    edges, nodes = mixed()
    nodes["City"] = nodes["City"].astype("category")
    graph = load_graph(write(tmp_path / "g", edges, nodes, ".parquet"), categorical="job")
    nodes["City"] = nodes["City"].astype(str)
    np.testing.assert_array_equal(graph.features.toarray(), by_hand(nodes))


def test_categories_alone_and_integers_beside_empty_cells(tmp_path: Path) -> None:
    edges, nodes = mixed()
    nodes = nodes.drop(columns=["age", "income", "City"])
    expected = by_hand(mixed()[1])[:, 6:]
    nodes["job"] = nodes["job"].astype("float64").where(nodes.index != 3)  # as pandas has it
    expected[3] = 0
    for fill in ("zero", "mean"):
        directory = write(tmp_path / "g", edges, nodes, ".parquet")
        graph = load_graph(directory, categorical="job", fill=fill)
        np.testing.assert_array_equal(graph.features.toarray(), expected)
    with pytest.raises(UserError, match="the column 'job' has no value in row 4 of the node table"):
        load_graph(directory, categorical="job")
    nodes.loc[5, "job"] = 1.5
    with pytest.raises(UserError, match="'job' holds numbers that are no integers"):
        load_graph(write(tmp_path / "h", edges, nodes, ".parquet"), categorical="job", fill="zero")


def test_another_table_is_encoded_as_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = write(tmp_path / "first", *mixed(0))
    graph = load_graph(first, categorical="city,job", feature_norm="standard", fill="mean")
    edges, nodes = mixed(1, 60)
    nodes["unheard of"] = 1.0
    nodes = nodes[nodes.columns[::-1]]  # columns are found by name
    nodes["job"] = nodes["job"].astype(object)
    nodes.loc[[3, 4], "City"] = "Atlantis"
    nodes.loc[7, "job"] = 11
    nodes.loc[8, "job"] = None
    nodes.loc[9, "age"] = np.nan
    caplog.clear()
    again = load_graph(write(tmp_path / "other", edges, nodes), encoding=graph.encoding)
    train = mixed(0)[1][train_rows(mixed(0)[1])]
    expected = by_hand(nodes).astype(np.float64)
    expected[9, 0] = train["age"].mean()
    for column, name in enumerate(("age", "income")):
        values = train[name].to_numpy(np.float32).astype(np.float64)
        expected[:, column] = (expected[:, column] - values.mean()) / values.std()
    np.testing.assert_allclose(again.features.toarray(), expected, rtol=1e-5, atol=1e-6)
    assert not again.features[[3, 4], 2:6].count_nonzero()
    (said,) = [r.message for r in caplog.records if "not trained on" in r.message]
    assert "trained on: 3 (city 2, job 1); their one-hot columns are all zero" in said
    assert again.encoding == graph.encoding
    with pytest.raises(UserError, match="no column 'age'"):
        load_graph(
            write(tmp_path / "less", edges, nodes.drop(columns="age")), encoding=graph.encoding
        )


def test_missing_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_ROWS", 7)
    edges, nodes = mixed()
    nodes = nodes.drop(columns=["City", "job"])
    nodes.loc[[9, 12, 30], "income"] = np.nan
    nodes.loc[[12, 13], "age"] = np.nan
    directory = write(tmp_path / "g", edges, nodes)
    with pytest.raises(UserError) as caught:
        load_graph(directory)
    assert (
        "the column 'income' has no value in row 10 of the node table (rows count from 1, without "
        "the header; cells without a value: 5); write them, or read the table with --fill mean"
    ) in str(caught.value)
    values = nodes[["age", "income"]]
    zeros = load_graph(directory, fill="zero")
    np.testing.assert_array_equal(zeros.features, values.fillna(0).to_numpy(np.float32))
    means = load_graph(directory, fill="mean")
    expected = values.fillna(values[train_rows(nodes)].astype(np.float32).mean())
    np.testing.assert_allclose(means.features, expected, rtol=1e-6)
    nodes.loc[train_rows(nodes), "age"] = np.nan
    with pytest.raises(UserError, match="nothing to fill the column 'age' with: no train node"):
        load_graph(write(tmp_path / "h", edges, nodes), fill="mean")


def test_standardised_by_the_train_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_ROWS", 7)
    rng = np.random.default_rng(0)
    arrays = small_arrays()
    features = rng.normal(1e4, 1, (11, 5)).astype(np.float32)
    features[:, 3] = 0.1
    features[:4, 4] = 0.1  # of the train nodes only
    np.savez(tmp_path / "g.npz", **arrays | {"features": features})
    graph = load_graph(str(tmp_path / "g.npz"), feature_norm="standard")
    train = features[arrays["train_mask"]].astype(np.float64)
    expected = (features - train.mean(0))[:, :3] / train.std(0)[:3]
    np.testing.assert_allclose(graph.features[:, :3], expected, rtol=1e-6)
    assert not graph.features[:, 3:].any()
    assert graph.encoding is not None
    np.testing.assert_allclose(graph.encoding.mean, train.mean(0), rtol=1e-12)
    assert graph.encoding.names is None
    # Another graph is standardised by the same numbers.
    np.savez(tmp_path / "h.npz", **arrays | {"features": features[::-1]})
    again = load_graph(str(tmp_path / "h.npz"), encoding=graph.encoding)
    np.testing.assert_array_equal(again.features, graph.features[::-1])
    np.savez(tmp_path / "h.npz", **arrays | {"features": features[:, :4]})
    with pytest.raises(UserError, match="has 4 dense feature columns, but the model was trained"):
        load_graph(str(tmp_path / "h.npz"), encoding=graph.encoding)
    features[9, 2] = 3e38
    features[:4, 2] = [0, 0, 0, 1e-30]
    np.savez(tmp_path / "h.npz", **arrays | {"features": features})
    with pytest.raises(UserError, match="in row 10 of the column 2 too large"):
        load_graph(str(tmp_path / "h.npz"), feature_norm="standard")


def test_what_is_constant_in_many_rows_becomes_zero(tmp_path: Path) -> None:
    edges, nodes = mixed(num_nodes=30_001)
    nodes = nodes.drop(columns=["City", "job"]).assign(age=0.1, income=np.float32(1e30))
    graph = load_graph(write(tmp_path / "g", edges, nodes, ".parquet"), feature_norm="standard")
    assert not graph.features.any()
    assert graph.encoding is not None
    assert graph.encoding.deviation == (0, 0)


def test_what_is_not_standardised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edges, nodes = mixed()
    graph = load_graph(
        write(tmp_path / "g", edges, nodes), categorical="city,job", feature_norm="standard"
    )
    np.testing.assert_array_equal(graph.features.toarray()[:, 2:], by_hand(nodes)[:, 2:])
    assert "for the 2 dense columns; category columns stay zeros and ones" in caplog.text
    matrix = scipy.sparse.eye_array(11, 4, format="csr") * 3
    arrays = small_arrays()
    del arrays["features"]
    arrays |= {
        "feat_indptr": matrix.indptr,
        "feat_indices": matrix.indices,
        "feat_data": matrix.data,
        "feat_shape": np.array(matrix.shape),
    }
    np.savez(tmp_path / "s.npz", **arrays)
    graph = load_graph(str(tmp_path / "s.npz"), feature_norm="standard")
    np.testing.assert_array_equal(graph.features.toarray(), matrix.toarray())
    assert "leaves features that are stored sparse as they are" in caplog.text
    assert graph.encoding is None


def empty_job(nodes: pd.DataFrame) -> None:
    nodes["job"] = ""


MISTAKES: dict[str, tuple[Any, dict[str, str], str]] = {
    "as many values as rows": (
        lambda nodes: nodes.insert(1, "name", [f"n{v}" for v in range(N)]),
        {"categorical": "city,job,name"},
        "'name' has 40 values in 40 rows and would become 40 one-hot columns",
    ),
    "more values than half the rows": (
        lambda nodes: nodes.insert(1, "name", [v % 21 for v in range(N)]),
        {"categorical": "city,name"},
        "'name' has 21 values in 40 rows and would become 21 one-hot columns; it may have half",
    ),
    "no such column": (lambda nodes: None, {"categorical": "city,town"}, "no column 'town'"),
    "no column at all": (lambda nodes: None, {"categorical": "city,"}, "no column ''"),
    "the label": (lambda nodes: None, {"categorical": "label"}, "--categorical label: this column"),
    "no value at all": (empty_job, {"categorical": "city,job"}, "'job' has no value in any row"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_category_columns(mistake: str, tmp_path: Path) -> None:
    change, options, sentence = MISTAKES[mistake]
    edges, nodes = mixed()
    change(nodes)
    with pytest.raises(UserError) as caught:
        load_graph(write(tmp_path / "g", edges, nodes), fill="zero", **options)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_as_many_values_as_rows_are_taken(tmp_path: Path) -> None:
    edges, nodes = mixed()
    nodes["name"] = np.arange(N) % 20
    graph = load_graph(write(tmp_path / "g", edges, nodes), categorical="city,name,job")
    assert graph.num_features == 2 + 4 + 3 + 20


def test_no_category_is_ever_expanded(tmp_path: Path) -> None:
    rows, width = 8000, 4000
    edges, nodes = mixed(num_nodes=rows)
    nodes["name"] = np.arange(rows) % width
    directory = write(tmp_path / "g", edges, nodes, ".parquet")
    tracemalloc.start()
    try:
        graph = load_graph(directory, categorical="name,city", feature_norm="standard")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert graph.num_features == 3 + width + 4
    assert peak < rows * width / 8  # of the bytes of a dense matrix a 32nd


def test_values_that_take_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_MOST_VALUE_BYTES", 100)
    directory = write(tmp_path / "g", *mixed())
    with pytest.raises(UserError, match="up to 'job' take .* and a model keeps"):
        load_graph(directory, categorical="city,job")


@pytest.mark.parametrize("option", ["categorical", "fill"])
def test_options_of_tables_are_for_tables(option: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", **small_arrays())
    with pytest.raises(UserError, match=f"--{option} is for the columns of a directory of tables"):
        load_graph(str(tmp_path / "g.npz"), **{option: "mean"})


FULL = Encoding(2, ("a", "b"), {"z": ("1", "2"), "c": ("x",)}, (0.5, 1.0), (0.1, 2.0), (0.0, 3.0))


def test_an_encoding_is_kept_in_json() -> None:
    for encoding in (FULL, Encoding(3), Encoding(0, (), {"c": ("x", "y")})):
        again = Encoding.from_json(json.loads(json.dumps(encoding.to_json())))
        assert again == encoding
        assert list(again.categories) == list(encoding.categories)
    assert FULL.num_features == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"num_dense": 3},
        {"num_dense": "2"},
        {"names": ["a"]},
        {"names": ["a", 3]},
        {"fill": [0.5, float("nan")]},
        {"mean": None},
        {"deviation": [1.0, -1.0]},
        {"deviation": "ab"},
        {"categories": [["z", []]]},
        {"categories": [["z", ["1", "1"]]]},
        {"categories": [["z", ["1"]], ["z", ["1"]]]},
        {"categories": [[1, ["1"]]]},
        {"categories": 7},
        {"categories": [[["z"], ["1"]]]},
    ],
)
def test_a_damaged_encoding(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="columns became features"):
        Encoding.from_json(FULL.to_json() | changes)
    for value in (None, 3, [], {}):
        with pytest.raises(ValueError, match="columns became features"):
            Encoding.from_json(value)


def test_what_agrees() -> None:
    plain = Encoding(2, ("a", "b"))
    assert disagreement(FULL, FULL) is None
    assert disagreement(None, plain) is None
    assert disagreement(Encoding(2, None), plain) is None
    for one, other, words in (
        (None, FULL, "theirs are standardised, and the model's were not"),
        (FULL, plain, "takes standardised features, and theirs are not"),
        (plain, Encoding(2, ("b", "a")), "other names, or another order"),
        (plain, Encoding(1, ("a",), {"b": ("x",)}), "columns none, they have b"),
    ):
        assert words in (disagreement(one, other) or "")
