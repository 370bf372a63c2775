"""Several assignments of one graph, and the best of them. Runs on the login host."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distsage.data.graph import Graph, Topology
from distsage.kernels.compiled import compiled
from distsage.partitioning.ranking import inclusion_probability, mean_remote_rows
from distsage.progress import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """What an assignment costs those who train on it.

    Attributes:
        seed: that it was drawn with.
        edge_cut: directed edges whose ends lie in different parts.
        remote_rows: of other parts that a mini-batch is expected to need.
    """

    seed: int
    edge_cut: int
    remote_rows: float

    def __str__(self) -> str:
        """For the terminal."""
        return (
            f"edge cut {self.edge_cut:,}, {self.remote_rows:,.0f} remote rows expected in a batch"
        )


def best_of(
    assign: Callable[[int], np.ndarray],
    seeds: Sequence[int],
    judge: Callable[[np.ndarray, int], Attempt],
) -> tuple[np.ndarray, list[Attempt]]:
    """Draw an assignment with each seed; keep the one with the fewest remote rows. Logs each.

    Args:
        assign: from a seed to an assignment.
        seeds: one or more.
        judge: such as `judged`; what it is given is the assignment and the seed.

    Returns:
        The first of the best assignments, and all attempts in the seeds' order.
    """
    attempts: list[Attempt] = []
    best = np.empty(0, np.int32)
    for number, seed in enumerate(seeds, 1):
        assignment = assign(seed)
        attempt = judge(assignment, seed)
        logger.info(f"attempt {number} of {len(seeds)} (seed {seed}): {attempt}")
        if all(attempt.remote_rows < earlier.remote_rows for earlier in attempts):
            best = assignment
        attempts.append(attempt)
    return best, attempts


def judged(
    graph: Graph,
    part: np.ndarray,
    num_parts: int,
    *,
    seed: int,
    fan_out: Sequence[int],
    batch_size: int,
) -> Attempt:
    """What the assignment `part` (`[N]`, drawn with `seed`) costs; the rest as for a ranking."""
    topology = graph.topology
    rows, train_nodes = [], []
    with progress(f"judging attempt of seed {seed}", num_parts, "parts") as advance:
        for index in range(num_parts):
            train = np.flatnonzero(graph.train_mask & (part == index))
            probability = inclusion_probability(
                topology, train, fan_out=fan_out, batch_size=batch_size
            )
            rows.append(float(probability[part != index].sum()))
            train_nodes.append(len(train))
            advance(1)
    return Attempt(seed, edge_cut(topology, part), mean_remote_rows(rows, train_nodes))


def edge_cut(topology: Topology, part: np.ndarray) -> int:
    """Directed edges whose ends lie in different parts; `part` is `[N]`."""
    return int(_edge_cut(topology.indptr, topology.indices, part))


@compiled
def _edge_cut(indptr: np.ndarray, indices: np.ndarray, part: np.ndarray) -> int:
    cut = 0
    for node in range(len(indptr) - 1):
        for edge in range(indptr[node], indptr[node + 1]):
            cut += part[indices[edge]] != part[node]
    return cut
