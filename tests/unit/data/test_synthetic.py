"""The synthetic graph: repeats, looks like a real one, and needs its edges."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from distsage.data.datasets import load_graph
from distsage.errors import UserError


@pytest.fixture(scope="module")
def graph():
    return load_graph("synthetic:8000:24", seed=1)


def adjacency(graph) -> scipy.sparse.csr_matrix:
    topology = graph.topology
    ones = np.ones(topology.num_edges, np.float32)
    return scipy.sparse.csr_matrix(
        (ones, topology.indices, topology.indptr), (graph.num_nodes, graph.num_nodes)
    )


def test_the_seed_decides_everything(graph):
    again, other = (load_graph("synthetic:8000:24", seed=seed) for seed in (1, 2))
    for array in ("features", "labels", "train_mask", "test_mask"):
        np.testing.assert_array_equal(getattr(graph, array), getattr(again, array))
        assert (getattr(graph, array) != getattr(other, array)).any()
    np.testing.assert_array_equal(graph.topology.indices, again.topology.indices)
    assert not np.array_equal(graph.topology.indices, other.topology.indices)


def test_size_and_split(graph):
    assert (graph.num_nodes, graph.features.shape) == (8000, (8000, 100))
    assert 20 < graph.topology.num_edges / 8000 < 28
    sizes = [mask.sum() for mask in (graph.train_mask, graph.val_mask, graph.test_mask)]
    assert sizes == [640, 320, 7040]
    assert graph.name == "synthetic-8000-24"
    assert set(np.unique(graph.labels)) == set(range(graph.num_classes))


def test_edges_go_both_ways_once_without_self_loops(graph):
    matrix = adjacency(graph)
    assert matrix.diagonal().sum() == 0
    assert (matrix != matrix.T).nnz == 0
    assert matrix.max() == 1
    matrix.sum_duplicates()
    assert matrix.nnz == graph.topology.num_edges


def test_degrees_follow_a_power_law():
    degree = np.diff(load_graph("synthetic:100000:30").topology.indptr)
    assert degree.max() > 30 * degree.mean()
    assert np.median(degree) < 0.6 * degree.mean()
    # Hill's estimate of the tail's exponent; the density's exponent 2.5 is the tail's 1.5, and
    # the loss of repeated edges among the hubs makes it a little steeper.
    tail = np.sort(degree)[-3000:].astype(float)
    exponent = 1 / np.log(tail / tail[0]).mean()
    assert 1.2 < exponent < 2.2


def test_most_edges_stay_within_a_class_but_ids_tell_nothing(graph):
    topology = graph.topology
    dst = np.repeat(np.arange(graph.num_nodes), np.diff(topology.indptr))
    assert (graph.labels[dst] == graph.labels[topology.indices]).mean() > 0.6
    # Neighbouring ids share a class no more often than any two nodes do.
    shares = np.bincount(graph.labels) / graph.num_nodes
    same = (graph.labels[1:] == graph.labels[:-1]).mean()
    assert same == pytest.approx((shares**2).sum(), abs=0.02)


def test_the_class_needs_the_neighbours(graph):
    degree = np.maximum(np.diff(graph.topology.indptr), 1)
    mean = (adjacency(graph) @ graph.features) / degree[:, None]

    def accuracy(inputs: np.ndarray) -> float:
        model = LogisticRegression(C=0.05, max_iter=300)
        model.fit(inputs[graph.train_mask], graph.labels[graph.train_mask])
        return model.score(inputs[graph.test_mask], graph.labels[graph.test_mask])

    alone, together = accuracy(graph.features), accuracy(np.hstack([graph.features, mean]))
    assert 0.25 < alone < 0.55
    assert together > alone + 0.2


def test_columns_can_be_asked_for():
    assert load_graph("synthetic:200:8:33").num_features == 33
    with pytest.raises(UserError, match="needs a column"):
        load_graph("synthetic:200:8:0")
    with pytest.raises(UserError, match="synthetic-onehot, with no columns"):
        load_graph("synthetic-onehot:200:8:33")


@pytest.fixture(scope="module")
def onehot():
    return load_graph("synthetic-onehot", seed=1)


def test_one_hot_attributes(onehot):
    """As the social network that it is made after: 1.3M edges, 4.7 of 4,687 columns in a row."""
    assert (onehot.num_nodes, onehot.num_features) == (15_374, 4687)
    assert 1.2e6 < onehot.topology.num_edges < 1.4e6
    numbers = np.diff(onehot.features.indptr)
    assert 4.6 < numbers.mean() < 4.8
    assert numbers.max() == 6
    sums = onehot.features.sum(axis=1)
    np.testing.assert_allclose(sums[numbers > 0], 1, rtol=1e-6)  # each divided by its numbers
    again, other = (load_graph("synthetic-onehot", seed=seed) for seed in (1, 2))
    assert (onehot.features != again.features).nnz == 0
    assert (onehot.features != other.features).nnz > 0


def test_the_class_of_one_hot_rows_needs_the_neighbours(onehot):
    """Judged by naive Bayes, on the attributes of the node or on the mean of its neighbours'."""
    degree = np.maximum(np.diff(onehot.topology.indptr), 1)
    mean = scipy.sparse.diags(1 / degree) @ adjacency(onehot) @ onehot.features

    def accuracy(inputs: scipy.sparse.csr_matrix) -> float:
        model = MultinomialNB(alpha=0.01).fit(
            inputs[onehot.train_mask], onehot.labels[onehot.train_mask]
        )
        return model.score(inputs[onehot.test_mask], onehot.labels[onehot.test_mask])

    alone, together = accuracy(onehot.features), accuracy((200 * mean).tocsr())
    assert 0.15 < alone < 0.6
    assert together > alone + 0.2
