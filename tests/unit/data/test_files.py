"""Graphs in files: npz, DGL graph files and directories of tables."""

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from distsage.data.datasets import graph_name, load_graph
from distsage.data.dgl_file import raw_graph
from distsage.data.npy import save_array
from distsage.errors import UserError
from tests.unit.data_files import DST, NUM_NODES, SRC, small_arrays, tables, write

# The README beside the files: nodes, directed edges, features, classes.
REAL = {
    "cora": (2708, 10556, 1433, 7),
    "citeseer": (3327, 9104, 3703, 6),
    "pubmed": (19717, 88648, 500, 3),
    "amazon_photo": (7650, 238162, 745, 8),
    "coauthor_cs": (18333, 163788, 6805, 15),
    "tolokers": (11758, 1038000, 10, 2),
}
NEEDS_DATA = pytest.mark.skipif("DISTSAGE_DATA" not in os.environ, reason="DISTSAGE_DATA is unset")


def edge_list(graph) -> list[tuple[int, int]]:
    topology = graph.topology
    dst = np.repeat(np.arange(graph.num_nodes), np.diff(topology.indptr))
    return sorted(zip(topology.indices.tolist(), dst.tolist(), strict=True))


def check_small(graph) -> None:
    arrays = small_arrays()
    assert graph.num_nodes == NUM_NODES
    assert edge_list(graph) == sorted(zip(SRC.tolist(), DST.tolist(), strict=True))
    assert graph.features.dtype == np.float32
    np.testing.assert_array_equal(graph.features, arrays["features"])
    assert graph.labels.dtype == np.int64
    np.testing.assert_array_equal(graph.labels, arrays["labels"])
    assert (graph.num_classes, graph.task) == (3, "multiclass")
    for name in ("train_mask", "val_mask", "test_mask"):
        assert getattr(graph, name).dtype == bool
        np.testing.assert_array_equal(getattr(graph, name), arrays[name])


# --- npz


@NEEDS_DATA
@pytest.mark.parametrize("name", REAL)
def test_real_graphs_have_their_published_sizes(name):
    path = Path(os.environ["DISTSAGE_DATA"]) / f"{name}.npz"
    graph = load_graph(str(path))
    size = (graph.num_nodes, graph.topology.num_edges, graph.num_features, graph.num_classes)
    assert size == REAL[name]
    assert graph.name == name
    with np.load(path) as arrays:
        for split in (0, 7) if name == "tolokers" else (0,):
            graph = load_graph(str(path), split_index=split)
            expected = arrays["train_mask"].reshape(graph.num_nodes, -1)[:, split]
            np.testing.assert_array_equal(graph.train_mask, expected)
        expected_edges = sorted(zip(arrays["edge_src"], arrays["edge_dst"], strict=True))
    assert edge_list(graph) == expected_edges
    # They are stored in both directions and deduplicated already.
    undirected = load_graph(str(path), undirected=True)
    np.testing.assert_array_equal(undirected.topology.indices, graph.topology.indices)


def test_npz_is_read_as_it_is(tmp_path):
    np.savez(tmp_path / "g.npz", **small_arrays())
    graph = load_graph(str(tmp_path / "g.npz"))
    check_small(graph)
    assert graph.name == "g"
    assert graph.original_ids is None


def test_undirected_adds_reverses_and_drops_duplicates(tmp_path):
    np.savez(tmp_path / "g.npz", **small_arrays())
    graph = load_graph(str(tmp_path / "g.npz"), undirected=True)
    path = [(v, v + 1) for v in range(9)]
    assert edge_list(graph) == sorted([*path, *((v, u) for u, v in path), (4, 4)])


