"""Parts on disk in the format of DGL 1.1.3's `partition_graph`. Runs on the login host.

DGL's own writer holds several int64 copies of the whole graph at once and reports an edge cut of 0.
Here arrays are written some rows at a time, so that no part has to fit into memory, and DGL is not
imported: that takes longer than writing a small graph, and more memory. What differs in the
files: the local graph is stored as CSC, which loads faster than DGL's COO; it leaves out the edges
*into* halo nodes, which nothing reads, since a node's in-edges are always asked of the part that
owns it; and what DGL leaves undefined in a header is zero, so that equal parts have equal bytes.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from distsage.kernels.compiled import compiled
from distsage.partitioning.dgl_arrays import COUNT, FILE_MAGIC, array_header
from distsage.partitioning.manifest import NODE_TYPE, dgl_config

_ID = "_ID"
"""What DGL calls the data with the ids of a part's nodes or edges in the whole graph."""
# Columns of nodes in the order in which DGL's writer leaves them, that of a hash table.
_COLUMNS = ("test_mask", "val_mask", "train_mask", "labels", "features")

# A file of graphs begins with this magic number, its version, the kind of graphs and how many there
# are. The rest of this much is undefined. Then come where the graphs begin, and labels.
_GRAPHS = (0xDD2E4FF046B4A13F, 2, 2, 1)
_GRAPHS_HEADER = 4096
# Before a graph of typed nodes and edges, and what it is made of: the graph of its types, one graph
# for each type of edges, and its matrix.
_TYPED_GRAPH = 0xDD589FBE35224ABF
_TYPES_GRAPH = 0xDD3C5FFE20046ABF
_EDGES_GRAPH = 0xDD2E60F0F6B4A127
_MATRIX = 0xDD6CD31205DFF127
# The format in which a graph is stored, and those that it may take: CSC, and any.
_FORMATS = (1 << 32 | 4, 1 << 32 | 7)
_NOT_SORTED = b"\0"
# Values that are handled together.
_CHUNK = 1 << 18


class NodeData:
    """A file with data of a part's nodes, whose rows are written in any order, by any thread."""

    def __init__(self, path: Path, places: Mapping[str, tuple[int, int]]) -> None:
        self._path = path
        self._places = places

    @classmethod
    def create(
        cls, path: Path, num_rows: int, columns: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
    ) -> "NodeData":
        """Make the file, with room for its rows.

        Args:
            path: to create.
            num_rows: n.
            columns: by name, one of `_COLUMNS`, the type and the shape of a row. No bool, which DGL
                stores as uint8 anyway.

        Raises:
            OSError: the disk is full.
        """
        rows = [
            _Rows(name, columns[name][0], (num_rows, *columns[name][1]))
            for name in _COLUMNS
            if name in columns
        ]
        assert len(rows) == len(columns)
        content: list[bytes | _Rows] = [_words(FILE_MAGIC, len(rows), len(rows))]
        for each in rows:
            content += [_text(f"{NODE_TYPE}/{each.name}"), each]
        with open(path, "wb") as stream:
            starts = _lay_out(stream.fileno(), content)
        row_bytes = {
            each.name: each.dtype.itemsize * int(np.prod(each.shape[1:], dtype=np.int64))
            for each in rows
        }
        return cls(path, {name: (starts[name], row_bytes[name]) for name in starts})

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
            write_at(stream.fileno(), start + first * row_bytes, rows)


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
    num_edges = len(sources)
    low, high = int(offsets[part]), int(offsets[part + 1])

    slot = np.zeros(int(offsets[-1]), sources.dtype)
    for start, end in _ranges(num_edges):
        _mark_halo(sources[start:end], low, high, slot)
    halo_gid = np.flatnonzero(slot)
    num_local = high - low + len(halo_gid)
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

    def local_sources(start: int, end: int) -> np.ndarray:
        local = np.empty(end - start, np.int64)
        _number(sources[start:end], low, high, slot, local)
        return local

    values: dict[str, Callable[[int, int], np.ndarray]] = {
        "indptr": bounds,
        "indices": local_sources,
        "edge ids": np.arange,  # there are none, which means: numbered as they stand
        "node ids": local_gid,
        "inner node": lambda start, end: (np.arange(start, end) < high - low).astype(np.uint8),
        "part": owner,
        "global edge ids": lambda start, end: np.arange(first_edge + start, first_edge + end),
        "inner edge": lambda start, end: np.ones(end - start, np.uint8),
    }
    content = _graph(num_local, num_edges)
    with open(directory / "graph.dgl", "wb") as stream:
        starts = _lay_out(stream.fileno(), content)
        for rows in content:
            if isinstance(rows, bytes):
                continue
            place = starts[rows.name]
            for start, end in _ranges(rows.shape[0]):
                place = write_at(stream.fileno(), place, values[rows.name](start, end))
                if rows.name == "indices":
                    advance(end - start)
    (directory / "edge_feat.dgl").write_bytes(_words(FILE_MAGIC, 0, 0))
    return len(halo_gid)


