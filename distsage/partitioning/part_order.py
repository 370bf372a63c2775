"""Which number each part gets: consecutive ones belong together. Runs on the login host.

A job of fewer hosts than parts gives each host a run of consecutive parts
(`distsage.partitioning.host_parts`), so parts with many edges between them should stand together.
"""

import numpy as np

from distsage.data.graph import Topology
from distsage.kernels.compiled import compiled
from distsage.partitioning.host_parts import deal_out

_MOST_PARTS = 512
"""More stay as the partitioner numbers them: the time grows with their cube."""


def order_parts(topology: Topology, part: np.ndarray, num_parts: int) -> np.ndarray:
    """Number parts anew, so that runs of them have few edges between them.

    What counts is the edge cut between hosts for every number of hosts, each relative to what it
    is in the order given. That is a quadratic assignment (Koopmans and Beckmann, Econometrica
    25(1), 1957); pairs of parts change places as long as it becomes less.

    Args:
        topology: in-edges of the whole graph.
        part: integer `[N]`, in [0, num_parts).
        num_parts: P.

    Returns:
        int64 `[P]`: the new number of each part.
    """
    order = np.arange(num_parts)
    if 2 < num_parts <= _MOST_PARTS:
        between = np.zeros((num_parts, num_parts))
        _count_edges(topology.indptr, topology.indices, part, between)
        between += between.T
        _exchange(between, _apart(between), order)
    number = np.empty(num_parts, np.int64)
    number[order] = np.arange(num_parts)
    return number


def _apart(between: np.ndarray) -> np.ndarray:
    """What an edge between two places costs: float `[P, P]`, a sum over the numbers of hosts."""
    num_parts = len(between)
    cost = np.zeros_like(between)
    for num_hosts in range(2, num_parts):
        bounds = deal_out([1] * num_parts, num_hosts)
        host = np.searchsorted(bounds, np.arange(num_parts), side="right")
        is_cut = host[:, None] != host
        cost += is_cut / max(between[is_cut].sum(), 1)
    return cost


@compiled
def _count_edges(
    indptr: np.ndarray, indices: np.ndarray, part: np.ndarray, between: np.ndarray
) -> None:
    """Add up the edges between parts: `between[to, from]`."""
    for node in range(len(indptr) - 1):
        for edge in range(indptr[node], indptr[node + 1]):
            between[part[node], part[indices[edge]]] += 1


@compiled
def _exchange(between: np.ndarray, cost: np.ndarray, order: np.ndarray) -> None:
    """Exchange the parts of two places as long as the sum of between * cost becomes less."""
    least = 1e-9 * (between * cost).sum()
    improves = True
    while improves:
        improves = False
        for i in range(len(order)):
            for j in range(i):
                change = 0.0
                for k in range(len(order)):
                    if k not in (i, j):
                        gain = between[order[i], order[k]] - between[order[j], order[k]]
                        change += gain * (cost[j, k] - cost[i, k])
                if change < -least:
                    order[i], order[j] = order[j], order[i]
                    improves = True
