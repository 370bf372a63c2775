"""One graph from many sources, and what does not fit memory: the same numbers from all of them."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distsage import limits
from distsage.data import datasets, engine
from distsage.data.csc import csc_from_edges, symmetrise
from distsage.data.datasets import load_graph
from distsage.data.engine import sorted_topology
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.limits import hold_to
from tests.unit.data_files import small_arrays, tables, write

SPLITS = np.array(["train", "val", "test", ""], object)


def same(graph: Graph, expected: Graph) -> None:
    for name in ("features", "labels", "train_mask", "val_mask", "test_mask"):
        found, wanted = getattr(graph, name), getattr(expected, name)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted, name)
    same_topology(graph.topology, expected.topology)


def same_topology(found, wanted) -> None:
    for name in ("indptr", "indices"):
        assert getattr(found, name).dtype == getattr(wanted, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)


def write_arrays(directory: Path, arrays: dict[str, np.ndarray]) -> str:
    directory.mkdir()
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array)
    return str(directory)


def write_many(directory: Path, suffix: str, files: dict[str, list[pd.DataFrame]]) -> str:
    for stem, pieces in files.items():
        (directory / stem).mkdir(parents=True)
        (directory / stem / "_SUCCESS").touch()
        for number, piece in enumerate(pieces):
            path = directory / stem / f"part-{number:05}{suffix}"
            if suffix == ".parquet":
                piece.to_parquet(path, index=False)
            else:
                piece.to_csv(path, index=False)
    return str(directory)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], list[object], list[int], list[int]]:
    """Arrays, the nodes' names, and where the tables are cut."""
    num_nodes = draw(st.integers(3, 12))
    node = st.integers(0, num_nodes - 1)
    ends = draw(st.lists(st.tuples(node, node), min_size=1, max_size=30))
    names = draw(
        st.one_of(
            st.just(list(range(num_nodes))),
            st.lists(
                st.one_of(st.integers(-50, 10**12)),
                min_size=num_nodes,
                max_size=num_nodes,
                unique=True,
            ),
            st.lists(
                st.text("abc07é", min_size=1, max_size=5),
                min_size=num_nodes,
                max_size=num_nodes,
                unique=True,
            ),
        )
    )
    split = np.arange(num_nodes) % 3
    arrays = {
        "num_nodes": np.array(num_nodes),
        "edge_src": np.array([src for src, _ in ends]),
        "edge_dst": np.array([dst for _, dst in ends]),
        "labels": np.arange(num_nodes) % 2,
        "features": np.array(
            draw(
                st.lists(
                    st.floats(-10, 10, width=32), min_size=2 * num_nodes, max_size=2 * num_nodes
                )
            ),
            np.float32,
        ).reshape(num_nodes, 2),
        **{name: split == k for k, name in enumerate(("train_mask", "val_mask", "test_mask"))},
    }
    cuts = [draw(st.lists(st.integers(0, n), max_size=3)) for n in (len(ends), num_nodes)]
    return arrays, names, sorted(cuts[0]), sorted(cuts[1])


