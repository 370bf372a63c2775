"""The graph as partitioners want it: undirected, without loops, as a file. Runs on the login host.

The format is ParHIP's binary one, all numbers uint64: what follows has no weights (3), N, the
number of edges counted once for each direction, where in the file each node's neighbours begin
`[N + 1]`, and the neighbours. KaMinPar reads it, and METIS's process maps it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from distsage.data.csc import reverse
from distsage.data.graph import Topology
from distsage.files import allocate
from distsage.kernels.compiled import compiled
from distsage.kernels.rng import GOLDEN, mix64
from distsage.progress import elapsed, progress

_NO_WEIGHTS = 3
_HEADER_BYTES = 24
_CHUNK_EDGES = 1 << 20


@contextmanager
def undirected_file(topology: Topology, path: Path) -> Iterator[Path]:
    """Write a graph to `path`, which is removed after the block.

    Takes four numbers a node of memory, and no more for larger degrees than a chunk. A graph with
    edges that lack their reverse takes another file meanwhile, for the reversed edges.

    Args:
        topology: in-edges, sorted within each node. Duplicates and loops are left out.
        path: in an existing directory.

    Raises:
        OSError: the disk is full.
    """
    reversed_path = path.with_name(f"{path.name}-reversed")
    try:
        opposite = topology
        with elapsed("assigning nodes: adding reverse edges"):
            if not is_symmetric(topology):
                opposite = reverse(
                    topology, _mapped(reversed_path, topology.indices.dtype, topology.num_edges)
                )
        _write(topology, opposite, path)
        del opposite
        reversed_path.unlink(missing_ok=True)
        yield path
    finally:
        for each in (path, reversed_path):
            each.unlink(missing_ok=True)


def is_symmetric(topology: Topology) -> bool:
    """Whether each edge has its reverse, as often as itself.

    Sums of hashes are compared, which are equal by chance once in 2^64 graphs: looking up each
    edge's reverse would read the edges in random order.
    """
    return bool(_excess(topology.indptr, topology.indices) == 0)


def read_undirected(path: Path) -> Topology:
    """The graph that `undirected_file` wrote: indices int64, a memory map that may be written."""
    num_nodes = int(np.fromfile(path, np.uint64, 2)[1])
    indptr = np.fromfile(path, np.int64, num_nodes + 1, offset=_HEADER_BYTES)
    start = int(indptr[0])
    indptr = (indptr - start) // 8
    if indptr[-1] == 0:  # nothing cannot be mapped
        return Topology(indptr, np.empty(0, np.int64))
    return Topology(indptr, np.memmap(path, np.int64, "c", start, (int(indptr[-1]),)))


def _mapped(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    """A new file of `length` numbers, as a memory map."""
    allocate(path, length * dtype.itemsize)
    return np.memmap(path, dtype, "r+") if length else np.empty(0, dtype)


def _write(topology: Topology, opposite: Topology, path: Path) -> None:
    """Write the union of both, row by row, a chunk at a time."""
    num_nodes = topology.num_nodes
    most = np.diff(topology.indptr)
    most += np.diff(opposite.indptr)
    chunk = np.empty(max(_CHUNK_EDGES, int(most.max(initial=0))), np.int64)
    del most
    place = np.zeros(num_nodes + 1, np.int64)
    place[0] = _HEADER_BYTES + 8 * (num_nodes + 1)
    arrays = (topology.indptr, topology.indices, opposite.indptr, opposite.indices)
    what = "assigning nodes: writing what the partitioner reads"
    with open(path, "wb") as stream, progress(what, num_nodes, "nodes") as advance:
        stream.seek(int(place[0]))
        node = 0
        while node < num_nodes:
            first = node
            node, filled = _unite(*arrays, first, place, chunk)
            stream.write(chunk[:filled].data)
            advance(node - first)
        num_edges = (int(place[-1]) - int(place[0])) // 8
        stream.seek(0)
        stream.write(np.array([_NO_WEIGHTS, num_nodes, num_edges], np.uint64).data)
        stream.write(place.data)


@compiled
def _excess(indptr: np.ndarray, indices: np.ndarray) -> np.uint64:
    """The sum of hashes of edges to the larger of two nodes, less that of those to the smaller."""
    excess = np.uint64(0)
    for node in range(len(indptr) - 1):
        for edge in range(indptr[node], indptr[node + 1]):
            other = indices[edge]
            smaller, larger = np.uint64(min(node, other)), np.uint64(max(node, other))
            pair = mix64(smaller * GOLDEN + larger)
            excess += pair if other < node else -pair if other > node else np.uint64(0)
    return excess


@compiled
def _unite(
    indptr_a: np.ndarray,
    indices_a: np.ndarray,
    indptr_b: np.ndarray,
    indices_b: np.ndarray,
    first: int,
    place: np.ndarray,
    chunk: np.ndarray,
) -> tuple[int, int]:
    """Unite two sorted rows per node, without the node itself, from node `first` on.

    Fills `chunk` with as many rows as fit, and `place` after each of them with its end in the file.
    Returns the next node, and how much of the chunk is filled.
    """
    size = 0
    for node in range(first, len(indptr_a) - 1):
        a, end_a = indptr_a[node], indptr_a[node + 1]
        b, end_b = indptr_b[node], indptr_b[node + 1]
        if size + (end_a - a) + (end_b - b) > len(chunk):
            return node, size
        start = size
        last = -1
        while a < end_a or b < end_b:
            if b == end_b or (a < end_a and indices_a[a] <= indices_b[b]):
                neighbour = indices_a[a]
                a += 1
            else:
                neighbour = indices_b[b]
                b += 1
            if neighbour != last and neighbour != node:
                chunk[size] = neighbour
                size += 1
            last = neighbour
        place[node + 1] = place[node] + 8 * (size - start)
    return len(indptr_a) - 1, size
