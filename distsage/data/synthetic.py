"""Graphs that are like ogbn-products or like a social network, and need no download.

Runs on the login host and in the local run.

A degree-corrected stochastic block model (Karrer and Newman, Phys. Rev. E 83, 016107): degrees
follow a power law, `1 - _FAR` of the edges stay inside a planted community. A community has a
class, which most of its nodes share; a node's features are its class's direction under so much
noise that they seldom tell the class by themselves, while the mean over the neighbours does. Or
its features are a few categories, one-hot, which are its class's more often than others'.
"""

from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse

from distsage.data.raw import DenseRows, RawGraph, Sizes, rows_per_chunk
from distsage.data.validate import draw_masks
from distsage.errors import UserError

# Of a graph whose size is not asked for: nodes, their degree, columns.
_NODES, _DEGREE, _COLUMNS = 24_000, 30.0, 100
# Share of edges whose ends are drawn from the whole graph.
_FAR = 0.18
# Drawn edges per edge that stays: the others repeat one within their community.
_DRAWN = 1.1
# Nodes per community, about.
_COMMUNITY = 5000
# Share of nodes whose class is not their community's.
_STRAY = 0.08
# Length of a class's direction, in standard deviations of the noise along one axis.
_SIGNAL = 1.9
_SHARES = (0.08, 0.04, 0.88)
# One-hot attributes, as people on a social network state them: how many categories each has, and
# the share of people who state it. 4,687 columns, 4.7 numbers in a row.
_ATTRIBUTES = ((6, 1.0), (2, 0.93), (92, 0.9), (60, 0.6), (27, 0.87), (4500, 0.4))
# Probability that a stated category is one of the node's class.
_TELLING = 0.2
# Category k of an attribute is as frequent as (k + 1) ** -_SKEW.
_SKEW = 0.6
_ONEHOT_SHARES = (0.6, 0.2, 0.2)
_CHUNK = 1 << 22


def make_synthetic(
    num_nodes: int = _NODES,
    average_degree: float = _DEGREE,
    num_features: int = _COLUMNS,
    *,
    num_classes: int = 16,
    seed: int = 0,
) -> RawGraph:
    """Draw a graph; the same arguments draw the same graph.

    Args:
        num_nodes: N, at least 100.
        average_degree: neighbours per node, at most a tenth of the nodes. What comes out differs
            by some per cent, since repeated edges count once.
        num_features: F, at least 1.
        num_classes: C.
        seed: of everything random.

    Returns:
        Each edge once, to be symmetrised; without self-loops, with some repeated edges.

    Raises:
        UserError: too few nodes, or a degree that they do not allow.
    """
    if num_features < 1:
        raise UserError("a synthetic graph needs a column of features or more")
    return _make(
        "synthetic",
        num_nodes,
        average_degree,
        num_classes,
        seed,
        _SHARES,
        lambda rng, labels: _draw_features(rng, labels, num_features, num_classes),
    )


def synthetic_sizes(
    num_nodes: int = _NODES, average_degree: float = _DEGREE, num_features: int = _COLUMNS
) -> Sizes:
    """What `make_synthetic` gives for these arguments; some edges are repeated, and count once."""
    return Sizes(num_nodes, num_features, 0, int(num_nodes * average_degree))


def make_synthetic_onehot(
    num_nodes: int = 15_374,
    average_degree: float = 99.0,
    *,
    num_classes: int = 16,
    seed: int = 0,
) -> RawGraph:
    """Draw a graph whose features are one-hot categories, as CSR; for the rest `make_synthetic`.

    Raises:
        UserError: too few nodes, or a degree that they do not allow.
    """
    return _make(
        "synthetic-onehot",
        num_nodes,
        average_degree,
        num_classes,
        seed,
        _ONEHOT_SHARES,
        lambda rng, labels: _draw_categories(rng, labels, num_classes),
    )