@settings(max_examples=8, deadline=None)
@given(drawn=graphs(), undirected=st.booleans())
def test_all_sources_of_a_graph_are_equal(
    drawn: tuple, undirected: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrays, names, edge_cuts, node_cuts = drawn
    folder = tmp_path_factory.mktemp("sources")
    name = np.array(names, object)
    split = SPLITS[:3][np.arange(len(names)) % 3]
    edges = pd.DataFrame({"src": name[arrays["edge_src"]], "dst": name[arrays["edge_dst"]]})
    columns = {"f0": arrays["features"][:, 0], "f1": arrays["features"][:, 1]}
    nodes = pd.DataFrame({"id": names, "label": arrays["labels"], "split": split, **columns})
    edges = edges.astype(nodes["id"].dtype)
    files = {
        stem: [table.iloc[a:b] for a, b in zip([0, *cuts], [*cuts, len(table)], strict=True)]
        for stem, table, cuts in (("edges", edges, edge_cuts), ("nodes", nodes, node_cuts))
    }
    np.savez(folder / "g.npz", **arrays)
    expected = load_graph(str(folder / "g.npz"), undirected=undirected)
    sources = [
        write_arrays(folder / "arrays", arrays),
        write_many(folder / "parquet", ".parquet", files),
        write_many(folder / "csv", ".csv", files),
        write_many(folder / "gz", ".csv.gz", files),
    ]
    for source in sources:
        for scratch in (None, folder / f"{Path(source).name}-scratch"):
            if scratch is not None:
                scratch.mkdir()
            graph = load_graph(source, undirected=undirected, scratch=scratch)
            same(graph, expected)
            if source != sources[0] and names != list(range(len(names))):
                assert list(graph.original_ids) == names


@settings(max_examples=8, deadline=None)
@given(
    ends=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=60),
    both=st.booleans(),
)
@example(ends=[(1, 2), (1, 2), (2, 1), (3, 3), (3, 3)], both=True)
def test_edges_sorted_on_disk(
    ends: list[tuple[int, int]], both: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    src, dst = np.array(ends, np.int64).reshape(-1, 2).T
    expected = csc_from_edges(src, dst, 21)
    found = sorted_topology(
        "g", src, dst, 21, both_directions=both, scratch=tmp_path_factory.mktemp("scratch")
    )
    same_topology(found, symmetrise(expected) if both else expected)


@pytest.mark.parametrize("undirected", [False, True])
def test_where_memory_does_not_hold_the_edges(
    undirected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)  # several batches, one of them in the middle of a node
    arrays = small_arrays() | {
        "edge_src": rng.integers(0, 11, 600_000),
        "edge_dst": rng.integers(0, 11, 600_000),
    }
    source = write_arrays(tmp_path / "g", arrays)
    expected = load_graph(source, undirected=undirected)
    monkeypatch.setattr(datasets, "sorting_bytes", lambda *_: 1 << 60)
    (tmp_path / "scratch").mkdir()
    graph = load_graph(source, undirected=undirected, scratch=tmp_path / "scratch")
    same(graph, expected)
    assert isinstance(graph.topology.indices, np.memmap)
    with pytest.raises(UserError, match="sorting 600,000 edges takes"):
        load_graph(source)


@pytest.mark.parametrize("options", [{"fill": "mean"}, {"feature_norm": "standard"}])
def test_columns_are_encoded_on_disk(options: dict, tmp_path: Path) -> None:
    edges, nodes = tables()
    if "fill" in options:
        nodes["f1"] = nodes["f1"].where(nodes["id"] != 2)
    source = write(tmp_path / "g", edges, nodes)
    graph = load_graph(source, scratch=tmp_path, **options)
    same(graph, load_graph(source, **options))
    assert isinstance(graph.features, np.memmap)
    assert not (tmp_path / "rows.npy").exists()  # what was read and is not the result


def damaged(directory: Path, what: str) -> None:
    edges, nodes = tables()
    pieces = {"edges": [edges[:5], edges[5:].copy()], "nodes": [nodes[:6], nodes[6:].copy()]}
    if what == "no such node":
        pieces["edges"][1].loc[9, "dst"] = 77
    elif what == "no end":
        pieces["edges"][1] = pieces["edges"][1].astype("float").replace({"dst": {9.0: np.nan}})
    elif what == "ids twice":
        pieces["nodes"][1].loc[9, "id"] = 3
    elif what == "no id":
        pieces["nodes"][1] = pieces["nodes"][1].astype({"id": "Int64"}).replace({"id": {8: pd.NA}})
    elif what == "types":
        pieces["edges"][1] = pieces["edges"][1].astype(str)
    elif what == "columns":
        pieces["nodes"][1] = pieces["nodes"][1].drop(columns="f0")
    write_many(directory, ".parquet", pieces)
    if what == "truncated":
        path = directory / "edges" / "part-00001.parquet"
        path.write_bytes(path.read_bytes()[:-30])
    elif what == "stray":
        (directory / "edges" / "notes.txt").touch()
    elif what == "kinds":
        (directory / "edges" / "z.csv").write_text("src,dst\n")
    elif what == "nothing":
        for path in (directory / "edges").glob("*.parquet"):
            path.unlink()
    elif what == "both":
        edges.to_csv(directory / "edges.csv")


DAMAGED = {
    "no such node": r"part-00001\.parquet: the dst of edge 4 is node 77, which nodes does not have",
    "no end": r"part-00001\.parquet: edge 3 has no dst",
    "ids twice": "nodes names node 3 more than once",
    "no id": r"part-00001\.parquet: row 2 has no id",
    "types": r"part-00001\.parquet: the column 'src' is of type .*string, but .* integers, or all",
    "columns": r"part-00001\.parquet has the columns .* but part-00000\.parquet has",
    "truncated": r"part-00001\.parquet cannot be read as a table",
    "stray": r"notes\.txt is no table; the directory may hold",
    "kinds": "edges holds tables of two kinds, Parquet and csv",
    "nothing": "edges holds no table",
    "both": r"both edges\.csv and edges; it needs one table",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_directories_that_are_refused(what: str, tmp_path: Path) -> None:
    damaged(tmp_path / "g", what)
    with pytest.raises(UserError, match=DAMAGED[what]):
        load_graph(str(tmp_path / "g"))


def test_a_name_that_no_node_has_in_a_late_row(tmp_path: Path) -> None:
    edges, nodes = tables()
    nodes["id"] = "n" + nodes["id"].astype(str)
    many = pd.concat([edges] * 20_000, ignore_index=True)
    many = "n" + many.astype(str)
    many.loc[200_000, "src"] = "ghost"
    many.loc[210_000, "dst"] = "later"
    source = write(tmp_path / "g", many, nodes, ".parquet")
    with pytest.raises(UserError, match="the src of edge 200000 is node ghost, which nodes.parq"):
        load_graph(source)


ARRAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda path: (path / "features.npy").write_bytes((path / "features.npy").read_bytes()[:-4]),
        r"features\.npy cannot be read as a plain array: it has 84 bytes of values",
    ),
    "pickled": (
        lambda path: np.save(path / "labels.npy", np.array([{}] * 11)),
        r"labels\.npy cannot be read as a plain array: it holds pickled objects",
    ),
    "missing": (lambda path: (path / "edge_dst.npy").unlink(), "has no edge_dst; its keys are"),
    "no such node": (
        lambda path: np.save(path / "edge_dst.npy", np.full(11, 11)),
        "edge 0 goes from node 0 to node 11, but the nodes are 0..10",
    ),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_directories_of_arrays_that_are_refused(what: str, tmp_path: Path) -> None:
    source = write_arrays(tmp_path / "g", small_arrays())
    change, words = ARRAYS[what]
    change(tmp_path / "g")
    with pytest.raises(UserError, match=words):
        load_graph(source)


def test_names_that_memory_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What joins them puts pieces of both tables into files; the numbers are the same."""
    num_nodes, num_edges = 200_000, 200_000
    rng = np.random.default_rng(0)
    names = np.array([f"https://example.org/{v:040}" for v in rng.permutation(num_nodes)])
    src, dst = rng.integers(0, num_nodes, (2, num_edges))
    schema = pa.schema({"src": pa.string(), "dst": pa.string(), "edge": pa.int64()})
    batches = (
        pa.record_batch([names[src[rows]], names[dst[rows]], np.arange(num_edges)[rows]], schema)
        for rows in np.split(np.arange(num_edges), 8)
    )
    monkeypatch.setattr(engine, "_LEAST_BYTES", 32 << 20)
    monkeypatch.setattr(engine, "free_memory", lambda: 0)
    monkeypatch.setattr(limits, "free_memory", lambda: 32 << 20)
    spilled, found = 0, np.full((2, num_edges), -2)
    ids = pa.chunked_array([names])
    for *ends, edge in engine.row_numbers("g", schema, batches, ids, tmp_path):
        found[:, edge] = ends
        files = (path for path in tmp_path.rglob("*") if path.is_file())
        spilled = max(spilled, sum(path.stat().st_size for path in files))
    assert spilled > 0
    np.testing.assert_array_equal(found, [src, dst])
    assert list(tmp_path.iterdir()) == []


def test_a_limit_too_small_for_the_engine(tmp_path: Path) -> None:
    ids = np.zeros(5, np.int64)
    hold_to(1 << 20)
    try:
        with pytest.raises(UserError, match=r"g: sorting 5 edges takes .* give --memory \d+M or"):
            sorted_topology("g", ids, ids, 1, both_directions=False, scratch=tmp_path)
    finally:
        hold_to(None)


def test_a_disk_too_small_for_sorting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.zeros(5, np.int64)
    monkeypatch.setattr(limits, "free_disk", lambda _: 99)
    with pytest.raises(UserError, match=r"g: sorting 10 edges takes 200 B of disk, but 99 B are"):
        sorted_topology("g", ids, ids, 1, both_directions=True, scratch=tmp_path)


def test_a_disk_that_fills_while_edges_are_sorted(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, numpy as np\n"
        "from distsage.data.engine import sorted_topology\n"
        "ids = np.zeros(1000, np.int64)\n"
        "try:\n"
        "    sorted_topology('g', ids, ids, 1, both_directions=False,\n"
        "                    scratch=pathlib.Path(sys.argv[1]))\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.stdout == "File too large\n", ended.stderr
    assert not list(tmp_path.glob("duckdb-*"))