def test_sparse_features_are_row_normalised_unless_told_otherwise(tmp_path):
    rng = np.random.default_rng(0)
    matrix = scipy.sparse.random_array((NUM_NODES, 6), density=0.5, rng=rng, format="csr")
    matrix.data -= 0.5
    arrays = small_arrays()
    del arrays["features"]
    arrays |= {
        "feat_indptr": matrix.indptr,
        "feat_indices": matrix.indices.astype(np.uint16),
        "feat_data": matrix.data.astype(np.float16),
        "feat_shape": np.array(matrix.shape),
    }
    np.savez(tmp_path / "g.npz", **arrays)
    dense = matrix.toarray().astype(np.float16).astype(np.float32)
    raw = load_graph(str(tmp_path / "g.npz"), feature_norm="none").features
    assert raw.dtype == np.float32
    np.testing.assert_array_equal(raw.toarray(), dense)
    sums = np.abs(dense).sum(axis=1, keepdims=True)
    expected = np.divide(dense, sums, out=np.zeros_like(dense), where=sums > 0)
    for norm in ("auto", "row"):
        features = load_graph(str(tmp_path / "g.npz"), feature_norm=norm).features
        np.testing.assert_allclose(features.toarray(), expected, rtol=1e-6)
    # Without feat_data every stored value is 1.
    del arrays["feat_data"]
    np.savez(tmp_path / "g.npz", **arrays)
    binary = load_graph(str(tmp_path / "g.npz"), feature_norm="none").features
    np.testing.assert_array_equal(binary.toarray(), matrix.toarray() != 0)


def test_dense_features_are_normalised_only_when_told(tmp_path):
    np.savez(tmp_path / "g.npz", **small_arrays())
    features = load_graph(str(tmp_path / "g.npz"), feature_norm="row").features
    expected = np.tile(np.float32([1 / 3, 2 / 3]), (NUM_NODES, 1))
    expected[0] = 0
    np.testing.assert_allclose(features, expected, rtol=1e-6)


def test_a_float_label_matrix_is_multilabel(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (NUM_NODES, 4)).astype(np.float64)
    np.savez(tmp_path / "g.npz", **small_arrays() | {"labels": labels})
    graph = load_graph(str(tmp_path / "g.npz"))
    assert (graph.task, graph.num_classes, graph.labels.dtype) == ("multilabel", 4, np.float32)
    np.testing.assert_array_equal(graph.labels, labels)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_labels_of_any_numeric_dtype_and_a_column_vector_are_read(tmp_path, dtype):
    labels = (np.arange(NUM_NODES) % 3).astype(dtype)[:, None]
    np.savez(tmp_path / "g.npz", **small_arrays() | {"labels": labels})
    check_small(load_graph(str(tmp_path / "g.npz")))


def test_nan_and_minus_one_mean_not_labelled_and_no_split_draws_them(tmp_path):
    labels = (np.arange(NUM_NODES) % 2).astype(float)
    labels[[1, 5]] = np.nan
    labels[8] = -1
    arrays = small_arrays() | {"labels": labels}
    np.savez(tmp_path / "g.npz", **arrays)
    graph = load_graph(str(tmp_path / "g.npz"), split="0.5/0.25/0.25", seed=3)
    np.testing.assert_array_equal(np.flatnonzero(graph.labels == -1), [1, 5, 8])
    masks = np.stack([graph.train_mask, graph.val_mask, graph.test_mask])
    assert masks.sum(axis=1).tolist() == [4, 2, 2]
    np.testing.assert_array_equal(masks.sum(axis=0), graph.labels != -1)


def test_a_drawn_split_follows_its_seed(tmp_path):
    np.savez(tmp_path / "g.npz", **small_arrays())
    drawn = [
        load_graph(str(tmp_path / "g.npz"), split="0.4/0.3/0.3", seed=seed).train_mask
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_the_state_of_num_classes_wins_over_the_labels(tmp_path):
    np.savez(tmp_path / "g.npz", **small_arrays(), num_classes=40)
    assert load_graph(str(tmp_path / "g.npz")).num_classes == 40


# --- DGL graph files


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        (".dgl", ("feat", "label", "val_mask")),
        (".bin", ("features", "labels", "valid_mask")),
    ],
)
def test_a_dgl_file_is_read_as_it_is(tmp_path, suffix, names):
    import dgl
    import torch

    arrays = small_arrays()
    saved = dgl.graph((torch.tensor(SRC), torch.tensor(DST)), num_nodes=NUM_NODES)
    saved.ndata[names[0]] = torch.tensor(arrays["features"], dtype=torch.float64)
    saved.ndata[names[1]] = torch.tensor(arrays["labels"])
    saved.ndata["train_mask"] = torch.tensor(arrays["train_mask"])
    saved.ndata[names[2]] = torch.tensor(arrays["val_mask"].astype(np.uint8))
    saved.ndata["test_mask"] = torch.tensor(arrays["test_mask"])
    dgl.save_graphs(str(tmp_path / f"mine{suffix}"), [saved])
    graph = load_graph(str(tmp_path / f"mine{suffix}"))
    check_small(graph)
    assert graph.name == "mine"


