"""Parts on disk in the format of DGL 1.1.3's `partition_graph`. Runs on the login host and readers.

DGL's own writer holds several int64 copies of the whole graph at once and reports an edge cut of 0.
Here arrays are written some rows at a time, so that no part has to fit into memory. What is not
rows DGL writes itself: a file without rows, which is taken apart and filled. What differs in the
files: the local graph is stored as CSC, which loads faster than DGL's COO; it leaves out the edges
*into* halo nodes, which nothing reads, since a node's in-edges are always asked of the part that
owns it; and what DGL leaves undefined in a header is zero, so that equal parts have equal bytes.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import dgl
import numpy as np
import torch
from dgl.data.utils import load_tensors, save_tensors

from distsage.partitioning.dgl_arrays import ARRAY, COUNT, MAGIC
from distsage.partitioning.manifest import NODE_DATA, NODE_TYPE, dgl_config

# A file of graphs begins with four numbers; the rest of this much is left as the stack had it.
_GRAPHS_HEADER = 4096
_DEFINED = 32
# The arrays of a graph without types, before those of its edges.
_METAGRAPH_ARRAYS = 6
# Values that are handled together.
_CHUNK = 1 << 20


class NodeData:
    """A file with data of a part's nodes, whose rows are written in any order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}

    @classmethod
    def create(
        cls, path: Path, num_rows: int, columns: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
    ) -> "NodeData":
        """Make the file, with room for its rows.

        Args:
            path: to create.
            num_rows: n.
            columns: by name, the type and the shape of a row. No bool, which DGL stores as uint8
                anyway.

        Raises:
            OSError: the disk is full.
        """
        data = cls(path)
        blank = {
            f"{NODE_TYPE}/{name}": torch.from_numpy(np.empty((0, *shape), dtype))
            for name, (dtype, shape) in columns.items()
        }
        template = _Template.of(lambda place: save_tensors(place, blank))
        names = [name.removeprefix(f"{NODE_TYPE}/") for name in template.keys(blank)]
        shapes = [(num_rows, *columns[name][1]) for name in names]
        with open(path, "wb") as stream:
            starts = template.write(stream.fileno(), shapes)
        for name, start in zip(names, starts, strict=True):
            dtype, shape = columns[name]
            data._places[name] = (start, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        return data

    @property
    def columns(self) -> Collection[str]:
        """Their names."""
        return self._places.keys()

    def write(self, name: str, first: int, rows: np.ndarray) -> None:
        """Write the rows `[k, ...]` of a column from row `first` on.

        Raises:
            OSError: the disk is full.
        """
        start, row_bytes = self._places[name]
        assert rows.nbytes == row_bytes * len(rows)
        with open(self._path, "r+b", buffering=0) as stream:
            _write_at(stream.fileno(), start + first * row_bytes, rows)


def write_graph(
    directory: Path,
    *,
    part: int,
    indptr: np.ndarray,
    sources: np.ndarray,
    offsets: np.ndarray,
    first_edge: int,
    advance: Callable[[int], object] = lambda count: None,
) -> int:
    """Write `graph.dgl` and an empty `edge_feat.dgl` of one part.

    The local graph has the part's own nodes first, in gid order, then its halo nodes, in gid order.

    Args:
        directory: of the part.
        part: the part's number.
        indptr: int64 `[n + 1]`, the bounds of the in-edges of the part's n nodes.
        sources: `[e]`, gids that these edges come from; may be a memory map.
        offsets: int64 `[P + 1]`, see `Order`.
        first_edge: global id of the part's first edge; the others follow.
        advance: told how many edges more are written.

    Returns:
        The number of halo nodes.

    Raises:
        OSError: the disk is full.
    """
    num_nodes, num_edges = int(offsets[-1]), len(sources)
    low, high = int(offsets[part]), int(offsets[part + 1])

    is_halo = np.zeros(num_nodes, bool)
    for start, end in _ranges(num_edges):
        is_halo[sources[start:end]] = True
    is_halo[low:high] = False
    halo_gid = np.flatnonzero(is_halo)
    del is_halo
    num_local = high - low + len(halo_gid)
    slot = np.empty(num_nodes, np.int64)
    slot[low:high] = np.arange(high - low)
    slot[halo_gid] = np.arange(high - low, num_local)

    def local_gid(start: int, end: int) -> np.ndarray:
        own = np.arange(low + start, low + min(end, high - low))
        halo = halo_gid[max(start - (high - low), 0) : max(end - (high - low), 0)]
        return np.concatenate([own, halo])

    def owner(start: int, end: int) -> np.ndarray:
        return np.searchsorted(offsets, local_gid(start, end), side="right").astype(np.int64) - 1

    def bounds(start: int, end: int) -> np.ndarray:
        own = indptr[start:end]
        return np.concatenate([own, np.full(end - start - len(own), num_edges)])  # none into halo

    content: dict[str, tuple[int, Callable[[int, int], np.ndarray]]] = {
        "indptr": (num_local + 1, bounds),
        "indices": (num_edges, lambda start, end: slot[sources[start:end]]),
        "edge ids": (0, np.arange),  # means: numbered as they stand
        f"node {dgl.NID}": (num_local, local_gid),
        "node inner_node": (
            num_local,
            lambda start, end: (np.arange(start, end) < high - low).astype(np.uint8),
        ),
        "node part_id": (num_local, owner),
        f"edge {dgl.EID}": (
            num_edges,
            lambda start, end: np.arange(first_edge + start, first_edge + end),
        ),
        "edge inner_edge": (num_edges, lambda start, end: np.ones(end - start, np.uint8)),
    }
    template, names = _graph_template()
    with open(directory / "graph.dgl", "wb") as stream:
        starts = template.with_nodes(num_local).write(
            stream.fileno(), [(content[name][0],) for name in names]
        )
        for name, place in zip(names, starts, strict=True):
            length, values = content[name]
            for start, end in _ranges(length):
                place = _write_at(stream.fileno(), place, values(start, end))
                if name == "indices":
                    advance(end - start)
    with open(directory / "edge_feat.dgl", "wb") as stream:
        _Template.of(lambda place: save_tensors(place, {})).write(stream.fileno(), [])
    return len(halo_gid)


def _ranges(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, _CHUNK):
        yield start, min(start + _CHUNK, length)


def _write_at(file: int, place: int, values: np.ndarray) -> int:
    """Write the values' bytes from `place` on, and return where they end."""
    rest = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    while rest:
        written = os.pwrite(file, rest, place)
        rest, place = rest[written:], place + written
    return place


@dataclass(frozen=True)
class _Template:
    """A file that DGL wrote of arrays without rows, taken apart.

    Attributes:
        pieces: the bytes before each array, and those after the last one.
        headers: of the arrays whose rows are to come, as far as the first axis.
        counts: (piece, place in it) of each number of nodes.
    """

    pieces: tuple[bytes, ...]
    headers: tuple[bytes, ...]
    counts: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, save: Callable[[str], object], fixed: int = 0) -> "_Template":
        """What `save` writes to the path that it is given; the first `fixed` arrays stay as is."""
        # In memory: a full disk, of which DGL says nothing, cannot cut it short.
        file = os.memfd_create("template")
        try:
            save(f"/proc/self/fd/{file}")
            content = os.pread(file, os.fstat(file).st_size, 0)
        finally:
            os.close(file)
        pieces, headers = [], []
        place = start = 0
        while (found := content.find(COUNT.pack(MAGIC), place)) >= 0:
            axes = ARRAY.unpack_from(content, found)[4]
            lengths = found + ARRAY.size
            (num_bytes,) = COUNT.unpack_from(content, lengths + axes * COUNT.size)
            place = lengths + (axes + 1) * COUNT.size + num_bytes
            if fixed > 0:
                fixed -= 1
                continue
            pieces.append(content[start:found])
            headers.append(content[found:lengths])
            start = place
        return cls((*pieces, content[start:]), tuple(headers))

    def keys(self, names: Mapping[str, object]) -> list[str]:
        """In the order of the file, the names that its arrays have."""
        return [
            next(name for name in names if piece.endswith(COUNT.pack(len(name)) + name.encode()))
            for piece in self.pieces[:-1]
        ]

    def with_nodes(self, num_nodes: int) -> "_Template":
        """For a graph of so many nodes."""
        pieces = [bytearray(piece) for piece in self.pieces]
        for piece, place in self.counts:
            COUNT.pack_into(pieces[piece], place, num_nodes)
        return replace(self, pieces=tuple(map(bytes, pieces)))

    def write(self, file: int, shapes: Sequence[tuple[int, ...]]) -> list[int]:
        """Write all but the arrays' values; return where those of each array start.

        Raises:
            OSError: the disk is full.
        """
        place, starts = 0, []
        for piece, header, shape in zip(self.pieces, self.headers, shapes, strict=False):
            bits = ARRAY.unpack(header)[6]
            num_bytes = int(np.prod(shape, dtype=np.int64)) * bits // 8
            numbers = b"".join(map(COUNT.pack, (*shape, num_bytes)))
            start = _write_at(file, place, np.frombuffer(piece + header + numbers, np.uint8))
            starts.append(start)
            place = start + num_bytes
        end = _write_at(file, place, np.frombuffer(self.pieces[-1], np.uint8))
        os.truncate(file, end)
        return starts


