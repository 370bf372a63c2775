"""Edge lists -> in-edges as CSC, by counting sorts.

Runs on the login host and in the local run. Every function is linear in nodes and edges, and
needs no more than one further array of E indices beside its result.
"""

import numpy as np

from distsage.data.graph import Topology
from distsage.kernels.compiled import compiled

# Edges that are copied together.
_CHUNK = 1 << 20


def index_dtype(num_nodes: int) -> type[np.int32] | type[np.int64]:
    """int32 where every id below `num_nodes` fits, else int64."""
    return np.int32 if num_nodes <= np.iinfo(np.int32).max else np.int64


def sorting_bytes(num_nodes: int, num_edges: int, both_directions: bool) -> int:
    """The memory that `csc_from_edges`, and `symmetrise` after it, take beside their arguments."""
    copies = 4 if both_directions else 2
    return copies * num_edges * np.dtype(index_dtype(num_nodes)).itemsize + 32 * num_nodes


def csc_from_edges(src: np.ndarray, dst: np.ndarray, num_nodes: int) -> Topology:
    """Sort edges by destination, then by source. Duplicates and self-loops stay.

    Edges that are sorted already, such as those of another CSC, are copied.

    Args:
        src: integer `[E]`, ids in [0, num_nodes); may be a memory map, which is read in chunks.
        dst: integer `[E]`, likewise.
        num_nodes: N.
    """
    assert len(src) == len(dst)
    assert not len(src) or min(src.min(), dst.min()) >= 0
    assert not len(src) or max(src.max(), dst.max()) < num_nodes
    if _are_sorted(src, dst):
        indptr = np.zeros(num_nodes + 1, np.int64)
        for start in range(0, len(dst), _CHUNK):
            _add_counts(_piece(dst, start), indptr)
        return Topology(np.cumsum(indptr, out=indptr), src.astype(index_dtype(num_nodes)))
    # Out-edges first: `reverse` visits the sources in order, so its rows come out sorted.
    out_indptr = np.zeros(num_nodes + 1, np.int64)
    for start in range(0, len(src), _CHUNK):
        _add_counts(_piece(src, start), out_indptr)
    np.cumsum(out_indptr, out=out_indptr)
    out_indices = np.empty(len(src), index_dtype(num_nodes))
    position = out_indptr[:-1].copy()
    for start in range(0, len(src), _CHUNK):
        _scatter(_piece(src, start), _piece(dst, start), position, out_indices)
    return reverse(Topology(out_indptr, out_indices))


def _are_sorted(src: np.ndarray, dst: np.ndarray) -> bool:
    """Whether edges are in the order of their destinations, and of sources within each."""
    last = -1, -1
    for start in range(0, len(src), _CHUNK):
        some = _piece(src, start), _piece(dst, start)
        if not _ascend(*some, *last):
            return False
        last = int(some[0][-1]), int(some[1][-1])
    return True


def _piece(ids: np.ndarray, start: int) -> np.ndarray:
    """Some of the ids, of a type and layout that compiled code is made for."""
    return np.array(ids[start : start + _CHUNK], np.int64)


def reverse(topology: Topology, indices: np.ndarray | None = None) -> Topology:
    """Turn every edge round: in-edges (CSC) -> out-edges (CSR) and back; rows come out sorted.

    Args:
        topology: what to turn round.
        indices: where the result's go, `[E]`, such as a file's memory map; None takes memory.
    """
    indptr = np.zeros(topology.num_nodes + 1, np.int64)
    _add_counts(topology.indices, indptr)
    np.cumsum(indptr, out=indptr)
    if indices is None:
        indices = np.empty(topology.num_edges, index_dtype(topology.num_nodes))
    _scatter_rows(topology.indptr, topology.indices, indptr[:-1].copy(), indices)
    return Topology(indptr, indices)


def symmetrise(topology: Topology) -> Topology:
    """Add the reverse of every edge and drop duplicates. Self-loops stay, once each."""
    reversed_ = reverse(topology)
    indptr = np.zeros(topology.num_nodes + 1, np.int64)
    arrays = (topology.indptr, topology.indices, reversed_.indptr, reversed_.indices)
    _merge(*arrays, indptr, np.empty(0, reversed_.indices.dtype))
    np.cumsum(indptr, out=indptr)
    indices = np.empty(indptr[-1], reversed_.indices.dtype)
    _merge(*arrays, indptr, indices)
    return Topology(indptr, indices)


@compiled
def _ascend(src: np.ndarray, dst: np.ndarray, last_src: int, last_dst: int) -> bool:
    """Whether edges that come after one from `last_src` to `last_dst` are sorted."""
    for edge in range(len(dst)):
        if dst[edge] < last_dst or (dst[edge] == last_dst and src[edge] < last_src):
            return False
        last_src, last_dst = src[edge], dst[edge]
    return True


@compiled
def _add_counts(keys: np.ndarray, indptr: np.ndarray) -> None:
    for key in keys:
        indptr[key + 1] += 1


@compiled
def _scatter(keys: np.ndarray, values: np.ndarray, position: np.ndarray, out: np.ndarray) -> None:
    for edge in range(len(keys)):
        out[position[keys[edge]]] = values[edge]
        position[keys[edge]] += 1


@compiled
def _scatter_rows(
    indptr: np.ndarray, indices: np.ndarray, position: np.ndarray, out: np.ndarray
) -> None:
    for node in range(len(indptr) - 1):
        for edge in range(indptr[node], indptr[node + 1]):
            out[position[indices[edge]]] = node
            position[indices[edge]] += 1


@compiled
def _merge(
    indptr_a: np.ndarray,
    indices_a: np.ndarray,
    indptr_b: np.ndarray,
    indices_b: np.ndarray,
    indptr: np.ndarray,
    out: np.ndarray,
) -> None:
    """Union of two sorted rows per node; with an empty `out` only count, into `indptr[1:]`."""
    counting = len(out) == 0
    for node in range(len(indptr) - 1):
        a, end_a = indptr_a[node], indptr_a[node + 1]
        b, end_b = indptr_b[node], indptr_b[node + 1]
        last, size = -1, 0
        while a < end_a or b < end_b:
            if b == end_b or (a < end_a and indices_a[a] <= indices_b[b]):
                neighbour = indices_a[a]
                a += 1
            else:
                neighbour = indices_b[b]
                b += 1
            if neighbour != last:
                if not counting:
                    out[indptr[node] + size] = neighbour
                last = neighbour
                size += 1
        if counting:
            indptr[node + 1] = size
