"""The loops of the samplers: picking edges, numbering the nodes of a block.

Runs on trainer ranks, on servers, and in the workers of the local run. The picks are whole-number
arithmetic, the same at every level.
"""

import numpy as np

from distsage.kernels.compiled import compiled
from distsage.kernels.integers import (
    at_most16,
    compress16,
    count_bits,
    fill16,
    hash16,
    items16,
    ranks16,
)
from distsage.kernels.rng import below, draw, mix64
from distsage.kernels.simd import LANES, prefetch_item

_ROWS_AT_ONCE = 64
"""Destinations whose picks are read together; 32 to 128 measure the same."""


@compiled
def sample_independently(
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

    64 destinations at a time, and one edge after the other: first which edges, then their sources,
    which arrive meanwhile. Waits for memory.

    The edges of node v are indices[indptr[v - low]:indptr[v - low + 1]]. Without replacement by
    Floyd's algorithm (Bentley, CACM 30(9), 1987): exactly fan_out draws a row. `picked` is a bit
    set of at least the largest degree, all zero before and after.
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


_ROWS_AHEAD = 8
_PREFETCHED = 1024
"""LABOR reads whole rows: how many rows ahead they are prefetched, and how much of each."""


@compiled
def sample_labor(
    indptr: np.ndarray,
    indices: np.ndarray,
    low: int,
    dst_gid: np.ndarray,
    fan_out: int,
    key: np.uint64,
    small: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Pick the fan_out neighbours with the smallest hashes (`hash16`); returns the same.

    One destination after the other, sixteen edges at a time, without branches on hashes: first the
    edges below a bound, a few more than fan_out, are put together, then the smallest of these.
    Waits for memory, since it reads whole rows.

    `small`, int32, is scratch space: twice 32 elements more than the largest degree.
    """
    num_dst = len(dst_gid)
    begin = np.empty(num_dst, np.int64)
    end = np.empty(num_dst, np.int64)
    out_indptr = np.empty(num_dst + 1, np.int64)
    out_indptr[0] = 0
    for i in range(num_dst):
        v = dst_gid[i] - low
        begin[i] = indptr[v]
        end[i] = indptr[v + 1]
        degree = end[i] - begin[i]
        out_indptr[i + 1] = out_indptr[i] + (degree if fan_out < 0 else min(degree, fan_out))

    small_src = np.empty(len(small), indices.dtype)
    out_src = np.empty(out_indptr[num_dst] + 2 * LANES, indices.dtype)
    # A processor cannot read what several stores have written before these have reached its cache.
    # So what a row has written is read after the next row has, and these two share the scratch.
    num_small = 0
    for i in range(num_dst + 1):
        chosen_from = num_small
        if i < num_dst:
            ahead = i + _ROWS_AHEAD
            if ahead < num_dst:
                for e in range(begin[ahead], min(end[ahead], begin[ahead] + _PREFETCHED), 16):
                    prefetch_item(indices, e)  # a cache line
            at = (i & 1) * (len(small) >> 1)
            edges = begin[i], end[i]
            num_small = 0
            if 0 <= fan_out < edges[1] - edges[0]:
                num_small = _keep_small(small, small_src, at, indices, edges, fan_out, key)
        if chosen_from > 0:
            at = (i - 1 & 1) * (len(small) >> 1)
            _choose(out_src, out_indptr[i - 1], small, small_src, at, chosen_from, fan_out)
        elif i > 0:
            first = begin[i - 1]
            for p in range(end[i - 1] - first):
                out_src[out_indptr[i - 1] + p] = indices[first + p]
    return out_indptr, out_src[: out_indptr[num_dst]]


@compiled
def _keep_small(
    small: np.ndarray,
    small_src: np.ndarray,
    at: int,
    indices: np.ndarray,
    edges: tuple[int, int],
    fan_out: int,
    key: np.uint64,
) -> int:
    """Write the edges with small hashes, at least fan_out, from `at` on; return how many."""
    first, last = edges
    # Nearly always the smallest are below a bound that few others are below, too.
    share = (fan_out + 2 * np.sqrt(fan_out) + 2) / (last - first)
    to = at
    while to - at < fan_out:
        bound = np.int32(min(share, 1.0) * 0xFFFFFFFF - 2.0**31)
        to = at
        for e in range(first, last, LANES):
            sources = items16(indices, e, last - e)
            numbers = hash16(sources, key)
            bits = at_most16(numbers, bound)
            if last - e < LANES:
                bits &= (np.uint64(1) << np.uint64(last - e)) - np.uint64(1)
            compress16(small, to, numbers, bits)
            compress16(small_src, to, sources, bits)
            to += count_bits(bits)
        share *= 2
    fill16(small, to, np.int32(0x7FFFFFFF))
    return to - at


@compiled
def _choose(
    out_src: np.ndarray,
    out: int,
    small: np.ndarray,
    small_src: np.ndarray,
    at: int,
    count: int,
    fan_out: int,
) -> None:
    """Write the fan_out of `count` edges whose hashes are smallest, from `out` on.

    Equal hashes have one rank. What is too much for that is overwritten by the next row.
    """
    last = out + fan_out
    for p in range(at, at + count, LANES):
        ranks = ranks16(small, at, count, items16(small, p, LANES))
        bits = at_most16(ranks, np.int32(fan_out - 1))
        compress16(out_src, out, items16(small_src, p, LANES), bits)
        out = min(out + count_bits(bits), last)


@compiled
def number_nodes(
    dst_gid: np.ndarray,
    src_gid: np.ndarray,
    slot: np.ndarray,
    gid: np.ndarray,
    bid: np.ndarray,
) -> int:
    """Number the nodes of a block, destinations first: fill `bid`, and `gid[:n]`; return n.

    One edge after the other; waits for the scratch array's cache lines.

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


@compiled
def place_picks(indptr: np.ndarray, at: np.ndarray, part: np.ndarray, whole: np.ndarray) -> None:
    """Copy the picks of the destinations `at`, which stand in `part` one after the other."""
    e = 0
    for i in at:
        for p in range(indptr[i], indptr[i + 1]):
            whole[p] = part[e]
            e += 1
