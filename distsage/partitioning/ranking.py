"""Which remote nodes a part's trainers will ask for most. Runs on the login host.

Source: Kaler et al., SALIENT++, arXiv 2305.03152, section 4 (vertex-inclusion probability).
"""

import operator
from collections.abc import Sequence

import numpy as np

from distsage.data.graph import Topology
from distsage.kernels.compiled import compiled


def inclusion_probability(
    topology: Topology,
    train_gid: np.ndarray,
    *,
    fan_out: Sequence[int],
    batch_size: int,
) -> np.ndarray:
    """The probability that a node is among the input nodes of one mini-batch.

    p_0 = min(1, batch_size / |train|) on the train nodes. Each hop carries the nodes that are
    there over to the next one and adds sampled in-neighbours, taken as independent:
    p_{h+1}(u) = 1 - (1 - p_h(u)) * product over v with u in N(v) of (1 - w_v p_h(v)),
    w_v = min(1, fanout_h / degree(v)).

    Args:
        topology: in-edges of the whole graph.
        train_gid: int `[T]`, the seed nodes that batches are drawn from.
        fan_out: as everywhere: the last number is the seeds' own. Negative: all neighbours.
        batch_size: seed nodes per mini-batch.

    Returns:
        float64 `[N]`.
    """
    probability = np.zeros(topology.num_nodes)
    if len(train_gid) == 0:
        return probability
    probability[train_gid] = min(1.0, batch_size / len(train_gid))
    for fan in reversed(fan_out):
        # log(1 - p): a node keeps its own, and each edge adds one term.
        with np.errstate(divide="ignore"):
            log_absent = np.log1p(-probability)
        _spread(topology.indptr, topology.indices, probability, fan, log_absent)
        probability = -np.expm1(log_absent)
    return probability


def rank_remote(
    topology: Topology,
    low: int,
    high: int,
    train_gid: np.ndarray,
    *,
    fan_out: Sequence[int],
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The nodes outside [low, high) that a batch may contain, the likeliest first.

    Args:
        topology: in-edges of the whole graph.
        low: first gid that the part owns.
        high: one past the last.
        train_gid: int `[T]`, the part's train nodes.
        fan_out: see `inclusion_probability`.
        batch_size: see `inclusion_probability`.

    Returns:
        Gids in the dtype of the topology's indices, equal probabilities in gid order; and their
        probabilities, float32.
    """
    probability = inclusion_probability(topology, train_gid, fan_out=fan_out, batch_size=batch_size)
    probability[low:high] = 0
    reached = np.flatnonzero(probability)
    order = np.argsort(-probability[reached], kind="stable")
    ranking = reached[order]
    return ranking.astype(topology.indices.dtype), probability[ranking].astype(np.float32)


def mean_remote_rows(rows: Sequence[float], train_nodes: Sequence[int]) -> float:
    """The rows that a batch is expected to need from other parts.

    Args:
        rows: expected in a batch of each part.
        train_nodes: of each part; a part has batches in proportion to them.
    """
    total = sum(train_nodes)
    return sum(map(operator.mul, rows, train_nodes)) / total if total else 0.0


@compiled
def _spread(
    indptr: np.ndarray,
    indices: np.ndarray,
    probability: np.ndarray,
    fan: int,
    log_absent: np.ndarray,
) -> None:
    for node in range(len(probability)):
        start, end = indptr[node], indptr[node + 1]
        if probability[node] == 0 or start == end:
            continue
        weight = 1.0 if fan < 0 else min(1.0, fan / (end - start))
        term = np.log1p(-weight * probability[node])
        for edge in range(start, end):
            log_absent[indices[edge]] += term
