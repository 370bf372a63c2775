"""Parts on disk in the format of DGL 1.1.3's `partition_graph`. Runs on the login host and readers.

DGL's own writer holds several int64 copies of the whole graph at once and reports an edge cut of 0;
this one handles one part at a time. What differs in the files: the local graph is stored as CSC,
which loads faster than DGL's COO, and it leaves out the edges *into* halo nodes, which nothing
reads, since a node's in-edges are always asked of the part that owns it.
"""

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import dgl
import numpy as np
import torch
from dgl.data.utils import load_tensors, save_tensors

from distsage.data.graph import Topology
from distsage.partitioning.manifest import NODE_DATA, NODE_TYPE, dgl_config


def write_part(
    directory: Path,
    *,
    part: int,
    topology: Topology,
    offsets: np.ndarray,
    first_edge: int,
    node_data: Mapping[str, np.ndarray],
) -> int:
    """Write `graph.dgl`, the data of the nodes and an empty `edge_feat.dgl` of one part.

    The local graph has the part's own nodes first, in gid order, then its halo nodes, in gid order.

    Args:
        directory: created here.
        part: the part's number.
        topology: in-edges of the part's n nodes, sources as gids.
        offsets: int64 `[P + 1]`, see `Order`.
        first_edge: global id of the part's first edge; the others follow.
        node_data: rows of the part's nodes by name, `[n, ...]` each; no bool, which DGL stores as
            uint8 anyway.

    Returns:
        The number of halo nodes.

    Raises:
        OSError: the disk is full.
    """
    num_nodes = int(offsets[-1])
    low, high = int(offsets[part]), int(offsets[part + 1])

    is_halo = np.zeros(num_nodes, bool)
    is_halo[topology.indices] = True
    is_halo[low:high] = False
    halo_gid = np.flatnonzero(is_halo)
    del is_halo
    local_gid = np.concatenate([np.arange(low, high), halo_gid])
    slot = np.empty(num_nodes, np.int64)
    slot[local_gid] = np.arange(len(local_gid))

    num_local, num_edges = len(local_gid), topology.num_edges
    indptr = np.full(num_local + 1, num_edges, np.int64)
    indptr[: high - low + 1] = topology.indptr
    indices = slot[topology.indices]
    del slot
    part_id = np.searchsorted(offsets, local_gid, side="right").astype(np.int64) - 1
    node_frame = {
        "part_id": torch.from_numpy(part_id),
        "inner_node": (torch.arange(num_local) < high - low).to(torch.uint8),
        dgl.NID: torch.from_numpy(local_gid),
    }
    edge_frame = {
        "inner_edge": torch.ones(num_edges, dtype=torch.uint8),
        dgl.EID: torch.arange(first_edge, first_edge + num_edges),
    }
    directory.mkdir()
    _save_graph(directory / "graph.dgl", Topology(indptr, indices), node_frame, edge_frame)
    write_node_data(directory / NODE_DATA, node_data)
    _save_tensors(directory / "edge_feat.dgl", {})
    return len(halo_gid)


def write_node_data(path: Path, node_data: Mapping[str, np.ndarray]) -> None:
    """Write rows of a part's own nodes by name, as for `write_part`.

    Raises:
        OSError: the disk is full.
    """
    _save_tensors(
        path, {f"{NODE_TYPE}/{name}": torch.from_numpy(rows) for name, rows in node_data.items()}
    )


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with _writing(path):
        save_tensors(str(path), _without_rows(tensors))
        overhead = path.stat().st_size
        save_tensors(str(path), dict(tensors))
    _check_whole(path, overhead + _bytes(tensors))


def _save_graph(
    path: Path,
    topology: Topology,
    node_frame: Mapping[str, torch.Tensor],
    edge_frame: Mapping[str, torch.Tensor],
) -> None:
    def save(
        topology: Topology,
        node_frame: Mapping[str, torch.Tensor],
        edge_frame: Mapping[str, torch.Tensor],
    ) -> None:
        no_edge_ids = torch.empty(0, dtype=torch.int64)  # means: numbered as they stand
        indptr, indices = torch.from_numpy(topology.indptr), torch.from_numpy(topology.indices)
        graph = dgl.graph(("csc", (indptr, indices, no_edge_ids)), num_nodes=topology.num_nodes)
        graph.ndata.update(node_frame)
        graph.edata.update(edge_frame)
        with _writing(path):
            dgl.save_graphs(str(path), [graph], formats="csc")

    nothing = Topology(np.zeros(1, np.int64), np.empty(0, np.int64))
    save(nothing, _without_rows(node_frame), _without_rows(edge_frame))
    overhead = path.stat().st_size - nothing.indptr.nbytes
    save(topology, node_frame, edge_frame)
    payload = topology.indptr.nbytes + topology.indices.nbytes
    _check_whole(path, overhead + payload + _bytes(node_frame) + _bytes(edge_frame))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """DGL's error says where in its code a write failed, and no more."""
    try:
        yield
    except dgl.DGLError as error:
        raise OSError(errno.ENOSPC, "the file could not be written", str(path)) from error


def _without_rows(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: rows[:0] for name, rows in tensors.items()}


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(rows.nbytes for rows in tensors.values())


def _check_whole(path: Path, expected: int) -> None:
    """DGL's writer says nothing when the disk is full at the file's last bytes.

    What a file has besides its rows does not depend on their number, so a file without rows tells
    how long the whole one has to be.
    """
    found = path.stat().st_size
    if found != expected:
        raise OSError(errno.ENOSPC, f"only {found} of {expected} bytes could be written", str(path))


def write_config(
    path: Path,
    *,
    graph_name: str,
    part_method: str,
    node_offsets: np.ndarray,
    edge_offsets: np.ndarray,
    node_data: str,
) -> None:
    """Write the JSON that `dgl.distributed` opens; `path` lies beside the `part<i>` directories."""

    def ranges(offsets: np.ndarray) -> list[tuple[int, int]]:
        return [(int(low), int(high)) for low, high in pairwise(offsets)]

    config = dgl_config(
        graph_name, part_method, ranges(node_offsets), ranges(edge_offsets), node_data
    )
    path.write_text(json.dumps(config, indent=4))


def read_node_data(directory: Path) -> dict[str, np.ndarray]:
    """The rows of a part's own nodes by name, `[n, ...]` each, in gid order."""
    tensors = load_tensors(str(directory / NODE_DATA))
    return {name.removeprefix(f"{NODE_TYPE}/"): rows.numpy() for name, rows in tensors.items()}
