"""A graph that is like ogbn-products and needs no download.

Runs on the login host and in the local run.

A degree-corrected stochastic block model (Karrer and Newman, Phys. Rev. E 83, 016107): degrees
follow a power law, `1 - _FAR` of the edges stay inside a planted community. A community has a
class, which most of its nodes share; a node's features are its class's direction under so much
noise that they seldom tell the class by themselves, while the mean over the neighbours does.
"""

import numpy as np

from distsage.data.raw import RawGraph
from distsage.data.validate import draw_masks
from distsage.errors import UserError

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
_CHUNK = 1 << 22


def make_synthetic(
    num_nodes: int = 24_000,
    average_degree: float = 30.0,
    *,
    num_features: int = 100,
    num_classes: int = 16,
    seed: int = 0,
) -> RawGraph:
    """Draw a graph; the same arguments draw the same graph.

    Args:
        num_nodes: N, at least 100.
        average_degree: neighbours per node, at most a tenth of the nodes. What comes out differs
            by some per cent, since repeated edges count once.
        num_features: F.
        num_classes: C.
        seed: of everything random.

    Returns:
        Each edge once, to be symmetrised; without self-loops, with some repeated edges.

    Raises:
        UserError: too few nodes, or a degree that they do not allow.
    """
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
        origin="synthetic",
        num_nodes=num_nodes,
        src=src,
        dst=dst,
        features=_draw_features(rng, labels_by_id, num_features, num_classes),
        labels=labels_by_id,
        masks=draw_masks("synthetic", labels_by_id, _SHARES, seed),
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
) -> np.ndarray:
    """float32 `[N, F]`."""
    direction = rng.standard_normal((num_classes, num_features), dtype=np.float32)
    direction *= _SIGNAL / np.linalg.norm(direction, axis=1, keepdims=True)
    features = rng.standard_normal((len(labels), num_features), dtype=np.float32)
    rows = max(1, _CHUNK // num_features)
    for start in range(0, len(labels), rows):
        features[start : start + rows] += direction[labels[start : start + rows]]
    return features
