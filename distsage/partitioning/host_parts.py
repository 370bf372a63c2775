"""Which parts each host of a job holds. Runs on every rank.

A job may have fewer hosts than there are parts. Each host then holds consecutive parts, whose nodes
are one range of gids, so that nothing after this module needs to know how many parts there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from distsage.errors import UserError
from distsage.partitioning.manifest import Manifest
from distsage.partitioning.parts import Parts, SparseArrays


@dataclass(frozen=True)
class HostParts:
    """Parts, dealt out to hosts.

    Attributes:
        parts: all of them.
        bounds: `[H + 1]`; host h holds the parts bounds[h], ..., bounds[h + 1] - 1, at least one.
    """

    parts: Parts
    bounds: tuple[int, ...]

    @classmethod
    def deal(cls, parts: Parts, hosts: Sequence[str]) -> "HostParts":
        """Give each host its parts, as near as can be to equal numbers of nodes.

        Raises:
            UserError: there are more hosts than parts.
        """
        if len(hosts) > parts.num_parts:
            raise UserError(
                f"{parts.path} has {parts.num_parts} parts but the job runs on {len(hosts)} "
                f"hosts ({', '.join(hosts)}); use as many hosts as parts or fewer, or partition "
                f"again with --num-parts {len(hosts)}"
            )
        return cls(parts, deal_out([part.num_nodes for part in parts.manifest.parts], len(hosts)))

    def reopened(self, path: Path) -> "HostParts":
        """The same, of a copy of the parts.

        Raises:
            UserError: as for `Parts.open`.
        """
        return replace(self, parts=Parts.open(path))

    @property
    def manifest(self) -> Manifest:
        """Of the parts."""
        return self.parts.manifest

    @property
    def num_hosts(self) -> int:
        """H."""
        return len(self.bounds) - 1

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 `[H + 1]`: host h holds the gids in [offsets[h], offsets[h + 1])."""
        return self.parts.offsets[list(self.bounds)]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(low, high) for every host: it holds the gids in [low, high)."""
        return [self.nodes(host) for host in range(self.num_hosts)]

    def trainer_bounds(self, trainers_per_host: int) -> np.ndarray:
        """int64 `[trainers + 1]`: every host's gids, shared evenly among its trainers."""
        bounds = [int(self.offsets[0])]
        for low, high in self.ranges:
            size = high - low
            bounds += [
                low + size * share // trainers_per_host for share in range(1, trainers_per_host + 1)
            ]
        return np.array(bounds, np.int64)

    def held(self, host: int) -> range:
        """The numbers of a host's parts."""
        return range(*self.bounds[host : host + 2])

    def names(self, host: int) -> str:
        """A host's parts, in messages: "part 3", or "parts 3-5"."""
        held = self.held(host)
        return f"part {held[0]}" if len(held) == 1 else f"parts {held[0]}-{held[-1]}"

    def nodes(self, host: int) -> tuple[int, int]:
        """(low, high): the host holds the gids in [low, high)."""
        low, high = self.offsets[host : host + 2]
        return int(low), int(high)

    def edges(self, host: int) -> tuple[int, int]:
        """(low, high): it holds the edges of its nodes, which have these ids."""
        parts, held = self.manifest.parts, self.held(host)
        return parts[held[0]].edges[0], parts[held[-1]].edges[1]

    def num_nodes(self, host: int) -> int:
        """Nodes that a host holds."""
        low, high = self.nodes(host)
        return high - low

    def feature_numbers(self, host: int) -> int:
        """How many numbers the features of its nodes store."""
        return sum(self.manifest.parts[part].feature_numbers for part in self.held(host))

    def bytes(self, host: int) -> int:
        """The size of its parts' files."""
        return sum(self.manifest.parts[part].bytes for part in self.held(host))

    def sparse_features(self, host: int) -> SparseArrays:
        """The rows of sparse features that a host holds, in gid order.

        Raises:
            UserError: as for `Parts.sparse_features`.
        """
        pieces = [self.parts.sparse_features(part) for part in self.held(host)]
        if len(pieces) == 1:
            return pieces[0]
        counts = np.concatenate([np.diff(piece.indptr) for piece in pieces])
        values = [piece.values for piece in pieces if piece.values is not None]
        return SparseArrays(
            np.concatenate([[0], np.cumsum(counts)]),
            np.concatenate([piece.columns for piece in pieces]),
            np.concatenate(values) if values else None,
        )

    def cache_ranking(self, host: int) -> np.ndarray:
        """Gids of other hosts that a host's trainers may sample, the likeliest first: int `[c]`.

        Where a host holds several parts, a node's probability is the mean of its probabilities for
        each of them, weighted by their train nodes: what is right to first order for batches that
        draw their seeds from all of them.

        Raises:
            UserError: a file cannot be read.
        """
        held = self.held(host)
        if len(held) == 1:
            return self.parts.cache_ranking(held[0])
        probability = np.zeros(self.manifest.num_nodes, np.float32)
        for part in held:
            ranked = self.parts.cache_ranking(part)
            weight = self.manifest.parts[part].train_nodes
            probability[ranked] += weight * self.parts.cache_probability(part)
        low, high = self.nodes(host)
        probability[low:high] = 0
        reached = np.flatnonzero(probability)
        order = np.argsort(-probability[reached], kind="stable")
        return reached[order].astype(self.parts.cache_ranking(held[0]).dtype)


def deal_out(sizes: Sequence[int], num_hosts: int) -> tuple[int, ...]:
    """Cut a list of parts into runs, one for each host, none of them empty.

    A cut is where the nodes before it are nearest to those hosts' equal share of all.

    Args:
        sizes: `[P]`, the nodes of each part.
        num_hosts: H, at most P.

    Returns:
        `[H + 1]`: host h gets the parts [bounds[h], bounds[h + 1]).
    """
    before = np.concatenate([[0], np.cumsum(sizes)])
    bounds = [0]
    for host in range(1, num_hosts):
        share = before[-1] * host / num_hosts
        first, last = bounds[-1] + 1, len(sizes) - num_hosts + host
        bounds.append(first + int(np.argmin(np.abs(before[first : last + 1] - share))))
    return (*bounds, len(sizes))
