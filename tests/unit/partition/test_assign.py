"""Which part each node goes to."""

from pathlib import Path

import numpy as np
import pytest

from distsage.data.graph import Graph
from distsage.partition import metis
from distsage.partition.metis import assign
from distsage.partition.reorder import Order
from tests.unit.partition_graphs import communities, edges_of, make_graph, random_directed, ring


def cut(graph: Graph, assignment: np.ndarray) -> int:
    src, dst = edges_of(graph.topology)
    return int(np.count_nonzero(assignment[src] != assignment[dst]))


def test_random_is_even_and_repeats(tmp_path: Path) -> None:
    graph = random_directed(103, 500)
    parts = assign(graph, 4, scratch=tmp_path, method="random", seed=5)
    assert sorted(np.bincount(parts)) == [25, 26, 26, 26]
    np.testing.assert_array_equal(
        parts, assign(graph, 4, scratch=tmp_path, method="random", seed=5)
    )
    assert (parts != assign(graph, 4, scratch=tmp_path, method="random", seed=6)).any()


def test_metis_finds_communities_and_repeats(tmp_path: Path) -> None:
    graph = communities(4, 250)
    parts = assign(graph, 4, scratch=tmp_path)
    random = assign(graph, 4, scratch=tmp_path, method="random")
    assert cut(graph, parts) < 0.2 * cut(graph, random)
    assert np.bincount(parts).max() < 1.1 * 250
    np.testing.assert_array_equal(parts, assign(graph, 4, scratch=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_metis_balances_train_nodes_and_edges(tmp_path: Path) -> None:
    # All train nodes and most edges lie in one community, so a plain cut would not share them.
    graph = communities(2, 400)
    plain = assign(graph, 2, scratch=tmp_path)
    in_first = plain == 0
    v = np.arange(graph.num_nodes)
    train = in_first & (v % 2 == 0)
    dense = np.flatnonzero(in_first)
    rng = np.random.default_rng(0)
    src, dst = edges_of(graph.topology)
    more = rng.choice(dense, (2, 20 * len(dense)))
    graph = make_graph(
        np.concatenate((src, more[0], more[1])),
        np.concatenate((dst, more[1], more[0])),
        graph.num_nodes,
        train_mask=train,
        val_mask=~train & (v % 3 == 0),
        test_mask=~train & (v % 3 != 0),
    )

    def shares(parts: np.ndarray, weight: np.ndarray) -> float:
        sums = np.bincount(parts, weight, minlength=2)
        return float(sums.max() / sums.sum())

    degrees = np.diff(graph.topology.indptr)
    assert shares(plain, train) == 1
    assert shares(assign(graph, 2, scratch=tmp_path, balance_train=True), train) < 0.6
    assert shares(plain, degrees) > 0.7
    assert shares(assign(graph, 2, scratch=tmp_path, balance_edges=True), degrees) < 0.6


@pytest.mark.parametrize("num_parts", [1, 2, 37, 40])
def test_no_part_of_metis_is_empty(num_parts: int, tmp_path: Path) -> None:
    parts = assign(ring(40), num_parts, scratch=tmp_path)
    assert np.bincount(parts, minlength=num_parts).min() >= 1
    assert len(np.bincount(parts)) == num_parts


def test_metis_on_a_graph_of_loops_only(tmp_path: Path) -> None:
    v = np.arange(12)
    parts = assign(make_graph(v, v, 12), 3, scratch=tmp_path)
    assert np.bincount(parts, minlength=3).min() >= 1


def test_empty_parts_are_filled_from_the_largest() -> None:
    filled = metis._fill_empty(np.array([0, 0, 0, 0, 3, 3, 3], np.int32), 5)
    assert sorted(np.bincount(filled, minlength=5)) == [1, 1, 1, 2, 2]
    assert (filled[:2] == 0).all()
    assert (filled[4:6] == 3).all()


def test_a_crash_of_metis_is_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metis.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="METIS failed with status 1"):
        assign(ring(10), 2, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -FPE $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(metis.sys, "executable", str(killed))
    with pytest.raises(RuntimeError, match="METIS was ended by SIGFPE"):
        assign(ring(10), 2, scratch=tmp_path)


def test_numbering_is_part_major_and_keeps_the_order_inside() -> None:
    order = Order.of(np.array([1, 0, 1, 0, 2]), 3, np.dtype(np.int32))
    np.testing.assert_array_equal(order.position, [1, 3, 0, 2, 4])
    np.testing.assert_array_equal(order.gid, [2, 0, 3, 1, 4])
    np.testing.assert_array_equal(order.offsets, [0, 2, 4, 5])
    assert order.gid.dtype == np.int32


def test_numbering_keeps_a_trainers_nodes_together() -> None:
    order = Order.of(np.array([3, 0, 1, 0, 2, 1]), 2, np.dtype(np.int32), trainers_per_host=2)
    np.testing.assert_array_equal(order.position, [1, 3, 2, 5, 4, 0])
    np.testing.assert_array_equal(order.offsets, [0, 4, 6])
