"""Damaged data sets: what reads them ends well, or with one sentence; no crash, no hang."""

import io
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from distsage.data.builtin import read_builtin
from distsage.data.datasets import load_graph
from distsage.data.ogb import read_ogb
from distsage.errors import UserError
from tests.unit.data.test_downloads import address_hash, ogb_csv, planetoid, reddit
from tests.unit.data_files import SRC, small_arrays, tables, write
from tests.unit.fuzzing import damaged, examples, success_or_one_sentence


def load(path, **options) -> None:
    with success_or_one_sentence():
        load_graph(str(path), **options)


def npz(arrays: dict[str, np.ndarray], compressed: bool = True) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


GOOD = small_arrays()
SPARSE = scipy.sparse.csr_matrix(GOOD["features"])
CSR = {key: value for key, value in GOOD.items() if key != "features"} | {
    "feat_indptr": SPARSE.indptr,
    "feat_indices": SPARSE.indices,
    "feat_data": SPARSE.data,
    "feat_shape": np.array(SPARSE.shape),
}
ARCHIVES = [npz(GOOD), npz(GOOD, compressed=False), npz(CSR, compressed=False)]


@examples(400)
@given(content=st.sampled_from(ARCHIVES).flatmap(damaged) | st.binary(max_size=40))
def test_archives_of_arrays(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "g.npz"
    path.write_bytes(content)
    load(path)


DTYPES = ["<f4", "<f8", "<f2", "<i8", "<i4", "<u8", "|b1", "|i1", "<c8", "<U3", "|S2", ">i4"]


@st.composite
def odd_array(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(0, 12), max_size=3))
    values = draw(st.lists(st.sampled_from([0, 1, 2, 3, 11, -1, 127]), min_size=1, max_size=12))
    return np.resize(values, shape).astype(draw(st.sampled_from(DTYPES)))


@examples(300)
@given(data=st.data())
def test_arrays_of_odd_types_and_shapes(data, tmp_path_factory):
    """The archive is whole; what is in it does not fit together."""
    good = data.draw(st.sampled_from([GOOD, CSR])) | {"num_classes": np.array(3)}
    arrays = dict(good)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*good]))
        value = good[key]
        choice = data.draw(st.sampled_from(["odd", "huge", "cast", "negative"]))
        if choice == "odd":
            arrays[key] = data.draw(odd_array())
        elif choice == "cast":
            arrays[key] = value.astype(data.draw(st.sampled_from(DTYPES)))
        else:
            changed = np.array(value, np.int64, ndmin=1)
            number = (
                -1
                if choice == "negative"
                else data.draw(st.sampled_from([11, 2**31, 2**40, 2**62, 2**63 - 1]))
            )
            changed.flat[-1:] = number
            arrays[key] = changed.reshape(value.shape)
    path = tmp_path_factory.getbasetemp() / "odd.npz"
    path.write_bytes(npz(arrays, compressed=False))
    load(path)


def entry(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


HEADER = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }"
BOMBS = {
    "more than memory": entry(
        "features.npy", (HEADER % 2**40).ljust(127) + b"\n", zipfile.ZIP_DEFLATED
    ),
    "packed in another way": entry("features.npy", b"x" * 1000, zipfile.ZIP_LZMA),
    "a size that cannot be": entry("features.npy", bytes(1000)).replace(
        struct.pack("<II", 1000, 1000), struct.pack("<II", 1000, 2**31)
    ),
    "encrypted": entry("features.npy", bytes(100)).replace(
        b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"
    ),
    "a name that is no text": entry("é.npy", b"x").replace("é".encode(), b"\xff\xff"),
}


@pytest.mark.parametrize("row", BOMBS)
def test_archives_that_take_more_than_they_should(tmp_path, row):
    (tmp_path / "g.npz").write_bytes(BOMBS[row])
    load(tmp_path / "g.npz")


# --- tables


@pytest.fixture(scope="module")
def good_tables(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tables")
    for suffix in (".csv", ".parquet", ".csv.gz"):
        write(directory / suffix[1:], *tables(), suffix)
    return directory


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".csv.gz"])
@pytest.mark.parametrize("stem", ["nodes", "edges"])
def test_tables(good_tables, suffix, stem):
    directory = good_tables / suffix[1:]
    path = directory / f"{stem}{suffix}"
    good = path.read_bytes()

    @examples(100)
    @given(content=damaged(good) | st.binary(max_size=40))
    def fuzz(content):
        path.write_bytes(content)
        load(directory)

    try:
        fuzz()
    finally:
        path.write_bytes(good)


CELLS = ["", "nan", "inf", "-1", "1e400", "9" * 5000, "x", "é", '"', "\0", "0x1", "1.5", "true"]

OPTIONS = [
    {},
    {"categorical": "f1", "fill": "mean"},
    {"categorical": "f0,f1"},
    {"fill": "zero", "feature_norm": "standard"},
]


