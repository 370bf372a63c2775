"""What is wrong with a user's data: each row of each table gets one clear sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distsage.data.datasets import load_graph
from distsage.errors import UserError
from tests.unit.data_files import NUM_NODES, small_arrays, tables, write


def refuse(dataset: object, *words: str, **options: object) -> None:
    """Loading is refused in one line that holds all the words."""
    with pytest.raises(UserError) as caught:
        load_graph(str(dataset), **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def changed(array: np.ndarray, position: object, value: object) -> np.ndarray:
    array = np.array(array)
    array[position] = value
    return array


GOOD = small_arrays()
FEATURES, LABELS = GOOD["features"], GOOD["labels"]
CSR = {
    "feat_indptr": np.arange(NUM_NODES + 1),
    "feat_indices": np.zeros(NUM_NODES, np.uint16),
    "feat_shape": np.array([NUM_NODES, 2]),
}
TWO_A_ROW = np.arange(0, 2 * NUM_NODES + 1, 2)
PAIRS = np.tile(np.array([0, 1]), NUM_NODES)

# Keys to change in a good file, and words of the sentence.
NPZ = {
    "NaN feature": (
        {"features": changed(FEATURES, ([3, 5], [1, 0]), np.nan)},
        ["features", "NaN", "2 of them", "row 3"],
    ),
    "infinite feature": ({"features": changed(FEATURES, (4, 0), np.inf)}, ["infinite", "row 4"]),
    "feature beyond float32": (
        {"features": changed(FEATURES.astype(np.float64), (6, 0), 1e300)},
        ["infinite", "row 6"],
    ),
    "NaN in CSR features": (
        CSR | {"features": None, "feat_data": changed(np.ones(NUM_NODES), 7, np.nan)},
        ["NaN", "row 7"],
    ),
    "feature rows": ({"features": FEATURES[:-1]}, ["10 rows", "11 nodes"]),
    "flat features": ({"features": FEATURES[:, 0]}, ["float32 of shape [11]", "matrix"]),
    "no feature column": ({"features": FEATURES[:, :0]}, ["matrix"]),
    "string features": ({"features": FEATURES.astype(str)}, ["strings", "matrix"]),
    "CSR index": (
        CSR | {"features": None, "feat_indices": changed(np.zeros(NUM_NODES, np.int64), 6, 2)},
        ["row 6", "column 2", "0..1"],
    ),
    "negative CSR index": (
        CSR | {"features": None, "feat_indices": changed(np.zeros(NUM_NODES, np.int64), 6, -1)},
        ["row 6", "column -1", "0..1"],
    ),
    "unsorted CSR row": (
        CSR | {"feat_indptr": TWO_A_ROW, "feat_indices": changed(PAIRS, [8, 9], [1, 0])},
        ["row 4", "do not ascend", "sort each row"],
    ),
    "duplicate CSR column": (
        CSR | {"feat_indptr": TWO_A_ROW, "feat_indices": changed(PAIRS, 8, 1)},
        ["row 4", "two numbers in column 1"],
    ),
    "a row of a million numbers": (
        CSR
        | {
            "feat_indptr": np.array([0] * 3 + [1_000_000] * (NUM_NODES - 2)),
            "feat_indices": np.arange(1_000_000, dtype=np.int32),
            "feat_shape": np.array([NUM_NODES, 1_000_000]),
        },
        ["row 2", "1,000,000 numbers", "100,000"],
    ),
    "CSR bounds that descend": (
        CSR | {"feat_indptr": changed(np.arange(NUM_NODES + 1), 5, 0)},
        ["CSR", "ascend"],
    ),
    "CSR indptr": (CSR | {"feat_indptr": np.arange(NUM_NODES)}, ["feat_*", "CSR"]),
    "CSR shape": (CSR | {"feat_shape": np.array([NUM_NODES])}, ["feat_*", "CSR"]),
    "CSR shape missing": (CSR | {"feat_shape": None}, ["no feat_shape"]),
    "negative label": ({"labels": changed(LABELS, 2, -5)}, ["labels out of range", "row 2 is -5"]),
    "stray label": ({"labels": changed(LABELS, 2, 99)}, ["labels out of range", "row 2 has 99"]),
    "label over num_classes": (
        {"labels": changed(LABELS, 4, 3), "num_classes": np.array(3)},
        ["labels out of range", "row 4 is 3", "0..2"],
    ),
    "label that is no integer": ({"labels": LABELS + 0.5}, ["class numbers", "0.5"]),
    "infinite label": ({"labels": changed(LABELS * 1.0, 3, np.inf)}, ["out of range", "row 3"]),
    "huge label": (
        {"labels": changed(LABELS.astype(np.uint64), 3, 2**64 - 1)},
        ["out of range", "row 3"],
    ),
    "string labels": ({"labels": LABELS.astype(str)}, ["labels are strings"]),
    "label count": ({"labels": LABELS[:-1]}, ["10 labels", "11 nodes"]),
    "nothing labelled": ({"labels": LABELS * 0 - 1}, ["no node is labelled"]),
    "label matrix": (
        {"labels": changed(np.zeros((NUM_NODES, 3)), (5, 1), 2)},
        ["zeros and ones", "row 5"],
    ),
    "label matrix with NaN": (
        {"labels": changed(np.zeros((NUM_NODES, 3)), (5, 1), np.nan)},
        ["zeros and ones", "row 5"],
    ),
    "label matrix width": (
        {"labels": np.zeros((NUM_NODES, 3)), "num_classes": np.array(4)},
        ["3 columns", "4 classes"],
    ),
    "unlabelled test node": (
        {"labels": changed(LABELS, 8, -1)},
        ["test_mask", "1 nodes without a label", "row 8"],
    ),
    "edge to no node": (
        {"edge_dst": changed(GOOD["edge_dst"], 3, NUM_NODES)},
        ["edge 3", "node 11", "0..10"],
    ),
    "edge from a negative node": (
        {"edge_src": changed(GOOD["edge_src"], 5, -1)},
        ["edge 5", "node -1"],
    ),
    "edge lists of two lengths": ({"edge_src": GOOD["edge_src"][1:]}, ["10", "11"]),
    "float edges": ({"edge_src": GOOD["edge_src"] * 1.0}, ["source ids", "integers"]),
    "edge matrix": ({"edge_dst": GOOD["edge_dst"][:, None]}, ["destination ids", "[11, 1]"]),
    "mask length": ({"val_mask": GOOD["val_mask"][:-1]}, ["val_mask", "length 10", "11 nodes"]),
    "mask of indices": ({"val_mask": np.arange(NUM_NODES)}, ["val_mask", "0 and 1"]),
    "string mask": ({"val_mask": LABELS.astype(str)}, ["val_mask", "strings"]),
    "train and val overlap": (
        {"val_mask": changed(GOOD["val_mask"], [1, 3], True)},
        ["train_mask and val_mask overlap", "2 nodes", "row 1"],
    ),
    "train and test overlap": (
        {"test_mask": changed(GOOD["test_mask"], 2, True)},
        ["train_mask and test_mask overlap", "row 2"],
    ),
    "val and test overlap": (
        {"test_mask": changed(GOOD["test_mask"], 5, True)},
        ["val_mask and test_mask overlap", "row 5"],
    ),
    "train empty": ({"train_mask": GOOD["train_mask"] & False}, ["train_mask is empty"]),
    "val empty": ({"val_mask": GOOD["val_mask"] & False}, ["val_mask is empty"]),
    "test empty": ({"test_mask": GOOD["test_mask"] & False}, ["test_mask is empty"]),
    "one mask missing": ({"val_mask": None}, ["no val_mask", "--split 0.6/0.2/0.2"]),
    "no masks": (
        dict.fromkeys(("train_mask", "val_mask", "test_mask")),
        ["without", "--split 0.6/0.2/0.2"],
    ),
    "keys missing": (
        {"edge_src": None, "labels": None},
        ["no edge_src", "no labels", "its keys are", "edge_dst"],
    ),
    "no features": ({"features": None}, ["no features"]),
    "no nodes": ({"num_nodes": np.array(0)}, ["num_nodes", "positive"]),
    "two node counts": ({"num_nodes": np.array([11, 11])}, ["num_nodes", "one positive integer"]),
    "float node count": ({"num_nodes": np.array(11.0)}, ["num_nodes", "integer"]),
    "pickled array": ({"labels": np.array([{}] * NUM_NODES)}, ["plain arrays", "pickle"]),
}


@pytest.mark.parametrize("row", NPZ)
def test_npz(tmp_path, row):
    changes, words = NPZ[row]
    arrays = {key: value for key, value in (GOOD | changes).items() if value is not None}
    np.savez(tmp_path / "g.npz", **arrays)
    refuse(tmp_path / "g.npz", "g.npz", *words)


def truncated(path: Path) -> None:
    np.savez(path, **GOOD)
    path.write_bytes(path.read_bytes()[:700])


BROKEN = {
    "empty npz": ("g.npz", lambda path: path.touch(), ["cannot be read as an .npz"]),
    "text as npz": ("g.npz", lambda path: path.write_text("a,b"), ["cannot be read as an .npz"]),
    "truncated npz": ("g.npz", truncated, ["cannot be read as an .npz"]),
    "a single array as npz": (
        "g.npz",
        lambda path: np.save(open(path, "wb"), FEATURES),  # noqa: SIM115
        ["single array"],
    ),
    "empty DGL file": ("g.dgl", lambda path: path.touch(), ["cannot be read as a DGL graph"]),
    "text as DGL file": (
        "g.bin",
        lambda path: path.write_text("some text that is no graph"),
        ["cannot be read as a DGL graph"],
    ),
    "another kind of file": ("g.txt", lambda path: path.touch(), ["no kind that can be read"]),
    "empty directory": ("g", lambda path: path.mkdir(), ["no edges.csv or edges.parquet"]),
}


@pytest.mark.parametrize("row", BROKEN)
def test_broken_files(tmp_path, row):
    name, make, words = BROKEN[row]
    make(tmp_path / name)
    refuse(tmp_path / name, str(tmp_path / name), *words)


@pytest.mark.parametrize("kept", [100, 0.7, 0.95])
def test_truncated_dgl_file(tmp_path, kept):
    import dgl
    import torch

    graph = dgl.rand_graph(500, 2000)
    graph.ndata["feat"] = torch.randn(500, 8)
    graph.ndata["label"] = torch.zeros(500, dtype=torch.int64)
    path = tmp_path / "g.dgl"
    dgl.save_graphs(str(path), [graph])
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 else int(kept * len(data))])
    refuse(path, str(path), "cannot be read as a DGL graph", split="0.6/0.2/0.2")


def test_dgl_files_that_hold_something_else(tmp_path):
    import dgl
    import torch

    plain = dgl.graph(([0], [1]))
    typed = dgl.heterograph({("a", "to", "b"): ([0], [1]), ("b", "of", "a"): ([0], [1])})
    dgl.save_graphs(str(tmp_path / "two.dgl"), [plain, plain])
    refuse(tmp_path / "two.dgl", "2 graphs", "one homogeneous graph")
    dgl.save_graphs(str(tmp_path / "typed.dgl"), [typed])
    refuse(tmp_path / "typed.dgl", "one homogeneous graph")
    dgl.save_graphs(str(tmp_path / "plain.dgl"), [plain])
    refuse(tmp_path / "plain.dgl", "no node data feat or features", "none")
    plain.ndata["features"] = torch.zeros(2, 3)
    dgl.save_graphs(str(tmp_path / "plain.dgl"), [plain])
    refuse(tmp_path / "plain.dgl", "no node data label or labels", "features")


def edit(table, column, row, value):
    table[column] = table[column].astype(object)
    table.loc[row, column] = value


# What to do to good tables (in place), and words of the sentence.
TABLES = {
    "edge to an unknown node": (
        lambda edges, nodes: edit(edges, "dst", 4, 77),
        ["edges.csv", "the dst of edge 4 is node 77", "nodes.csv does not have"],
    ),
    "edge from a word among integers": (
        lambda edges, nodes: edit(edges, "src", 2, "ghost"),
        ["edges.csv", "the src of edge 2 is node ghost"],
    ),
    "edge without a source": (
        lambda edges, nodes: edit(edges, "src", 6, None),
        ["edges.csv", "edge 6 has no src"],
    ),
    "node named twice": (
        lambda edges, nodes: edit(nodes, "id", 6, 3),
        ["nodes.csv", "node 3 more than once"],
    ),
    "node without a name": (lambda edges, nodes: edit(nodes, "id", 6, None), ["row 6 has no id"]),
    "no id": (lambda edges, nodes: nodes.pop("id"), ["no column 'id'"]),
    "no label": (
        lambda edges, nodes: nodes.pop("label"),
        ["no column 'label'", "its columns are id, f0, f1, split"],
    ),
    "no dst": (
        lambda edges, nodes: edges.insert(1, "2", edges.pop("dst")),
        ["edges.csv", "no column 'dst'", "src, 2"],
    ),
    "no features": (
        lambda edges, nodes: (nodes.pop("f0"), nodes.pop("f1")),
        ["no feature column"],
    ),
    "word among features": (
        lambda edges, nodes: edit(nodes, "f1", 5, "red"),
        ["nodes.csv", "cannot be read", "red", "name it with --categorical"],
    ),
    "word as label": (
        lambda edges, nodes: edit(nodes, "label", 5, "cat"),
        ["nodes.csv", "cannot be read", "cat"],
    ),
    "empty feature": (
        lambda edges, nodes: edit(nodes, "f1", 5, None),
        ["column 'f1' has no value in row 6", "cells without a value: 1", "--fill mean"],
    ),
    "unknown split": (
        lambda edges, nodes: edit(nodes, "split", 5, "dev"),
        ["'dev'", "train, val, test or empty"],
    ),
    "split and masks": (
        lambda edges, nodes: nodes.insert(0, "train_mask", 1),
        ["both a split and train_mask"],
    ),
    "one column twice": (
        lambda edges, nodes: nodes.insert(0, "Node_ID", 1),
        ["two columns of one name"],
    ),
}


@pytest.mark.parametrize("row", TABLES)
def test_tables(tmp_path, row):
    change, words = TABLES[row]
    edges, nodes = tables()
    change(edges, nodes)
    refuse(write(tmp_path / "g", edges, nodes), *words)


def test_string_names_that_the_node_table_lacks(tmp_path):
    edges, nodes = tables()
    nodes["id"] = [f"n{node}" for node in nodes["id"]]
    edges = edges.map("n{}".format)
    edges.loc[3, "dst"] = "m4"
    refuse(write(tmp_path / "g", edges, nodes), "the dst of edge 3 is node m4")
    refuse(write(tmp_path / "h", edges, nodes, ".parquet"), "the dst of edge 3 is node m4")


TABLE_FILES = {
    "empty edges": ("edges.csv", b"", ["edges.csv cannot be read as a table"]),
    "no rows": ("nodes.csv", b"id,label,f0\n", ["nodes.csv holds no nodes"]),
    "empty nodes": ("nodes.csv", b"", ["nodes.csv cannot be read as a table"]),
    "no header": ("edges.csv", b"0,1\n1,2\n", ["no column 'src'", "its columns are 0, 1"]),
    "ragged": ("edges.csv", b"src,dst\n0,1\n1,2,3\n", ["edges.csv cannot be read as a table"]),
    "binary": ("nodes.csv", bytes(range(128, 256)), ["nodes.csv"]),
    "two tables of edges": ("edges.parquet", b"", ["both edges.parquet and edges.csv"]),
}


@pytest.mark.parametrize("row", TABLE_FILES)
def test_table_files(tmp_path, row):
    name, content, words = TABLE_FILES[row]
    write(tmp_path / "g", *tables())
    (tmp_path / "g" / name).write_bytes(content)
    refuse(tmp_path / "g", *words)


def test_damaged_parquet_and_gzip(tmp_path):
    for suffix in (".parquet", ".csv.gz"):
        directory = Path(write(tmp_path / f"g{suffix}", *tables(), suffix))
        path = directory / f"nodes{suffix}"
        path.write_bytes(path.read_bytes()[:-30])
        refuse(directory, f"nodes{suffix} cannot be read as a table")
        path.unlink()
        refuse(directory, "no nodes.csv or nodes.parquet")
    directory = Path(write(tmp_path / "text", *tables(), ".csv"))
    (directory / "nodes.csv").rename(directory / "nodes.parquet")
    refuse(directory, "nodes.parquet cannot be read as a table")


NAMES = {
    "prodcts": ["unknown dataset 'prodcts'", "did you mean ogbn-products"],
    "ogbn-arxive": ["did you mean ogbn-arxiv"],
    "Pub_Med": ["did you mean pubmed"],
    "zzzzzz": ["unknown dataset 'zzzzzz'", "reddit", "synthetic"],
    "there/is/nothing": ["there is no file or directory there/is/nothing"],
    "nothing.npz": ["there is no file or directory nothing.npz"],
    "": ["unknown dataset ''"],
    "synthetic:many": ["'synthetic:many'", "synthetic:NODES"],
    "synthetic:-5": ["'synthetic:-5'"],
    "synthetic:1000:20:3:4": ["synthetic:NODES:DEGREE:COLUMNS"],
    "synthetic:50": ["50 nodes"],
    "synthetic:1000:600": ["average degree 600"],
    "synthetic:1000:0": ["average degree 0"],
}


@pytest.mark.parametrize("dataset", NAMES)
def test_names(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse(dataset, *NAMES[dataset])


@pytest.mark.parametrize(
    "split",
    ["", "0.6", "0.6/0.4", "0.6/0.2/0.1/0.1", "a/b/c", "60/20/20", "0.6/0.3/0.2", "0.8/0.2/0",
     "-0.1/0.5/0.5", "nan/0.2/0.2", "0.6,0.2,0.2"],
)  # fmt: skip
def test_splits(split, tmp_path):
    np.savez(tmp_path / "g.npz", **GOOD)
    refuse(tmp_path / "g.npz", f"--split {split!r}", "0.6/0.2/0.2", split=split)


def test_split_of_too_few_nodes(tmp_path):
    one = {
        "num_nodes": np.array(1),
        "edge_src": np.zeros(0, int),
        "edge_dst": np.zeros(0, int),
        "labels": np.zeros(1, int),
        "features": np.ones((1, 2)),
    }
    np.savez(tmp_path / "one.npz", **one)
    refuse(tmp_path / "one.npz", "1 labelled nodes are too few", split="0.6/0.2/0.2")
    np.savez(tmp_path / "g.npz", **GOOD)
    refuse(tmp_path / "g.npz", "too few", split="0.98/0.01/0.01")


def test_split_index(tmp_path):
    np.savez(tmp_path / "g.npz", **GOOD)
    refuse(tmp_path / "g.npz", "1 split,", "no split 1", split_index=1)
    two = {name: np.stack([GOOD[name]] * 2, axis=1) for name in GOOD if "mask" in name}
    np.savez(tmp_path / "g.npz", **GOOD | two)
    refuse(tmp_path / "g.npz", "2 splits", "no split 2", split_index=2)
    refuse(tmp_path / "g.npz", "2 splits", "no split -1", split_index=-1)


@pytest.mark.parametrize("dataset", ["ogbn-arxiv", "ogb-product", "reddit", "cora"])
def test_a_dataset_that_cannot_be_downloaded(dataset, tmp_path, monkeypatch):
    """Without a server at the address; nothing stays behind."""
    import distsage.data.ogb

    monkeypatch.setenv("DGL_REPO", "http://127.0.0.1:9/")
    for name, facts in distsage.data.ogb._SETS.items():
        changed = replace(facts, source=replace(facts.source, url="http://127.0.0.1:9/x.zip"))
        monkeypatch.setitem(distsage.data.ogb._SETS, name, changed)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on standard input"))
    refuse(
        dataset, "cannot be downloaded from http://127.0.0.1:9/", "--dataset-root",
        dataset_root=tmp_path / "root",
    )  # fmt: skip
    assert not list((tmp_path / "root").iterdir())


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    import socket

    import distsage.data.download

    monkeypatch.setattr(distsage.data.download, "_TIMEOUT_S", 0.2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("DGL_REPO", f"http://127.0.0.1:{server.getsockname()[1]}/")
        refuse("pubmed", "cannot be downloaded", "timed out", dataset_root=tmp_path)
