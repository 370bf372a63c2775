"""Neighbour sampling on a host's copy of the topology.

Runs on trainer ranks and in the workers of the local run; needs numpy and numba, no DGL. All loops
release the GIL, so that a thread can sample ahead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distsage.data.graph import Topology
from distsage.errors import UserError
from distsage.train.compiled import compiled
from distsage.train.rng import below, draw, mix64
from distsage.train.vectors import LANES, at_most16, compress16, count_bits, hash16, prefetch_item

Method = Literal["uniform", "replacement", "labor"]


@dataclass(frozen=True)
class Csc:
    """The edges of one sampled layer; the first `num_dst` of its source nodes are its destinations.

    Attributes:
        indptr: int64 `[num_dst + 1]`. Destination i has the edges `indices[indptr[i]:indptr[i+1]]`.
        indices: integer `[nnz]`, the source of each edge: a `_bid` in [0, num_src), or a `_gid` in
            the input layer of a batch whose inputs are not numbered.
        num_src: number of source nodes.
    """

    indptr: np.ndarray
    indices: np.ndarray
    num_src: int

    @property
    def num_dst(self) -> int:
        """Number of destination nodes."""
        return len(self.indptr) - 1


@dataclass(frozen=True)
class MiniBatch:
    """What a trainer needs to know about one step, apart from features and labels.

    The layers are in the order of the computation: `input_edges` is layer 1, `blocks[0]` layer 2,
    and the destinations of the last one are the seeds. Source node j of `blocks[0]` is destination
    j of the input layer.

    Attributes:
        key: the dropout stream of this batch (`distsage.train.rng.stream_key`).
        seed_gid: int64 `[B]`.
        blocks: layers 2..L, indices are int32 `_bid`.
        dst_gid: `[n1]` of the topology's integer type, the destinations of the input layer.
        input_edges: layer 1, `[n1]` destinations. Its indices are `_gid`, or int32 `_bid` where
            the inputs are numbered; num_src is then `len(input_gid)`, otherwise N.
        input_gid: None, or the unique input nodes, `[num_src]`; `dst_gid` is its beginning.
    """

    key: np.uint64
    seed_gid: np.ndarray
    blocks: tuple[Csc, ...]
    dst_gid: np.ndarray
    input_edges: Csc
    input_gid: np.ndarray | None


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
        max_degree = int(np.diff(self._indptr).max(initial=0))
        if method == "labor":
            self._numbers = np.empty((2, max_degree + 2 * LANES), np.uint32)
        else:
            self._picked = np.zeros(max_degree // 64 + 1, np.uint64)

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
            indptr, src_gid = _sample_labor(*arguments, *self._numbers)
        else:
            replace = self._method == "replacement"
            indptr, src_gid = _sample_independently(*arguments, replace, self._picked)
        return indptr, src_gid


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
        pick: Pick | None = None,
    ) -> None:
        if not fan_outs or any(f != -1 and f < 1 for f in fan_outs):
            raise UserError(f"fan-outs are -1 (all neighbours) or at least 1, not {list(fan_outs)}")
        self.topology = topology
        self.fan_outs = tuple(int(f) for f in fan_outs)
        self.number_inputs = number_inputs
        self._pick = pick or Neighbours(topology, method).pick
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
        blocks: list[Csc] = []
        input_gid = None
        dst_gid = seed_gid.astype(topology.indices.dtype)
        for layer in reversed(range(num_layers)):
            layer_key = np.uint64(draw(key, layer))
            indptr, src_gid = self._pick(dst_gid, self.fan_outs[layer], layer_key)
            if layer == 0 and not self.number_inputs:
                break
            gid = np.empty(len(dst_gid) + len(src_gid), src_gid.dtype)
            bid = np.empty(len(src_gid), np.int32)
            num_src = _number(dst_gid, src_gid, self._slot, gid, bid)
            edges = Csc(indptr, bid, num_src)
            if layer == 0:
                input_gid = gid[:num_src]
            else:
                blocks.append(edges)
                dst_gid = gid[:num_src]
        if input_gid is None:
            edges = Csc(indptr, src_gid, topology.num_nodes)
        return MiniBatch(dropout_key, seed_gid, tuple(reversed(blocks)), dst_gid, edges, input_gid)


_ROWS_AT_ONCE = 64
"""Destinations whose picks are read together; 32 to 128 measure the same."""


@compiled
def _sample_independently(
    indptr: np.ndarray,
    indices: np.ndarray,
    low: int,
    dst_gid: np.ndarray,
    fan_out: int,
    key: np.uint64,
    replace: bool,
    picked: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Pick neighbours of each destination: (indptr int64 `[n + 1]`, source gids `[nnz]`).

    The edges of node v are indices[indptr[v - low]:indptr[v - low + 1]].
    Without replacement by Floyd's algorithm (Bentley, CACM 30(9), 1987): exactly fan_out draws a
    row. `picked` is a bit set of at least the largest degree, all zero before and after.
    """
    num_dst = len(dst_gid)
    begin = np.empty(num_dst, np.int64)
    degrees = np.empty(num_dst, np.int64)
    out_indptr = np.empty(num_dst + 1, np.int64)
    out_indptr[0] = 0
    for i in range(num_dst):
        v = dst_gid[i] - low
        begin[i] = indptr[v]
        degree = indptr[v + 1] - indptr[v]
        degrees[i] = degree
        if fan_out >= 0 and (degree > fan_out or (replace and degree > 0)):
            degree = fan_out
        out_indptr[i + 1] = out_indptr[i] + degree
    out_src = np.empty(out_indptr[num_dst], indices.dtype)
    if fan_out < 0:
        for i in range(num_dst):
            for p in range(out_indptr[i + 1] - out_indptr[i]):
                out_src[out_indptr[i] + p] = indices[begin[i] + p]
        return out_indptr, out_src

    # A few rows at a time: while the neighbours of some are picked, those of the others arrive.
    edge = np.empty(_ROWS_AT_ONCE * fan_out, np.int64)
    drawn = np.empty(fan_out, np.int64)
    for first_row in range(0, num_dst, _ROWS_AT_ONCE):
        last_row = min(first_row + _ROWS_AT_ONCE, num_dst)
        for i in range(first_row, last_row):
            first = begin[i]
            degree = degrees[i]
            row_key = mix64(key + np.uint64(dst_gid[i]))
            out = out_indptr[i] - out_indptr[first_row]
            if degree <= fan_out and not replace:
                for p in range(degree):
                    edge[out + p] = first + p
            elif replace:
                for p in range(out_indptr[i + 1] - out_indptr[i]):
                    edge[out + p] = first + below(draw(row_key, p), degree)
            else:
                base = degree - fan_out
                for p in range(fan_out):  # on its own, so that it becomes vector instructions
                    drawn[p] = below(draw(row_key, p), base + p + 1)
                if degree <= 64:
                    _pick_few(edge, out, first, base, drawn)
                else:
                    _pick_many(edge, out, first, base, drawn, picked)
            for e in range(out, out + out_indptr[i + 1] - out_indptr[i]):
                prefetch_item(indices, edge[e])
        start = out_indptr[first_row]
        for e in range(out_indptr[last_row] - start):
            out_src[start + e] = indices[edge[e]]
    return out_indptr, out_src


