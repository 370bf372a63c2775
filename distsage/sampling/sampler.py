"""Neighbour sampling on a host's copy of the topology.

Runs on trainer ranks and in the workers of the local run; needs numpy and numba, no DGL. All loops
release the GIL, so that a thread can sample ahead.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from distsage.data.graph import Topology
from distsage.errors import UserError
from distsage.kernels import threads
from distsage.kernels.picking import number_nodes, sample_independently, sample_labor
from distsage.kernels.rng import draw
from distsage.kernels.simd import LANES
from distsage.sampling.batch import Block, MiniBatch

Method = Literal["uniform", "replacement", "labor"]

_PICKED_ROWS = 256
"""Destinations of one piece of `SharedPicking`, at least."""


Pick = Callable[[np.ndarray, int, np.uint64], tuple[np.ndarray, np.ndarray]]
"""As `Neighbours.pick`."""


class Neighbours:
    """Picks among the in-edges of consecutive nodes. Keeps scratch space: not for two threads.

    Args:
        topology: in-edges of the whole graph; other nodes' are not read.
        method: see `Sampler`.
        low, high: the nodes, [low, high); all of them by default.
    """

    def __init__(
        self, topology: Topology, method: Method, low: int = 0, high: int | None = None
    ) -> None:
        self._indptr = topology.indptr[low : topology.num_nodes + 1 if high is None else high + 1]
        self._indices = topology.indices
        self._low = low
        self._method = method
        self._max_degree = int(np.diff(self._indptr).max(initial=0))
        self._make_scratch()

    def _make_scratch(self) -> None:
        if self._method == "labor":
            self._small = np.empty(2 * (self._max_degree + 2 * LANES), np.int32)
        else:
            self._picked = np.zeros(self._max_degree // 64 + 1, np.uint64)

    def twin(self) -> "Neighbours":
        """Another one for another thread, with scratch space of its own."""
        other = copy.copy(self)
        other._make_scratch()
        return other

    def pick(
        self, dst_gid: np.ndarray, fan_out: int, key: np.uint64
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pick neighbours of distinct destinations, all in [low, high).

        A destination's picks depend on its gid and the key, not on the others beside it.

        Args:
            dst_gid: `[n]` of the topology's integer type.
            fan_out: of the layer; -1 takes all.
            key: of the layer's stream.

        Returns:
            indptr int64 `[n + 1]` and source gids `[nnz]` of the topology's integer type.
        """
        arguments = (self._indptr, self._indices, self._low, dst_gid, fan_out, key)
        if self._method == "labor":
            indptr, src_gid = sample_labor(*arguments, self._small)
        else:
            replace = self._method == "replacement"
            indptr, src_gid = sample_independently(*arguments, replace, self._picked)
        return indptr, src_gid


class SharedPicking:
    """Picks as `Neighbours` does, on all threads of the process. For whoever samples in line.

    Workers that prepare batches ahead share the work by batches instead.

    Args:
        neighbours: what to pick among.
    """

    def __init__(self, neighbours: Neighbours) -> None:
        self._idle = [neighbours.twin() for _ in range(threads.budget())]

    def pick(
        self, dst_gid: np.ndarray, fan_out: int, key: np.uint64
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Neighbours.pick`, to the last bit."""
        step = threads.piece(len(dst_gid), _PICKED_ROWS)
        picks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

        def rows(begin: int, end: int) -> None:
            own = self._idle.pop()
            picks[begin] = own.pick(dst_gid[begin:end], fan_out, key)
            self._idle.append(own)

        threads.share_rows(rows, len(dst_gid), step)
        if len(picks) == 1:
            return picks[0]
        in_order = [picks[begin] for begin in range(0, len(dst_gid), step)]
        counts = [np.diff(indptr) for indptr, _ in in_order]
        indptr = np.zeros(len(dst_gid) + 1, np.int64)
        if counts:
            np.cumsum(np.concatenate(counts), out=indptr[1:])
        sources = [src_gid for _, src_gid in in_order]
        return indptr, np.concatenate(sources) if sources else dst_gid[:0]


class Sampler:
    """Neighbour sampling, layer by layer from the seeds (GraphSAGE, arXiv 1706.02216, 3.1).

    Not for use by two threads at once: it keeps a scratch array of N integers. A batch is a pure
    function of the topology, the options, the seeds and the key.

    Methods, all of which give an unbiased mean:
        uniform: distinct neighbours, all sets alike, independent for every destination.
        replacement: independent picks; a neighbour may be picked twice.
        labor: LABOR-0 with a fixed number of picks (sequential Poisson sampling; arXiv 2210.13339,
            3.2 and appendix A.3). All destinations of a layer share one random number per source
            and take the neighbours with the smallest, so that they choose the same sources where
            they can: each picks as in `uniform`, together they need fewer distinct nodes.

    Args:
        topology: in-edges; the arrays may be read-only memory maps.
        fan_outs: neighbours to sample per layer, input-side layer first, seeds last, as in DGL;
            -1 takes all of them. A node with fewer neighbours keeps those it has.
        method: see above. With `replacement` a node with any neighbours has exactly fan-out picks.
        number_inputs: also number the unique input nodes, for a caller that gathers their rows.
        in_line: pick on all threads of the process, because nothing else runs meanwhile.
        pick: picks the neighbours instead, where the edges are not at hand; of the topology, only
            its size and type are then used.

    Raises:
        UserError: a fan-out is neither -1 nor positive.
    """

    def __init__(
        self,
        topology: Topology,
        fan_outs: Sequence[int],
        *,
        method: Method = "uniform",
        number_inputs: bool = False,
        in_line: bool = False,
        pick: Pick | None = None,
    ) -> None:
        if not fan_outs or any(f != -1 and f < 1 for f in fan_outs):
            raise UserError(f"fan-outs are -1 (all neighbours) or at least 1, not {list(fan_outs)}")
        self.topology = topology
        self.fan_outs = tuple(int(f) for f in fan_outs)
        self.number_inputs = number_inputs
        if pick is None:
            neighbours = Neighbours(topology, method)
            pick = SharedPicking(neighbours).pick if in_line else neighbours.pick
        self._pick = pick
        self._slot = np.full(topology.num_nodes, -1, np.int32)

    def sample(self, seed_gid: np.ndarray, key: np.uint64, dropout_key: np.uint64) -> MiniBatch:
        """Draw one mini-batch.

        Args:
            seed_gid: int64 `[B]`, distinct; B may be 0.
            key: stream of the picks.
            dropout_key: handed on as `MiniBatch.key`.
        """
        topology = self.topology
        num_layers = len(self.fan_outs)
        blocks: list[Block] = []
        input_gid = None
        dst_gid = seed_gid.astype(topology.indices.dtype)
        for layer in reversed(range(num_layers)):
            layer_key = np.uint64(draw(key, layer))
            indptr, src_gid = self._pick(dst_gid, self.fan_outs[layer], layer_key)
            if layer == 0 and not self.number_inputs:
                break
            gid = np.empty(len(dst_gid) + len(src_gid), src_gid.dtype)
            bid = np.empty(len(src_gid), np.int32)
            num_src = number_nodes(dst_gid, src_gid, self._slot, gid, bid)
            edges = Block(indptr, bid, num_src)
            if layer == 0:
                input_gid = gid[:num_src]
            else:
                blocks.append(edges)
                dst_gid = gid[:num_src]
        if input_gid is None:
            edges = Block(indptr, src_gid, topology.num_nodes)
        return MiniBatch(dropout_key, seed_gid, tuple(reversed(blocks)), dst_gid, edges, input_gid)
