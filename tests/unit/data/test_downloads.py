"""ogb's and DGL's datasets, laid out on disk as their archives have them; no network."""

import gzip
import hashlib
import os
import pickle
import zipfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import distsage.data.builtin
import distsage.data.ogb
from distsage.data.datasets import load_graph
from distsage.data.download import Source
from distsage.errors import UserError


def edge_list(graph) -> list[tuple[int, int]]:
    topology = graph.topology
    dst = np.repeat(np.arange(graph.num_nodes), np.diff(topology.indptr))
    return sorted(zip(topology.indices.tolist(), dst.tolist(), strict=True))


@pytest.fixture(autouse=True)
def no_questions(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on standard input"))


# --- Open Graph Benchmark

NUM_NODES, EDGES = 30, np.random.default_rng(5).integers(0, 30, (80, 2))
SPLIT = {"train": range(20), "valid": range(20, 24), "test": range(24, 30)}
OGB_FEATURES = np.random.default_rng(6).standard_normal((NUM_NODES, 5)).astype(np.float32)

SPLITS_OF_OGB = [("ogbn-arxiv", "time"), ("ogbn-products", "sales_ranking")]


def ogb_csv(directory: Path, split: str, features: np.ndarray = OGB_FEATURES) -> None:
    def save(name: str, values: object) -> None:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(values).to_csv(directory / f"{name}.csv.gz", header=False, index=False)

    save("raw/edge", EDGES)
    save("raw/num-node-list", [NUM_NODES])
    save("raw/num-edge-list", [len(EDGES)])
    save("raw/node-feat", features)
    save("raw/node-label", np.arange(NUM_NODES) % 7)
    save("raw/node_year", [2015] * NUM_NODES)
    for part, nodes in SPLIT.items():
        save(f"split/{split}/{part}", list(nodes))
    (directory / "processed").mkdir()
    (directory / "RELEASE_v1.txt").touch()


def check_ogb(graph, num_classes: int) -> None:
    np.testing.assert_allclose(graph.features, OGB_FEATURES, rtol=1e-6)
    assert (graph.labels.dtype, graph.num_classes) == (np.int64, num_classes)
    for mask, part in zip(("train_mask", "val_mask", "test_mask"), SPLIT, strict=True):
        assert np.flatnonzero(getattr(graph, mask)).tolist() == list(SPLIT[part])


@pytest.mark.parametrize(("name", "split"), SPLITS_OF_OGB)
def test_what_ogb_itself_reads(name: str, split: str, tmp_path: Path) -> None:
    directory = name.replace("-", "_")
    ogb_csv(tmp_path / directory, split)
    graph = load_graph(name, dataset_root=tmp_path)
    from ogb.nodeproppred import NodePropPredDataset

    theirs = NodePropPredDataset(name, root=str(tmp_path))
    content, labels = theirs[0]
    assert graph.num_nodes == content["num_nodes"]
    assert edge_list(graph) == sorted(map(tuple, content["edge_index"].T.tolist()))
    np.testing.assert_array_equal(graph.features, content["node_feat"])
    assert graph.labels.tolist() == labels[:, 0].tolist()
    assert graph.num_classes == theirs.num_classes
    masks = {"train": graph.train_mask, "valid": graph.val_mask, "test": graph.test_mask}
    for part, nodes in theirs.get_idx_split().items():
        assert np.flatnonzero(masks[part]).tolist() == sorted(nodes.tolist())


def test_arxiv_stays_directed_at_first_and_second_load(tmp_path):
    ogb_csv(tmp_path / "ogbn_arxiv", "time")
    for _ in range(2):
        graph = load_graph("ogbn-arxiv", dataset_root=tmp_path)
        check_ogb(graph, 40)
        assert graph.name == "ogbn-arxiv"
        assert graph.labels.tolist() == [v % 7 for v in range(NUM_NODES)]
        assert edge_list(graph) == sorted(map(tuple, EDGES.tolist()))


@pytest.mark.parametrize("spelling", ["ogbn-products", "ogb-product"])
def test_products_gains_the_inverse_edges(tmp_path, spelling):
    ogb_csv(tmp_path / "ogbn_products", "sales_ranking")
    for _ in range(2):
        graph = load_graph(spelling, dataset_root=tmp_path)
        check_ogb(graph, 47)
        assert graph.name == "ogbn-products"
        both = [*map(tuple, EDGES.tolist()), *map(tuple, EDGES[:, ::-1].tolist())]
        assert edge_list(graph) == sorted(both)


def test_integer_features_become_float32(tmp_path):
    features = np.arange(NUM_NODES * 3).reshape(NUM_NODES, 3)
    ogb_csv(tmp_path / "ogbn_arxiv", "time", features)
    graph = load_graph("ogbn-arxiv", dataset_root=tmp_path)
    assert graph.features.dtype == np.float32
    np.testing.assert_array_equal(graph.features, features)


def test_papers100m_has_unlabelled_nodes(tmp_path, monkeypatch):
    directory = tmp_path / "ogbn_papers100M"
    ogb_csv(directory, "time")
    for file in (directory / "raw").iterdir():
        file.unlink()
    np.savez(
        directory / "raw" / "data.npz",
        edge_index=EDGES.T,
        node_feat=OGB_FEATURES,
        node_year=np.full((NUM_NODES, 1), 2015),
        num_nodes_list=[NUM_NODES],
        num_edges_list=[len(EDGES)],
    )
    labels = (np.arange(NUM_NODES) % 7).astype(np.float32)[:, None]
    labels[24:] = np.nan
    np.savez(directory / "raw" / "node-label.npz", node_label=labels)
    pd.DataFrame([22, 23]).to_csv(directory / "split/time/test.csv.gz", header=False, index=False)
    pd.DataFrame([20, 21]).to_csv(directory / "split/time/valid.csv.gz", header=False, index=False)
    monkeypatch.setenv("DISTSAGE_DATASETS", str(tmp_path))
    graph = load_graph("ogbn-papers100M")
    assert graph.num_classes == 172
    assert graph.labels.tolist() == [*(v % 7 for v in range(24)), *[-1] * 6]
    assert edge_list(graph) == sorted(map(tuple, EDGES.tolist()))
    np.testing.assert_array_equal(graph.features, OGB_FEATURES)
    assert np.flatnonzero(graph.test_mask).tolist() == [22, 23]


@pytest.mark.parametrize(
    "file", ["RELEASE_v1.txt", "raw/edge.csv.gz", "raw/node-feat.csv.gz", "split/time/valid.csv.gz"]
)
def test_an_incomplete_copy_is_refused(tmp_path, file):
    ogb_csv(tmp_path / "ogbn_arxiv", "time")
    (tmp_path / "ogbn_arxiv" / file).unlink()
    with pytest.raises(UserError, match=rf"ogbn_arxiv/{file} is missing.*no complete copy"):
        load_graph("ogbn-arxiv", dataset_root=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "empty", "ragged"])
