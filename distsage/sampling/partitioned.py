"""Sampling where a host reads the in-edges of its own part only. Trainer and server ranks.

For graphs whose topology does not fit a host's memory. A trainer picks the neighbours of its part's
nodes itself, from its slice of the topology file, and asks the servers of the other parts for the
rest; they pick with the same kernel and the same key, so that a batch is the same, to the last bit,
as with the whole topology at hand.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from distsage.data.graph import Topology
from distsage.kernels.picking import place_picks
from distsage.limits import human_bytes
from distsage.sampling.sampler import Method, Neighbours

NEIGHBOURS = "neighbours"
"""The subject of the question that `PartitionedNeighbours` asks and `PartAnswer` answers."""


class Asks(Protocol):
    """Asks the servers of other parts."""

    def ask(
        self, subject: str, tensors: Mapping[int, Tensor], *arguments: int | str
    ) -> Mapping[int, Sequence[Tensor]]:
        """What the server of each part answers; blocks."""
        ...


# What sampling may take of the memory that a host has available.
_SHARE_OF_MEMORY = 0.5


def choose_topology(
    wanted: Literal["auto", "replicated", "partitioned"], topology: Topology, least_memory: int
) -> tuple[Literal["replicated", "partitioned"], str]:
    """Decide whether every host samples from the whole topology, and say why.

    Args:
        wanted: auto decides by memory: a host that pages the topology in and out is slower than
            one that asks.
        topology: of the whole graph.
        least_memory: bytes that the job can still take on the host that has the least.
    """
    size = topology.indptr.nbytes + topology.indices.nbytes
    facts = (
        f"the topology has {human_bytes(size)}, the host with the least memory "
        f"{human_bytes(least_memory)}"
    )
    if wanted != "auto":
        return wanted, f"topology {wanted}, as asked for ({facts} available)"
    choice: Literal["replicated", "partitioned"] = (
        "replicated" if size <= _SHARE_OF_MEMORY * least_memory else "partitioned"
    )
    return choice, f"topology {choice} ({facts} available)"


class PartitionedNeighbours:
    """Picks among the in-edges of any nodes, as `Neighbours` does. Not for two threads.

    Args:
        own: of this host's part.
        part: this host's.
        offsets: int64 `[P + 1]`; part i owns the gids in [offsets[i], offsets[i + 1]).
        store: asks the servers of other parts.
    """

    def __init__(self, own: Neighbours, part: int, offsets: np.ndarray, store: Asks) -> None:
        self._own = own
        self._part = part
        self._offsets = offsets
        self._store = store

    def pick(
        self, dst_gid: np.ndarray, fan_out: int, key: np.uint64
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Neighbours.pick`, for any distinct destinations."""
        owner = np.searchsorted(self._offsets, dst_gid, side="right") - 1
        places = {int(part): np.flatnonzero(owner == part) for part in np.unique(owner)}
        remote = {part: at for part, at in places.items() if part != self._part}
        asked = {part: torch.from_numpy(dst_gid[at]) for part, at in remote.items()}
        answers = self._store.ask(NEIGHBOURS, asked, fan_out, int(key)) if asked else {}
        counts = np.zeros(len(dst_gid), np.int64)
        picks = []
        for part, at in remote.items():
            number, part_src = (answer.numpy() for answer in answers[part])
            counts[at] = number
            picks.append((at, part_src))
        own_at = places.get(self._part, np.empty(0, np.int64))
        own_indptr, own_src = self._own.pick(dst_gid[own_at], fan_out, key)
        counts[own_at] = np.diff(own_indptr)
        picks.append((own_at, own_src))

        indptr = np.zeros(len(dst_gid) + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        src_gid = np.empty(indptr[-1], dst_gid.dtype)
        for at, part_src in picks:
            place_picks(indptr, at, part_src, src_gid)
        return indptr, src_gid


class PartAnswer:
    """A server's side: picks among its part's in-edges for the trainers of other hosts.

    Args:
        topology: of the whole graph; the slice of the part is read.
        method: see `Sampler`.
        low, high: the gids that the part owns.
    """

    def __init__(self, topology: Topology, method: Method, low: int, high: int) -> None:
        self._arguments = topology, method, low, high

    @cached_property
    def _neighbours(self) -> Neighbours:
        # Made when somebody asks: most jobs sample from the whole topology.
        return Neighbours(*self._arguments)

    def pick(self, dst_gid: Tensor, fan_out: int, key: int) -> Sequence[Tensor]:
        """Number of picks of each destination, int32 `[n]`, and their source gids, `[nnz]`."""
        indptr, src_gid = self._neighbours.pick(dst_gid.numpy(), fan_out, np.uint64(key))
        return torch.from_numpy(np.diff(indptr).astype(np.int32)), torch.from_numpy(src_gid)
