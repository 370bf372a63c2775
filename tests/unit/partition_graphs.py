"""Small graphs for the tests of partitioning, and a full check of what was written for them."""

from pathlib import Path

import dgl
import numpy as np
import pytest
import scipy.sparse

from distsage.data.csc import csc_from_edges
from distsage.data.graph import Graph, Topology
from distsage.partitioning.parts import Parts
from distsage.partitioning.verify import verify


def make_graph(src: np.ndarray, dst: np.ndarray, num_nodes: int, **changes: object) -> Graph:
    """Feature of v: (v, 2v). Label: v mod 3. Masks: v mod 4 = 0 train, 1 val, else test."""
    v = np.arange(num_nodes)
    values = {
        "name": "small",
        "topology": csc_from_edges(src, dst, num_nodes),
        "features": np.stack((v, 2 * v), 1).astype(np.float32),
        "labels": v % 3,
        "num_classes": 3,
        "train_mask": v % 4 == 0,
        "val_mask": v % 4 == 1,
        "test_mask": v % 4 >= 2,
    }
    return Graph(**(values | changes))  # type: ignore[arg-type]


def ring(num_nodes: int, **changes: object) -> Graph:
    """Edges v -> v+1 and v -> v+2."""
    v = np.arange(num_nodes)
    src, dst = np.concatenate((v, v)), np.concatenate((v + 1, v + 2)) % num_nodes
    return make_graph(src, dst, num_nodes, **changes)


def random_directed(num_nodes: int, num_edges: int, seed: int = 0, **changes: object) -> Graph:
    """Random edges, some repeated, some loops; the last tenth of the nodes are isolated."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, num_nodes * 9 // 10, (2, num_edges))
    return make_graph(ends[0], ends[1], num_nodes, **changes)


def communities(num_blocks: int, size: int, seed: int = 0) -> Graph:
    """Planted communities, undirected: 95 % of the edges stay inside; ids are shuffled."""
    rng = np.random.default_rng(seed)
    num_nodes = num_blocks * size
    src = rng.integers(0, num_nodes, 8 * num_nodes)
    near = src // size * size + rng.integers(0, size, len(src))
    far = rng.integers(0, num_nodes, len(src))
    dst = np.where(rng.random(len(src)) < 0.95, near, far)
    shuffled = rng.permutation(num_nodes)
    src, dst = shuffled[src], shuffled[dst]
    return make_graph(np.concatenate((src, dst)), np.concatenate((dst, src)), num_nodes)


def edges_of(topology: Topology) -> tuple[np.ndarray, np.ndarray]:
    """Sources and destinations, sorted by destination, then by source."""
    dst = np.repeat(np.arange(topology.num_nodes), np.diff(topology.indptr))
    return np.asarray(topology.indices, np.int64), dst


def sorted_pairs(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    order = np.lexsort((src, dst))
    return np.stack((src[order], dst[order]))


def check_parts(graph: Graph, path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Compare a directory with its graph, through stock DGL and through `Parts`."""
    monkeypatch.setenv("DGL_DIST_DEBUG", "1")  # load_partition then checks its partition book
    parts = Parts.open(path)
    verify(parts)
    oid = np.asarray(parts.original_ids())
    names = np.arange(graph.num_nodes) if graph.original_ids is None else graph.original_ids
    place = {name: v for v, name in enumerate(names.tolist())}
    position = np.array([place[name] for name in oid.tolist()])  # gid -> position in the graph
    assert sorted(position) == list(range(graph.num_nodes))
    dense = graph.features.toarray() if scipy.sparse.issparse(graph.features) else graph.features

    gid = np.argsort(position)
    src, dst = edges_of(graph.topology)
    expected = sorted_pairs(gid[src], gid[dst])
    topology = parts.topology()
    np.testing.assert_array_equal(np.stack(edges_of(topology)), expected)
    with pytest.raises(ValueError, match="read-only"):
        topology.indptr[0] = 1

    owner = np.searchsorted(parts.offsets, np.arange(graph.num_nodes), side="right") - 1
    all_src, all_dst, all_eid = [], [], []
    for part, summary in enumerate(parts.manifest.parts):
        local, node_data, edge_data, book, name, node_types, edge_types = (
            dgl.distributed.load_partition(str(parts.dgl_config), part)
        )
        assert (name, node_types, edge_types) == (graph.name, ["_N"], [("_N", "_E", "_N")])
        assert edge_data == {}
        low, high = summary.nodes
        np.testing.assert_array_equal(book.nid2partid(dgl.backend.arange(0, len(oid))), owner)
        np.testing.assert_array_equal(book.partid2nids(part), np.arange(low, high))

        local_gid = local.ndata[dgl.NID].numpy()
        inner = local.ndata["inner_node"].numpy().astype(bool)
        np.testing.assert_array_equal(local_gid[inner], np.arange(low, high))
        assert inner[: high - low].all()
        np.testing.assert_array_equal(local.ndata["part_id"], owner[local_gid])
        into = (expected[1] >= low) & (expected[1] < high)
        sources = expected[0][into]
        halo = np.unique(sources[(sources < low) | (sources >= high)])
        np.testing.assert_array_equal(local_gid[~inner], halo)
        assert summary.halo_nodes == len(halo)
        assert summary.cut_edges == np.count_nonzero(owner[sources] != part)

        local_src, local_dst = (ends.numpy() for ends in local.edges(order="eid"))
        all_src.append(local_gid[local_src])
        all_dst.append(local_gid[local_dst])
        all_eid.append(local.edata[dgl.EID].numpy())
        assert local.edata["inner_edge"].all()
        np.testing.assert_array_equal(all_eid[-1], np.arange(*summary.edges))
        np.testing.assert_array_equal(book.partid2eids(part), np.arange(*summary.edges))

        mine = position[low:high]
        rows = {
            "features": dense,
            "labels": graph.labels,
            "train_mask": graph.train_mask,
            "val_mask": graph.val_mask,
            "test_mask": graph.test_mask,
        }
        ours = parts.load_part(part)
        for key, whole in rows.items():
            np.testing.assert_array_equal(node_data[f"_N/{key}"], whole[mine])
            found = ours[key].toarray() if scipy.sparse.issparse(ours[key]) else ours[key]
            np.testing.assert_array_equal(found, whole[mine])
        for key, mapped in parts.map_part(part).items():
            np.testing.assert_array_equal(mapped, ours[key])
        assert ours["features"].dtype == np.float32
        assert ours["train_mask"].dtype == np.uint8
        for mask in ("train", "val", "test"):
            count = np.count_nonzero(rows[f"{mask}_mask"][mine])
            assert getattr(summary, f"{mask}_nodes") == count
        size = sum(file.stat().st_size for file in (path / f"part{part}").iterdir())
        assert summary.bytes == size
    np.testing.assert_array_equal(
        sorted_pairs(np.concatenate(all_src), np.concatenate(all_dst)), expected
    )
    np.testing.assert_array_equal(np.concatenate(all_eid), np.arange(len(src)))
    assert parts.manifest.edge_cut == np.count_nonzero(owner[expected[0]] != owner[expected[1]])
    return parts
