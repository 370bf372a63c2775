"""Files that are written some rows at a time have the bytes that DGL's own writer gives them."""

from itertools import pairwise
from pathlib import Path

import dgl
import numpy as np
import pytest
import torch
from dgl.data.utils import save_tensors

from distsage.partitioning import dgl_format
from distsage.partitioning.dgl_format import NodeData, write_graph
from tests.unit.partition_graphs import random_directed

MASKS = ("train", "val", "test")
# DGL leaves this much of a graph file's header as it was on the stack.
UNDEFINED = slice(32, 4096)


@pytest.mark.parametrize("order", ["in order", "by and by", "backwards"])
@pytest.mark.parametrize("shape", [(), (5,)], ids=["classes", "label matrix"])
@pytest.mark.parametrize("with_features", [True, False])
def test_node_data(order: str, shape: tuple[int, ...], with_features: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {
        "features": rng.normal(size=(41, 3)).astype(np.float32),
        "labels": rng.integers(0, 2, (41, *shape)),
        **{f"{name}_mask": rng.integers(0, 2, 41).astype(np.uint8) for name in MASKS},
    }
    if not with_features:
        del rows["features"]
    tensors = {f"_N/{name}": torch.from_numpy(values) for name, values in rows.items()}
    save_tensors(str(tmp_path / "theirs"), tensors)
    columns = {name: (values.dtype, values.shape[1:]) for name, values in rows.items()}
    data = NodeData.create(tmp_path / "ours", 41, columns)
    ranges = list(pairwise([0, 41] if order == "in order" else [0, 7, 8, 8, 30, 41]))
    for first, last in reversed(ranges) if order == "backwards" else ranges:
        for name, values in rows.items():
            data.write(name, first, values[first:last])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("num_edges", [0, 400])
def test_graph(num_edges: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dgl_format, "_CHUNK", 17)
    topology = random_directed(60, num_edges).topology
    offsets = np.array([0, 20, 45, 60])
    low, high, first_edge = 20, 45, int(topology.indptr[20])
    sources = topology.indices[first_edge : topology.indptr[45]]
    indptr = topology.indptr[20:46] - first_edge
    num_halo = write_graph(
        tmp_path, part=1, indptr=indptr, sources=sources, offsets=offsets, first_edge=first_edge
    )

    halo = np.unique(sources[(sources < low) | (sources >= high)])
    assert num_halo == len(halo)
    gid = np.concatenate([np.arange(low, high), halo])
    slots = np.zeros(60, np.int64)
    slots[gid] = np.arange(len(gid))
    edges = torch.arange(len(sources))
    bounds = np.concatenate([indptr, np.full(len(halo), len(sources))])
    graph = dgl.graph(
        ("csc", (torch.from_numpy(bounds), torch.from_numpy(slots[sources]), edges[:0])),
        num_nodes=len(gid),
    )
    graph.ndata["part_id"] = torch.from_numpy(np.searchsorted(offsets, gid, side="right") - 1)
    graph.ndata["inner_node"] = (torch.arange(len(gid)) < high - low).to(torch.uint8)
    graph.ndata[dgl.NID] = torch.from_numpy(gid)
    graph.edata["inner_edge"] = torch.ones(len(sources), dtype=torch.uint8)
    graph.edata[dgl.EID] = first_edge + edges
    dgl.save_graphs(str(tmp_path / "theirs"), [graph], formats="csc")
    theirs, ours = (bytearray((tmp_path / name).read_bytes()) for name in ("theirs", "graph.dgl"))
    assert not any(ours[UNDEFINED])
    theirs[UNDEFINED] = ours[UNDEFINED]
    assert ours == theirs

    save_tensors(str(tmp_path / "nothing"), {})
    assert (tmp_path / "edge_feat.dgl").read_bytes() == (tmp_path / "nothing").read_bytes()