@examples(150)
@given(data=st.data())
def test_cells_of_tables(data, tmp_path_factory):
    directory = tmp_path_factory.getbasetemp() / "cells"
    edges, nodes = (table.astype(object) for table in tables())
    for _ in range(data.draw(st.integers(1, 3))):
        table = data.draw(st.sampled_from([edges, nodes]))
        row = data.draw(st.integers(0, len(table) - 1))
        column = data.draw(st.integers(0, len(table.columns) - 1))
        if data.draw(st.booleans()):
            table.iloc[row, column] = data.draw(st.sampled_from(CELLS))
        else:
            names = [*table.columns]
            names[column] = data.draw(
                st.sampled_from(["", "id", "label", "label_0", "label_" + "9" * 5000, "train_mask"])
            )
            table.columns = names
    options = data.draw(st.sampled_from(OPTIONS))
    load(write(directory, edges, nodes), **options)


# --- the sets that are downloaded


def copies(tmp_path_factory, name, make):
    directory = tmp_path_factory.mktemp(name)
    make(directory)
    return directory


def test_files_of_ogb(tmp_path_factory):
    root = copies(tmp_path_factory, "ogb", lambda root: ogb_csv(root / "ogbn_arxiv", "time"))
    files = sorted((root / "ogbn_arxiv").rglob("*.csv.gz"))
    good = {path: path.read_bytes() for path in files}

    @examples(120)
    @given(data=st.data())
    def fuzz(data):
        path = data.draw(st.sampled_from(files))
        path.write_bytes(data.draw(damaged(good[path])))
        with success_or_one_sentence():
            read_ogb("ogbn-arxiv", root)
        path.write_bytes(good[path])

    fuzz()


def test_binary_files_of_ogb(tmp_path_factory):
    root = copies(tmp_path_factory, "ogb", lambda root: ogb_csv(root / "ogbn_papers100M", "time"))
    raw = root / "ogbn_papers100M" / "raw"
    good = {
        "data.npz": {
            "edge_index": np.stack([SRC, SRC]),
            "node_feat": np.zeros((30, 2), np.float32),
            "num_nodes_list": np.array([30]),
        },
        "node-label.npz": {"node_label": np.zeros((30, 1), np.float32)},
    }
    for name, arrays in good.items():
        (raw / name).write_bytes(npz(arrays))

    @examples(120)
    @given(data=st.data())
    def fuzz(data):
        name = data.draw(st.sampled_from([*good]))
        arrays = dict(good[name])
        if data.draw(st.booleans()):
            arrays[data.draw(st.sampled_from([*arrays]))] = data.draw(odd_array())
            content = npz(arrays)
        else:
            content = data.draw(damaged(npz(arrays)))
        (raw / name).write_bytes(content)
        with success_or_one_sentence():
            load_graph("ogbn-papers100M", dataset_root=root)
        (raw / name).write_bytes(npz(good[name]))

    fuzz()


def test_files_of_reddit(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reddit") / address_hash("reddit")
    matrix = reddit(directory)
    graph = {
        "row": matrix.row,
        "col": matrix.col,
        "format": np.array(b"coo"),
        "shape": np.array(matrix.shape),
        "data": matrix.data,
    }
    with np.load(directory / "reddit_data.npz") as arrays:
        good = {"reddit_data.npz": dict(arrays), "reddit_graph.npz": graph}
    for name, arrays in good.items():
        for missing in {*arrays} - {"node_ids"}:
            (directory / name).write_bytes(npz({key: arrays[key] for key in {*arrays} - {missing}}))
            with pytest.raises(UserError, match=f"{missing}: it is missing"):
                read_builtin("reddit", directory.parent)
        (directory / name).write_bytes(npz(arrays))

    @examples(60)
    @given(data=st.data())
    def fuzz(data):
        name = data.draw(st.sampled_from([*good]))
        arrays = dict(good[name])
        if data.draw(st.booleans()):
            arrays[data.draw(st.sampled_from([*arrays]))] = data.draw(odd_array())
            content = npz(arrays)
        else:
            content = data.draw(damaged(npz(arrays)))
        (directory / name).write_bytes(content)
        with success_or_one_sentence():
            read_builtin("reddit", directory.parent)
        (directory / name).write_bytes(npz(good[name]))
        (directory / "dgl_graph.bin").unlink(missing_ok=True)

    fuzz()


def test_files_of_citation_graphs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cora") / address_hash("cora_v2")
    planetoid(directory, "cora_v2")
    files = sorted(directory.iterdir())
    good = {path: path.read_bytes() for path in files}

    @examples(150)
    @given(data=st.data())
    def fuzz(data):
        path = data.draw(st.sampled_from(files))
        path.write_bytes(data.draw(damaged(good[path])))
        with success_or_one_sentence():
            read_builtin("cora", directory.parent)
        path.write_bytes(good[path])

    fuzz()


# --- DGL's graph files


def test_files_of_dgl(tmp_path):
    """Few, since each takes a process that imports DGL."""
    import dgl
    import torch

    graph = dgl.rand_graph(60, 300)
    graph.ndata.update(feat=torch.ones(60, 2), label=torch.zeros(60, dtype=torch.int64))
    dgl.save_graphs(str(tmp_path / "good.dgl"), [graph], formats="csc")
    good = (tmp_path / "good.dgl").read_bytes()
    rng = np.random.default_rng(3)
    paths = []
    for number in range(3):
        content = bytearray(good)
        at = rng.integers(8, len(good) - 8)
        content[at : at + 8] = [b"\xff" * 8, bytes(7) + b"\x40", b"\xff" * 7 + b"\x7f"][number % 3]
        paths.append(tmp_path / f"{number}.dgl")
        paths[-1].write_bytes(content)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(load, paths))