def test_labels_of_dgl_graphs_may_be_left_out_where_nobody_needs_them() -> None:
    data = {"feat": small_arrays()["features"]}
    graph = NUM_NODES, SRC, DST, data, ["feat"]
    assert raw_graph("g", *graph, labelled=False).labels is None
    with pytest.raises(UserError, match="g has no node data label or labels; it has feat"):
        raw_graph("g", *graph)
    data["label"] = small_arrays()["labels"]
    assert raw_graph("g", *graph, labelled=False).labels is data["label"]


# --- tables

INT_NAMES = 10**12 + 7 * np.arange(NUM_NODES)[::-1]
# "NA" and "null" are names like any other; "007" and "7" are two nodes.
STR_NAMES = np.array(["7", "007", "NA", "null", "a b", "é", "nan", "x,y", "8", "A", "a"], object)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("names", [None, INT_NAMES, STR_NAMES], ids=["0..N-1", "int", "str"])
def test_tables_are_read_as_they_are(tmp_path, suffix, names):
    edges, nodes = tables()
    if names is not None:
        edges = edges.map(lambda node: names[node])
        nodes["id"] = names
    graph = load_graph(write(tmp_path / "my graph", edges, nodes, suffix))
    check_small(graph)
    assert graph.name == "my-graph"
    if names is None:
        assert graph.original_ids is None
    else:
        assert graph.original_ids.dtype.kind == ("i" if names is INT_NAMES else "U")
        assert graph.original_ids.tolist() == names.tolist()


def test_numbers_with_leading_zeros_are_names(tmp_path):
    edges, nodes = tables()
    edges, nodes["id"] = edges.map("{:03d}".format), nodes["id"].map("{:03d}".format)
    graph = load_graph(write(tmp_path / "g", edges, nodes))
    check_small(graph)
    assert graph.original_ids.tolist() == [f"{v:03d}" for v in range(NUM_NODES)]


@pytest.mark.parametrize("prefix", ["", "n"], ids=["int", "str"])
def test_blanks_around_names_do_not_count(tmp_path, prefix):
    edges, nodes = tables()
    nodes["id"] = [f"{prefix}{v}" for v in nodes["id"]]
    edges = edges.map(f" {prefix}{{}} ".format)
    check_small(load_graph(write(tmp_path / "g", edges, nodes)))


def test_integer_names_with_gaps_in_any_row_order(tmp_path):
    edges, nodes = tables()
    order = np.random.default_rng(0).permutation(NUM_NODES)
    edges, nodes["id"] = edges * 5 + 2, nodes["id"] * 5 + 2
    graph = load_graph(write(tmp_path / "g", edges, nodes.iloc[order]))
    assert graph.original_ids.tolist() == (order * 5 + 2).tolist()
    named = [(int(order[u]), int(order[v])) for u, v in edge_list(graph)]
    assert sorted(named) == sorted(zip(SRC.tolist(), DST.tolist(), strict=True))
    np.testing.assert_array_equal(graph.features[:, 0], order)


@pytest.mark.parametrize(
    ("edge_header", "node_header"),
    [
        ({"src": "Source", "dst": " Target"}, {"id": "node_id", "label": "Labels"}),
        ({"src": " SRC ", "dst": "destination"}, {"id": "ID", "split": "Split"}),
    ],
)
def test_headers_vary(tmp_path, edge_header, node_header):
    edges, nodes = tables()
    edges["weight"] = 0.5
    edges, nodes = edges.rename(columns=edge_header), nodes.rename(columns=node_header)
    check_small(load_graph(write(tmp_path / "g", edges, nodes)))


