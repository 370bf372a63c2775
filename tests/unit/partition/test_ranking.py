"""Vertex-inclusion probabilities beside a brute-force computation and counted batches."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from distsage.data.csc import csc_from_edges
from distsage.data.graph import Topology
from distsage.partitioning.ranking import inclusion_probability, rank_remote
from tests.unit.partition_graphs import random_directed, ring


def dense_probability(
    topology: Topology, train: np.ndarray, fan_out: list[int], batch_size: int
) -> list[Fraction]:
    """The recursion, written out in exact fractions, one product per node."""
    n = topology.num_nodes
    p = [Fraction(0)] * n
    for v in train:
        p[v] = min(Fraction(1), Fraction(batch_size, len(train)))
    rows = [topology.indices[topology.indptr[v] : topology.indptr[v + 1]] for v in range(n)]
    for fan in fan_out[::-1]:
        absent = [1 - x for x in p]
        for v in range(n):
            for u in rows[v]:
                weight = min(Fraction(1), Fraction(fan, len(rows[v]))) if fan >= 0 else Fraction(1)
                absent[u] *= 1 - weight * p[v]
        p = [1 - x for x in absent]
    return p


@pytest.mark.parametrize("fan_out", [[3], [2, 4], [4, 1], [2, 2, 3], [-1, 2]])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_equals_the_recursion_in_fractions(fan_out: list[int], batch_size: int) -> None:
    topology = random_directed(30, 120).topology
    train = np.arange(0, 30, 4)
    found = inclusion_probability(topology, train, fan_out=fan_out, batch_size=batch_size)
    expected = dense_probability(topology, train, fan_out, batch_size)
    np.testing.assert_allclose(found, [float(x) for x in expected], rtol=1e-10, atol=1e-14)


def test_is_exact_where_paths_do_not_meet() -> None:
    """A tree of in-edges: the recursion is the true probability, by counting every sample.

    0 <- {1, 2, 3}, 1 <- {4, 5}, 2 <- {6}; batches of the one seed 0, fan-outs 2 then 1. A node
    that is carried over samples again in the second hop, so 1, 2, 3 have two chances.
    """
    src, dst = np.array([1, 2, 3, 4, 5, 6]), np.array([0, 0, 0, 1, 1, 2])
    topology = csc_from_edges(src, dst, 7)
    counts = np.zeros(7)
    total = 0
    for first in itertools.combinations((1, 2, 3), 2):
        for again, below_1 in itertools.product((1, 2, 3), (4, 5)):
            total += 1
            seen = {0, again, *first} | ({below_1} if 1 in first else set())
            seen |= {6} if 2 in first else set()
            counts[list(seen)] += 1
    found = inclusion_probability(topology, np.array([0]), fan_out=[1, 2], batch_size=1)
    np.testing.assert_allclose(found, counts / total, rtol=1e-12)


def test_the_ring_reaches_two_steps_back_per_hop() -> None:
    # Seeds 10 and 11 of the part [8, 12); in-neighbours are v-1 and v-2.
    topology = ring(24).topology
    ranking, p = rank_remote(topology, 8, 12, np.array([10, 11]), fan_out=[2, 2], batch_size=2)
    assert ranking.dtype == np.int32
    assert ranking.tolist() == [6, 7]
    assert p.sum() == pytest.approx(2)
    ranking, p = rank_remote(topology, 8, 12, np.array([8]), fan_out=[2, 1], batch_size=1)
    # 7 and 6 are sampled with 1/2 each and 7 or 6 again with certainty; 4 needs 6 to be there.
    assert ranking.tolist() == [6, 7, 5, 4]
    assert (p.dtype, len(p)) == (np.float32, 4)


def test_nobody_to_train_asks_for_nothing() -> None:
    topology = random_directed(30, 120).topology
    nobody = np.empty(0, np.int64)
    assert len(rank_remote(topology, 0, 10, nobody, fan_out=[5, 5], batch_size=10)[0]) == 0


def test_ranking_is_sorted_complete_and_remote() -> None:
    topology = random_directed(60, 300).topology
    train = np.arange(20, 40, 3)
    options = {"fan_out": [3, 2], "batch_size": 2}
    p = inclusion_probability(topology, train, **options)
    ranking, probability = rank_remote(topology, 20, 40, train, **options)
    np.testing.assert_allclose(probability, p[ranking], rtol=1e-6)
    assert (np.diff(p[ranking]) <= 0).all()
    assert probability.sum() == pytest.approx(p[:20].sum() + p[40:].sum())
    remote = np.flatnonzero(p)
    np.testing.assert_array_equal(np.sort(ranking), remote[(remote < 20) | (remote >= 40)])
