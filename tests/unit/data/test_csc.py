"""Edge lists -> CSC, against dense matrices of edge counts."""

import numpy as np
import pytest

from distsage.data import csc
from distsage.data.csc import csc_from_edges, index_dtype, reverse, symmetrise
from distsage.data.graph import Topology


def counts(topology: Topology) -> np.ndarray:
    """`[N, N]`: how many edges go from the row's node to the column's."""
    matrix = np.zeros((topology.num_nodes, topology.num_nodes), int)
    dst = np.repeat(np.arange(topology.num_nodes), np.diff(topology.indptr))
    np.add.at(matrix, (topology.indices, dst), 1)
    return matrix


def rows_are_sorted(topology: Topology) -> bool:
    rows = np.split(topology.indices, topology.indptr[1:-1])
    return all((np.diff(row) >= 0).all() for row in rows)


@pytest.fixture(params=[(1, 0), (1, 3), (7, 0), (7, 200), (40, 60), (40, 900)])
def edges(request):
    num_nodes, num_edges = request.param
    rng = np.random.default_rng(num_edges)
    # Duplicates, self-loops and nodes without edges all occur.
    src, dst = rng.integers(0, num_nodes, (2, num_edges), dtype=np.int32)
    matrix = np.zeros((num_nodes, num_nodes), int)
    np.add.at(matrix, (src, dst), 1)
    return src, dst, num_nodes, matrix


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_every_edge_is_an_in_edge_of_its_destination(edges, dtype):
    src, dst, num_nodes, matrix = edges
    topology = csc_from_edges(src.astype(dtype), dst.astype(dtype), num_nodes)
    assert topology.indptr.dtype == np.int64
    assert topology.indices.dtype == np.int32
    assert rows_are_sorted(topology)
    np.testing.assert_array_equal(counts(topology), matrix)


@pytest.mark.parametrize("swapped", [None, 0, 12, 39])
def test_sorted_edges_are_copied(swapped: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to one that is not in its place, at the end of a chunk or within one."""
    monkeypatch.setattr(csc, "_CHUNK", 10)
    src, dst = np.random.default_rng(0).integers(0, 40, (2, 901), dtype=np.int32)
    order = np.lexsort((src, dst))
    src, dst = src[order], dst[order]
    expected = csc_from_edges(*np.random.default_rng(1).permutation(np.stack((src, dst)), 1), 40)
    if swapped is None:
        monkeypatch.setattr(csc, "_scatter", lambda *_: pytest.fail("sorted again"))
    else:
        for ends in (src, dst):
            ends[[swapped, swapped + 1]] = ends[[swapped + 1, swapped]]
    topology = csc_from_edges(src, dst, 40)
    np.testing.assert_array_equal(topology.indptr, expected.indptr)
    np.testing.assert_array_equal(topology.indices, expected.indices)
    assert topology.indices.dtype == np.int32


def test_reverse_turns_every_edge(edges):
    src, dst, num_nodes, matrix = edges
    turned = reverse(csc_from_edges(src, dst, num_nodes))
    assert rows_are_sorted(turned)
    np.testing.assert_array_equal(counts(turned), matrix.T)


def test_symmetrise_is_the_union_with_the_reverse(edges):
    src, dst, num_nodes, matrix = edges
    both = symmetrise(csc_from_edges(src, dst, num_nodes))
    assert rows_are_sorted(both)
    np.testing.assert_array_equal(counts(both), (matrix + matrix.T > 0).astype(int))


def test_read_only_memory_maps_are_read(edges, tmp_path):
    src, dst, num_nodes, matrix = edges
    topology = csc_from_edges(src, dst, num_nodes)
    mapped = []
    for name, array in (("indptr", topology.indptr), ("indices", topology.indices)):
        np.save(tmp_path / name, array)
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r" if len(array) else None))
    np.testing.assert_array_equal(counts(reverse(Topology(*mapped))), matrix.T)


def test_indices_are_int64_only_where_they_have_to_be():
    assert index_dtype(2**31 - 1) == np.int32
    assert index_dtype(2**31) == np.int64