@compiled
def _pick_few(edge: np.ndarray, out: int, first: int, base: int, drawn: np.ndarray) -> None:
    """Floyd's algorithm on one row of at most 64 edges; those taken are the bits of a number."""
    taken = np.uint64(0)
    for p in range(len(drawn)):
        j = drawn[p]
        # No branch, because nobody could predict it: j stays, or becomes base + p.
        j += int(taken >> np.uint64(j) & np.uint64(1)) * (base + p - j)
        taken |= np.uint64(1) << np.uint64(j)
        edge[out + p] = first + j


@compiled
def _pick_many(
    edge: np.ndarray, out: int, first: int, base: int, drawn: np.ndarray, picked: np.ndarray
) -> None:
    """The same on a row of any length; `picked` is a bit set of zeros before and after."""
    for p in range(len(drawn)):
        j = drawn[p]
        j += int(picked[j >> 6] >> np.uint64(j & 63) & np.uint64(1)) * (base + p - j)
        picked[j >> 6] |= np.uint64(1) << np.uint64(j & 63)
        edge[out + p] = first + j
    for p in range(len(drawn)):
        picked[(edge[out + p] - first) >> 6] = 0


_ROWS_AHEAD = 2
_PREFETCHED = 1024
"""LABOR reads whole rows: how many rows ahead they are prefetched, and how much of each."""