def _make(
    origin: str,
    num_nodes: int,
    average_degree: float,
    num_classes: int,
    seed: int,
    shares: tuple[float, float, float],
    draw_features: Callable[
        [np.random.Generator, np.ndarray], "DenseRows | scipy.sparse.csr_matrix"
    ],
) -> RawGraph:
    """The graph, with the features that are drawn for the labels `[N]` of its nodes."""
    if num_nodes < 100 or not 1 <= average_degree <= num_nodes / 10:
        raise UserError(
            f"a synthetic graph of {num_nodes} nodes with average degree {average_degree:g} cannot "
            "be made: it needs 100 nodes or more, and a degree from 1 to a tenth of the nodes"
        )
    rng = np.random.default_rng(seed)
    # The nodes of a community are neighbours in this first order; ids are shuffled at the end.
    num_communities = max(num_classes, num_nodes // _COMMUNITY)
    sizes = rng.uniform(0.5, 1.5, num_communities)
    community = rng.choice(num_communities, num_nodes, p=sizes / sizes.sum()).astype(np.int32)
    community.sort()
    src, dst = _draw_edges(rng, community, num_communities, average_degree)

    community_class = rng.permutation(num_communities) % num_classes
    labels = community_class[community]
    stray = rng.random(num_nodes) < _STRAY
    labels[stray] = rng.integers(num_classes, size=int(stray.sum()))

    shuffled = rng.permutation(num_nodes).astype(np.int32)
    # In place: at the size of ogbn-products one copy of the edges is 250 MB.
    np.take(shuffled, src, out=src)
    np.take(shuffled, dst, out=dst)
    labels_by_id = np.empty(num_nodes, np.int64)
    labels_by_id[shuffled] = labels
    return RawGraph(
        origin=origin,
        num_nodes=num_nodes,
        src=src,
        dst=dst,
        features=draw_features(rng, labels_by_id),
        labels=labels_by_id,
        masks=draw_masks(origin, labels_by_id, shares, seed),
        num_classes=num_classes,
        one_way=True,
    )


def _draw_edges(
    rng: np.random.Generator, community: np.ndarray, num_communities: int, average_degree: float
) -> tuple[np.ndarray, np.ndarray]:
    """Undirected edges, one direction each, int32 `[E / 2]`; `community` is sorted."""
    num_nodes = len(community)
    # Density exponent 2.5; the shift makes small degrees as frequent as in ogbn-products.
    weight = (1.0 - rng.random(num_nodes)) ** (-1 / 1.5) - 0.6
    weight = np.minimum(weight, weight.mean() * min(100.0, num_nodes / 8 / average_degree))
    expected = weight * (_DRAWN * num_nodes * average_degree / 2 / weight.sum())
    stubs = np.floor(expected + rng.random(num_nodes)).astype(np.int64)
    # A node starts `stubs` edges, and as many end at it on average: an edge ends at the node of a
    # stub drawn uniformly, from the whole graph or from the community of its source.
    src = np.repeat(np.arange(num_nodes, dtype=np.int32), stubs)
    ends = np.cumsum(np.bincount(community, stubs, num_communities))
    bounds = np.concatenate(([0], ends)).astype(np.int64)
    dst = np.empty_like(src)
    for start in range(0, len(src), _CHUNK):
        chunk = src[start : start + _CHUNK]
        home = community[chunk]
        far = rng.random(len(chunk)) < _FAR
        low = np.where(far, 0, bounds[home])
        high = np.where(far, len(src), bounds[home + 1])
        dst[start : start + _CHUNK] = src[rng.integers(low, high)]
    keep = src != dst
    return src[keep], dst[keep]


def _draw_features(
    rng: np.random.Generator, labels: np.ndarray, num_features: int, num_classes: int
) -> DenseRows:
    """`[N, F]`, drawn while they are read; nothing else may draw from `rng` afterwards."""
    direction = rng.standard_normal((num_classes, num_features), dtype=np.float32)
    direction *= _SIGNAL / np.linalg.norm(direction, axis=1, keepdims=True)
    state = rng.bit_generator.state

    def chunks() -> Iterator[np.ndarray]:
        rng.bit_generator.state = state
        step = rows_per_chunk(4 * num_features)
        for start in range(0, len(labels), step):
            of_class = direction[labels[start : start + step]]
            rows = rng.standard_normal(of_class.shape, dtype=np.float32)
            rows += of_class
            yield rows

    return DenseRows((len(labels), num_features), np.dtype(np.float32), chunks)


def _draw_categories(
    rng: np.random.Generator, labels: np.ndarray, num_classes: int
) -> scipy.sparse.csr_matrix:
    """Ones, a column for each category of each attribute."""
    columns = np.empty((len(labels), len(_ATTRIBUTES)), np.int32)
    stated = np.empty(columns.shape, bool)
    first = 0
    for attribute, (categories, share) in enumerate(_ATTRIBUTES):
        frequency = np.arange(1, categories + 1) ** -_SKEW
        drawn = rng.choice(categories, len(labels), p=frequency / frequency.sum())
        # Of the categories those whose number has the class for a remainder are the class's own.
        own = (drawn // num_classes * num_classes + labels) % categories
        telling = rng.random(len(labels)) < _TELLING
        columns[:, attribute] = first + np.where(telling, own, drawn)
        stated[:, attribute] = rng.random(len(labels)) < share
        first += categories
    indptr = np.zeros(len(labels) + 1, np.int64)
    np.cumsum(stated.sum(axis=1), out=indptr[1:])
    ones = np.ones(int(indptr[-1]), np.float32)
    return scipy.sparse.csr_matrix((ones, columns[stated], indptr), (len(labels), first))