@cache
def _graph_template() -> tuple[_Template, list[str]]:
    """Of a part's graph, and what its arrays are."""
    templates = []
    for num_nodes in (0, 1):
        nothing = torch.empty(0, dtype=torch.int64)
        indptr = torch.zeros(num_nodes + 1, dtype=torch.int64)
        graph = dgl.graph(("csc", (indptr, nothing, nothing)), num_nodes=num_nodes)
        graph.ndata["part_id"] = torch.zeros(num_nodes, dtype=torch.int64)
        graph.ndata["inner_node"] = torch.zeros(num_nodes, dtype=torch.uint8)
        graph.ndata[dgl.NID] = torch.zeros(num_nodes, dtype=torch.int64)
        graph.edata["inner_edge"] = nothing.to(torch.uint8)
        graph.edata[dgl.EID] = nothing
        templates.append(
            _Template.of(
                partial(dgl.save_graphs, g_list=[graph], formats="csc"),
                fixed=_METAGRAPH_ARRAYS,
            )
        )
    # Where the two differ, the number of nodes stands.
    none, one = templates
    counts = tuple(
        (index, place)
        for index, (without, with_one) in enumerate(zip(none.pieces, one.pieces, strict=True))
        for place in range(_GRAPHS_HEADER if index == 0 else 0, len(without))
        if without[place] != with_one[place]
    )
    header = none.pieces[0][:_DEFINED].ljust(_GRAPHS_HEADER, b"\0")
    pieces = (header + none.pieces[0][_GRAPHS_HEADER:], *none.pieces[1:])
    assert len(counts) == 3, "DGL's files have another layout"
    frames = _Template(pieces[3:], none.headers[3:]).keys(
        dict.fromkeys(("part_id", dgl.NID, "inner_node", "inner_edge"))
    )
    names = [f"{kind} {key}" for kind, key in zip(["node"] * 3 + ["edge"] * 2, frames, strict=True)]
    return _Template(pieces, none.headers, counts), ["indptr", "indices", "edge ids", *names]


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