def test_a_damaged_copy_is_refused(tmp_path, damage):
    ogb_csv(tmp_path / "ogbn_arxiv", "time")
    path = tmp_path / "ogbn_arxiv/raw/node-feat.csv.gz"
    content = {
        "truncated": path.read_bytes()[:-50],
        "no gzip": b"1,2\n",
        "empty": b"",
        "ragged": gzip.compress(b"1,2\n1,2,3\n"),
    }
    path.write_bytes(content[damage])
    with pytest.raises(UserError, match="ogbn-arxiv"):
        load_graph("ogbn-arxiv", dataset_root=tmp_path)


def zipped(path: Path, folder: str, directory: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in directory.rglob("*"):
            archive.write(file, Path(folder) / file.relative_to(directory))


def serve_arxiv(archive: Path, monkeypatch, **changes: object) -> None:
    """Have ogbn-arxiv come from a file."""
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    source = Source(archive.as_uri(), most_bytes=1 << 20, sha256=sha256)
    facts = distsage.data.ogb._SETS["ogbn-arxiv"]
    changed = replace(facts, source=replace(source, **changes))
    monkeypatch.setitem(distsage.data.ogb._SETS, "ogbn-arxiv", changed)


def test_a_download_is_unpacked_whole(tmp_path, monkeypatch):
    """The archive of ogbn-arxiv holds one folder, `arxiv`."""
    ogb_csv(tmp_path / "source", "time")
    zipped(tmp_path / "arxiv.zip", "arxiv", tmp_path / "source")
    serve_arxiv(tmp_path / "arxiv.zip", monkeypatch)
    for _ in range(2):
        check_ogb(load_graph("ogbn-arxiv", dataset_root=tmp_path / "root"), 40)
    assert [entry.name for entry in (tmp_path / "root").iterdir()] == ["ogbn_arxiv"]


def test_a_damaged_download_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "arxiv.zip").write_bytes(b"PK no zip")
    serve_arxiv(tmp_path / "arxiv.zip", monkeypatch)
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_graph("ogbn-arxiv", dataset_root=tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


# --- DGL's datasets


def address_hash(name: str) -> str:
    """The directory that DGL 1.1.3 uses for an archive at its usual address."""
    url = f"https://data.dgl.ai/dataset/{name}.zip"
    return f"{name}_{hashlib.sha1(url.encode()).hexdigest()[:8]}"


REDDIT_NODES = 40


def reddit(directory: Path) -> scipy.sparse.coo_matrix:
    """A ring with chords in both directions; feature of node v is v, its label v mod 41."""
    directory.mkdir(parents=True)
    v = np.arange(REDDIT_NODES)
    src = np.concatenate([v, v, (v + 1) % REDDIT_NODES, (v + 7) % REDDIT_NODES])
    dst = np.concatenate([(v + 1) % REDDIT_NODES, (v + 7) % REDDIT_NODES, v, v])
    matrix = scipy.sparse.coo_matrix((np.ones(len(src)), (src, dst)), (REDDIT_NODES,) * 2)
    scipy.sparse.save_npz(directory / "reddit_graph.npz", matrix)
    np.savez(
        directory / "reddit_data.npz",
        feature=v[:, None] * np.ones(3),
        label=v,
        node_types=np.repeat([1, 2, 3], [20, 8, 12]),
    )
    return matrix


def test_reddit_at_first_and_second_load(tmp_path):
    directory = tmp_path / address_hash("reddit")
    assert directory.name == "reddit_69f818f5"
    matrix = reddit(directory)
    loads = [load_graph("reddit", dataset_root=tmp_path) for _ in range(2)]
    assert (directory / "dgl_graph.bin").exists()
    for graph in loads:
        assert (graph.num_classes, graph.name, graph.original_ids) == (41, "reddit", None)
        # DGL renumbers: whatever the order, features, labels, masks and edges belong together.
        node = graph.features[:, 0].astype(int)
        assert sorted(node) == list(range(REDDIT_NODES))
        assert graph.features.shape == (REDDIT_NODES, 3)
        np.testing.assert_array_equal(graph.labels, node)
        np.testing.assert_array_equal(graph.train_mask, node < 20)
        np.testing.assert_array_equal(graph.test_mask, node >= 28)
        named = sorted((int(node[u]), int(node[v])) for u, v in edge_list(graph))
        assert named == sorted(zip(matrix.row.tolist(), matrix.col.tolist(), strict=True))
    np.testing.assert_array_equal(loads[0].features, loads[1].features)


def test_damaged_reddit_is_refused(tmp_path):
    directory = tmp_path / address_hash("reddit")
    reddit(directory)
    path = directory / "reddit_data.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="reddit cannot be read"):
        load_graph("reddit", dataset_root=tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"reddit_data\.npz"):
        load_graph("reddit", dataset_root=tmp_path)


CITED = 620  # train 40 + val 500 + 60 others, of which the last 20 are test
CLASSES = 3


def planetoid(directory: Path, name: str) -> tuple[np.ndarray, np.ndarray, set[tuple[int, int]]]:
    """The eight files of one citation graph, as pickles of protocol 2; a ring with chords."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(8)
    features = (rng.random((CITED, 9)) < 0.4).astype(np.float32)
    features[:, 0] = 1
    labels = np.arange(CITED) % CLASSES
    onehot = np.eye(CLASSES, dtype=np.int32)[labels]
    test = rng.permutation(np.arange(CITED - 20, CITED))
    neighbours = defaultdict(list)
    edges = set()
    for node in range(CITED):
        for other in ((node + 1) % CITED, (node + 31) % CITED):
            neighbours[node].append(other)
            neighbours[other].append(node)
            edges |= {(node, other), (other, node)}
    rest = CITED - 20
    objects = {
        "x": scipy.sparse.csr_matrix(features[:40]),
        "y": onehot[:40],
        "allx": scipy.sparse.csr_matrix(features[:rest]),
        "ally": onehot[:rest],
        "tx": scipy.sparse.csr_matrix(features[test]),
        "ty": onehot[test],
        "graph": neighbours,
    }
    for key, value in objects.items():
        (directory / f"ind.{name}.{key}").write_bytes(pickle.dumps(value, protocol=2))
    (directory / f"ind.{name}.test.index").write_text("\n".join(map(str, test)))
    return features, labels, edges


@pytest.mark.parametrize("name", ["cora", "citeseer", "pubmed"])
def test_citation_graphs_at_first_and_second_load(tmp_path, name):
    stored = {"cora": "cora_v2"}.get(name, name)
    directory = tmp_path / address_hash(stored)
    features, labels, edges = planetoid(directory, stored)
    files = sorted(os.listdir(directory))
    for _ in range(2):
        graph = load_graph(name, dataset_root=tmp_path)
        assert (graph.name, graph.num_classes) == (name, CLASSES)
        normalised = features / features.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(graph.features, normalised, rtol=1e-6)
        np.testing.assert_array_equal(graph.labels, labels)
        assert set(edge_list(graph)) == edges
        assert len(edge_list(graph)) == len(edges)
        node = np.arange(CITED)
        np.testing.assert_array_equal(graph.train_mask, node < 40)
        np.testing.assert_array_equal(graph.val_mask, (node >= 40) & (node < 540))
        np.testing.assert_array_equal(graph.test_mask, node >= CITED - 20)
    assert sorted(os.listdir(directory)) == files


class Runs:
    """Unpickling this calls os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_download_runs_nothing(tmp_path):
    directory = tmp_path / address_hash("cora_v2")
    planetoid(directory, "cora_v2")
    (directory / "ind.cora_v2.graph").write_bytes(pickle.dumps(Runs(tmp_path / "ran"), protocol=2))
    with pytest.raises(UserError, match=r"cora cannot be read.*mkdir"):
        load_graph("cora", dataset_root=tmp_path)
    # DGL's own cache, had the archive brought one, is not opened either.
    (directory / "cora_v2_dgl_graph.bin").touch()
    (directory / "cora_v2_dgl_graph.pkl").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(UserError, match="cora cannot be read"):
        load_graph("cora", dataset_root=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickles_of_python_2_are_read(tmp_path):
    """As the originals were written: module names of Python 2, numpy 1 and an old scipy."""
    planetoid(tmp_path / address_hash("pubmed"), "pubmed")
    for path in (tmp_path / address_hash("pubmed")).glob("ind.pubmed.*"):
        data = path.read_bytes()
        for new, old in (
            (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"),
            (b"cscipy.sparse._csr\n", b"cscipy.sparse.csr\n"),
            (b"cbuiltins\n", b"c__builtin__\n"),
        ):
            data = data.replace(new, old)
        path.write_bytes(data)
    assert load_graph("pubmed", dataset_root=tmp_path).num_nodes == CITED


def test_a_dgl_archive_is_fetched_into_its_directory(tmp_path, monkeypatch):
    """The archives of DGL hold their files at the top."""
    reddit(tmp_path / "source")
    (tmp_path / "dataset").mkdir()
    zipped(tmp_path / "dataset/reddit.zip", ".", tmp_path / "source")
    monkeypatch.setenv("DGL_REPO", tmp_path.as_uri())
    sha256 = hashlib.sha256((tmp_path / "dataset/reddit.zip").read_bytes()).hexdigest()
    monkeypatch.setitem(distsage.data.builtin._SHA256, "reddit", sha256)
    graph = load_graph("reddit", dataset_root=tmp_path / "root")
    assert graph.num_nodes == REDDIT_NODES
    (directory,) = (tmp_path / "root").iterdir()
    assert (directory / "reddit_graph.npz").exists()