@compiled
def _sample_labor(
    indptr: np.ndarray,
    indices: np.ndarray,
    low: int,
    dst_gid: np.ndarray,
    fan_out: int,
    key: np.uint64,
    numbers: np.ndarray,
    small: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Pick the fan_out neighbours with the smallest hashes (`hash16`); returns as above.

    `numbers` and `small`, uint32, are scratch space for 32 elements more than the largest degree.
    """
    num_dst = len(dst_gid)
    out_indptr = np.empty(num_dst + 1, np.int64)
    out_indptr[0] = 0
    for i in range(num_dst):
        v = dst_gid[i] - low
        degree = indptr[v + 1] - indptr[v]
        out_indptr[i + 1] = out_indptr[i] + (degree if fan_out < 0 else min(degree, fan_out))

    small_src = np.empty(len(small), indices.dtype)
    out_src = np.empty(out_indptr[num_dst] + 2 * LANES, indices.dtype)
    for i in range(num_dst):
        if i + _ROWS_AHEAD < num_dst:
            ahead = dst_gid[i + _ROWS_AHEAD] - low
            end = min(indptr[ahead + 1], indptr[ahead] + _PREFETCHED)
            for e in range(indptr[ahead], end, 16):  # a cache line
                prefetch_item(indices, e)
        v = dst_gid[i] - low
        first = indptr[v]
        degree = indptr[v + 1] - first
        out = out_indptr[i]
        if fan_out < 0 or degree <= fan_out:
            for p in range(degree):
                out_src[out + p] = indices[first + p]
            continue
        for p in range(0, degree, LANES):
            hash16(numbers, p, indices, first + p, degree - p, key)
        # Nearly always the smallest are below a bound that few others are below, too.
        share = (fan_out + 3 * np.sqrt(fan_out) + 3) / degree
        num_small = 0
        while num_small < fan_out:
            bound = np.uint32(min(share, 1.0) * 0xFFFFFFFF)
            num_small = 0
            for p in range(0, degree, LANES):
                bits = at_most16(numbers, p, bound)
                if degree - p < LANES:
                    bits &= (np.uint64(1) << np.uint64(degree - p)) - np.uint64(1)
                compress16(small, num_small, numbers, p, bits)
                compress16(small_src, num_small, indices, first + p, bits)
                num_small += count_bits(bits)
            share *= 2
        small[num_small : num_small + LANES] = 0xFFFFFFFF
        last = np.uint32(0xFFFFFFFF)  # the fan_out-th smallest
        for q in range(num_small):
            no_larger = 0
            for p in range(0, num_small, LANES):
                no_larger += count_bits(at_most16(small, p, small[q]))
            if no_larger >= fan_out:
                last = min(last, small[q])
        # What is too much, because numbers are equal, is overwritten by the next row.
        taken = out
        for p in range(0, num_small, LANES):
            bits = at_most16(small, p, last)
            if num_small - p < LANES:
                bits &= (np.uint64(1) << np.uint64(num_small - p)) - np.uint64(1)
            compress16(out_src, taken, small_src, p, bits)
            taken = min(taken + count_bits(bits), out + fan_out)
    return out_indptr, out_src[: out_indptr[num_dst]]


@compiled
def _number(
    dst_gid: np.ndarray,
    src_gid: np.ndarray,
    slot: np.ndarray,
    gid: np.ndarray,
    bid: np.ndarray,
) -> int:
    """Number the nodes of a block, destinations first: fill `bid`, and `gid[:n]`; return n.

    `slot` `[N]` is -1 everywhere before and after; it is cleared through the nodes it touched.
    """
    n = len(dst_gid)
    for i in range(n):
        gid[i] = dst_gid[i]
        slot[dst_gid[i]] = i
    for e in range(len(src_gid)):
        v = src_gid[e]
        s = slot[v]
        if s < 0:
            s = n
            slot[v] = n
            gid[n] = v
            n += 1
        bid[e] = s
    for i in range(n):
        slot[gid[i]] = -1
    return n