def test_a_header_with_a_byte_order_mark_and_windows_lines(tmp_path):
    directory = Path(write(tmp_path / "g", *tables()))
    for path in directory.iterdir():
        path.write_text("\ufeff" + path.read_text(), encoding="utf-8", newline="\r\n")
    check_small(load_graph(str(directory)))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("dtype", [bool, int])
def test_masks_as_columns(tmp_path, suffix, dtype):
    edges, nodes = tables()
    arrays = small_arrays()
    nodes = nodes.drop(columns="split")
    for name in ("train_mask", "val_mask", "test_mask"):
        nodes[name.replace("val", "valid")] = arrays[name].astype(dtype)
    check_small(load_graph(write(tmp_path / "g", edges, nodes, suffix)))


def test_features_that_turn_to_floats_late_in_a_long_file(tmp_path):
    num_nodes = 200_000
    node = np.arange(num_nodes)
    nodes = pd.DataFrame({"id": node, "label": node % 2, "f": 0})
    nodes["f"] = nodes["f"].astype(object)
    nodes.loc[num_nodes - 1, "f"] = 0.5
    edges = pd.DataFrame({"src": node[:-1], "dst": node[1:]})
    graph = load_graph(write(tmp_path / "g", edges, nodes), split="0.6/0.2/0.2")
    assert graph.features[-1, 0] == 0.5
    assert graph.topology.num_edges == num_nodes - 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_empty_labels_are_not_labelled(tmp_path, suffix):
    edges, nodes = tables()
    nodes["label"] = nodes["label"].astype("Int64")
    nodes.loc[NUM_NODES - 1, "label"] = pd.NA
    graph = load_graph(write(tmp_path / "g", edges, nodes, suffix))
    assert graph.labels.tolist() == [*(v % 3 for v in range(NUM_NODES - 1)), -1]


def test_several_labels_per_node_are_columns(tmp_path):
    edges, nodes = tables()
    labels = np.random.default_rng(1).integers(0, 2, (NUM_NODES, 12))
    nodes = nodes.drop(columns="label")
    for column in reversed(range(12)):
        nodes[f"label_{column}"] = labels[:, column]
    graph = load_graph(write(tmp_path / "g", edges, nodes))
    np.testing.assert_array_equal(graph.labels, labels)
    assert (graph.task, graph.num_features) == ("multilabel", 2)


def test_no_edges_at_all(tmp_path):
    edges, nodes = tables()
    graph = load_graph(write(tmp_path / "g", edges.iloc[:0], nodes))
    assert (graph.num_nodes, graph.topology.num_edges) == (NUM_NODES, 0)


# --- names


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("ogb-product", "ogbn-products"),
        ("OGBN_papers100m", "ogbn-papers100M"),
        ("synthetic:400000:42", "synthetic-400000-42"),
        ("data/My graph (2).v1.npz", "My-graph-2-.v1"),
        ("../.hidden.dgl", "hidden"),
        ("./cora.npz", "cora"),
        ("図.npz", "graph"),
    ],
)
def test_graph_names_are_fit_for_file_names(dataset, name):
    assert graph_name(dataset) == name


ARRAYS = {
    "numbers": np.arange(12, dtype=np.int32),
    "booleans": np.arange(5) > 2,
    "texts": np.array(["a", "bcé", ""]),
    "nothing": np.empty((0, 3), np.float32),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every second": np.arange(20)[::2],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_written_as_numpy_does(name: str, tmp_path: Path) -> None:
    array = ARRAYS[name]
    rows = np.arange(len(array))[::-1]
    for number, (ours, numpys) in enumerate(
        [((array,), array), ((array, rows), np.ascontiguousarray(array)[rows])]
    ):
        save_array(tmp_path / f"ours-{number}.npy", *ours)
        np.save(tmp_path / f"numpys-{number}.npy", numpys)
        contents = {(tmp_path / f"{who}-{number}.npy").read_bytes() for who in ("ours", "numpys")}
        assert len(contents) == 1


def test_a_full_disk_is_why_an_array_is_not_written(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save_array(tmp_path / "a.npy", np.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
