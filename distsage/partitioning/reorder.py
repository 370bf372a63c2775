"""From original ids to gids: part i owns one contiguous range. Runs on the login host."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distsage.data.graph import Topology
from distsage.kernels.compiled import compiled

# Edges that are handled together.
_EDGES = 1 << 20


@dataclass(frozen=True)
class Order:
    """The new numbering of the nodes: by part, by trainer, and by original position.

    The trainers of a host take equal, contiguous shares of its part, so that each has nearly those
    nodes that were put together for it.

    Attributes:
        offsets: int64 `[P + 1]`; part i owns the gids in [offsets[i], offsets[i + 1]).
        position: int64 `[N]`, gid to position in the graph as it was read.
        gid: `[N]`, position to gid, in the dtype of the topology's indices.
        trainer: unsigned `[N]`, position to trainer.
    """

    offsets: np.ndarray
    position: np.ndarray
    gid: np.ndarray
    trainer: np.ndarray

    @classmethod
    def of(
        cls, trainer: np.ndarray, num_parts: int, dtype: np.dtype, trainers_per_host: int = 1
    ) -> "Order":
        """Number the nodes by the trainer that `trainer` (`[N]`) gives them.

        Trainers k * trainers_per_host and following are those of part k.
        """
        offsets = np.zeros(num_parts + 1, np.int64)
        sizes = np.bincount(trainer // trainers_per_host, minlength=num_parts)
        np.cumsum(sizes, out=offsets[1:])
        # Numbers of 16 bits are sorted by radix.
        trainer = trainer.astype(np.min_scalar_type(len(sizes) * trainers_per_host))
        position = np.argsort(trainer, kind="stable")
        gid = np.empty(len(position), dtype)
        gid[position] = np.arange(len(position), dtype=dtype)
        return cls(offsets, position, gid, trainer)

    @property
    def num_parts(self) -> int:
        """P."""
        return len(self.offsets) - 1

    def positions_of(self, part: int) -> np.ndarray:
        """Positions of a part's nodes, in gid order: a view."""
        return self.position[self.offsets[part] : self.offsets[part + 1]]


def part_topology(topology: Topology, order: Order, part: int) -> Iterator[Topology]:
    """The in-edges of a part's nodes, in gid order, with gids as sources; some nodes at a time.

    Yields:
        Topologies of k nodes each: indptr `[k + 1]`; indices gids, in [0, N), sorted within each
        node.
    """
    positions = order.positions_of(part)
    degrees = topology.indptr[positions + 1] - topology.indptr[positions]
    bounds = np.concatenate([[0], np.cumsum(degrees)])
    num_trainers = int(order.trainer.max(initial=0)) + 1
    first = 0
    while first < len(positions):
        last = int(np.searchsorted(bounds, bounds[first] + _EDGES, side="right")) - 1
        last = max(last, first + 1)
        indptr = bounds[first : last + 1] - bounds[first]
        indices = np.empty(int(indptr[-1]), order.gid.dtype)
        _relabel(
            topology.indptr,
            topology.indices,
            positions[first:last],
            order.gid,
            order.trainer,
            np.zeros(num_trainers + 1, np.int64),
            indices,
        )
        yield Topology(indptr, indices)
        first = last


@compiled
def _relabel(
    indptr: np.ndarray,
    indices: np.ndarray,
    positions: np.ndarray,
    gid: np.ndarray,
    trainer: np.ndarray,
    place: np.ndarray,
    relabelled: np.ndarray,
) -> None:
    """Put the gids of each row's sources in order; `place` has a number more than trainers.

    A row is in the order of positions, and so are the gids of a trainer's nodes: what is left to do
    is to put those of each trainer together, unless a row is too short for so many trainers.
    """
    start = 0
    for position in positions:
        first, end = indptr[position], indptr[position + 1]
        if end - first < len(place) // 8:
            for edge in range(first, end):
                relabelled[start + edge - first] = gid[indices[edge]]
            relabelled[start : start + end - first].sort()
        else:
            place[:] = 0
            for edge in range(first, end):
                place[trainer[indices[edge]] + 1] += 1
            place[0] = start
            for number in range(1, len(place)):
                place[number] += place[number - 1]
            for edge in range(first, end):
                source = indices[edge]
                relabelled[place[trainer[source]]] = gid[source]
                place[trainer[source]] += 1
        start += end - first