def write_at(file: int, place: int, values: np.ndarray) -> int:
    """Write the values' bytes from `place` on, and return where they end.

    Raises:
        OSError: the disk is full.
    """
    rest = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    while rest:
        written = os.pwrite(file, rest, place)
        rest, place = rest[written:], place + written
    return place


def _ranges(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, _CHUNK):
        yield start, min(start + _CHUNK, length)


@compiled
def _mark_halo(sources: np.ndarray, low: int, high: int, mark: np.ndarray) -> None:
    """Set the marks of those sources that are outside [low, high)."""
    for edge in range(len(sources)):
        source = sources[edge]
        if source < low or source >= high:
            mark[source] = 1


@compiled
def _number(sources: np.ndarray, low: int, high: int, slot: np.ndarray, local: np.ndarray) -> None:
    """Number sources from `low` on, and those outside [low, high) as `slot` says."""
    for edge in range(len(sources)):
        source = sources[edge]
        local[edge] = source - low if low <= source < high else slot[source]


@dataclass(frozen=True)
class _Rows:
    """An array of a file, whose values are to come.

    Attributes:
        name: for us.
        dtype: of its values.
        shape: of all of it.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


def _lay_out(file: int, content: Iterable[bytes | _Rows]) -> dict[str, int]:
    """Write a file but for the arrays' values; return where those of each array start, by name.

    Raises:
        OSError: the disk is full.
    """
    place, starts = 0, {}
    for piece in content:
        if isinstance(piece, bytes):
            place = write_at(file, place, np.frombuffer(piece, np.uint8))
            continue
        header = array_header(piece.dtype, piece.shape)
        starts[piece.name] = write_at(file, place, np.frombuffer(header, np.uint8))
        count = int(np.prod(piece.shape, dtype=np.int64))
        place = starts[piece.name] + piece.dtype.itemsize * count
    os.truncate(file, place)
    return starts


def _graph(num_nodes: int, num_edges: int) -> list[bytes | _Rows]:
    """The file of one graph with one type of nodes and one of edges."""

    def rows(name: str, length: int, dtype: type = np.int64) -> _Rows:
        return _Rows(name, np.dtype(dtype), (length,))

    types = _words(_TYPES_GRAPH, _MATRIX, 1, 1)  # one edge between one node and itself
    for values in ([0, 1], [0], [0]):
        types += array_header(np.dtype(np.int64), (len(values),)) + _words(*values)
    types += _NOT_SORTED
    start = _GRAPHS_HEADER + 2 * COUNT.size
    return [
        _words(*_GRAPHS).ljust(_GRAPHS_HEADER, b"\0") + _words(start, 0),
        _words(_TYPED_GRAPH) + types + _words(1),
        _words(_EDGES_GRAPH, *_FORMATS) + types,
        _words(_MATRIX, num_nodes, num_nodes),
        rows("indptr", num_nodes + 1),
        rows("indices", num_edges),
        rows("edge ids", 0),
        _NOT_SORTED + _words(1, num_nodes),
        _words(1, 3) + _text(_ID),
        rows("node ids", num_nodes),
        _text("inner_node"),
        rows("inner node", num_nodes, np.uint8),
        _text("part_id"),
        rows("part", num_nodes),
        _words(1, 2) + _text(_ID),
        rows("global edge ids", num_edges),
        _text("inner_edge"),
        rows("inner edge", num_edges, np.uint8),
        _words(1) + _text("_N") + _words(1) + _text("_E"),
        # Where each graph begins, and how long that list is, before and behind it.
        _words(16, 1, start, 16),
    ]


def _words(*numbers: int) -> bytes:
    return b"".join(map(COUNT.pack, numbers))


def _text(text: str) -> bytes:
    return _words(len(text)) + text.encode()


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
