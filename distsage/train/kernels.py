"""Loops over sampled edges that PyTorch has no fast form of, for the CPU, compiled by numba.

Runs on trainer ranks and in the local run. Everything here takes numpy arrays (views of tensors),
releases the GIL, allocates nothing, and handles a range of rows or columns, so that the callers
in `distsage.train.model` can divide the work between threads.
"""

import numba
import numpy as np

from distsage.train.rng import draw


@numba.njit(nogil=True, cache=True, error_model="numpy")
def gather_self_and_mean(
    out: np.ndarray,
    indptr: np.ndarray,
    slots: np.ndarray,
    dst_slots: np.ndarray,
    own: np.ndarray,
    cached: np.ndarray,
    missed: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """Rows [begin, end) of layer 1's input: `out[i] = [x(dst i) | mean of x over i's edges]`.

    Slots count through the rows of `own`, then `cached`, then `missed`, `[., F]` each; `out` is
    `[n, 2F]`. Destination i has the edges [indptr[i], indptr[i + 1]) - indptr[0] of `slots`, so
    that indptr may be a slice of a longer one. The mean of no edges is 0.
    """
    width = own.shape[1]
    num_own = own.shape[0]
    num_kept = num_own + cached.shape[0]
    for i in range(begin, end):
        s = dst_slots[i]
        if s < num_own:
            for f in range(width):
                out[i, f] = own[s, f]
        elif s < num_kept:
            for f in range(width):
                out[i, f] = cached[s - num_own, f]
        else:
            for f in range(width):
                out[i, f] = missed[s - num_kept, f]
        for f in range(width, 2 * width):
            out[i, f] = 0
        first = indptr[i] - indptr[0]
        last = indptr[i + 1] - indptr[0]
        for e in range(first, last):
            s = slots[e]
            if s < num_own:
                for f in range(width):
                    out[i, width + f] += own[s, f]
            elif s < num_kept:
                for f in range(width):
                    out[i, width + f] += cached[s - num_own, f]
            else:
                for f in range(width):
                    out[i, width + f] += missed[s - num_kept, f]
        if last > first + 1:
            scale = np.float32(1) / np.float32(last - first)
            for f in range(width, 2 * width):
                out[i, f] *= scale


@numba.njit(nogil=True, cache=True)
def relu_dropout(
    h: np.ndarray, threshold: int, scale: float, key: np.uint64, begin: int, end: int
) -> None:
    """In place on rows [begin, end) of h: `max(h, 0) * scale`, or 0 where the hash says drop.

    Element (i, k) is dropped when its 32 hashed bits are below `threshold`. The hash is lowbias32
    (Wellons, "Prospecting for hash functions", 2018) of k, keyed by 64 bits per row.
    `distsage.train.model` has the same function as tensor operations, for other devices.
    """
    width = h.shape[1]
    for i in range(begin, end):
        row = draw(key, i)
        low = np.uint32(row & np.uint64(0xFFFFFFFF))
        high = np.uint32(row >> np.uint64(32))
        for k in range(width):
            x = np.uint32(np.uint32(np.uint32(k) * np.uint32(0x9E3779B9)) + low)
            x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
            x = np.uint32(x ^ high)
            x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
            x = np.uint32(x ^ (x >> np.uint32(16)))
            keep = (x >= threshold) & (h[i, k] > 0)
            h[i, k] = h[i, k] * scale if keep else np.float32(0)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def self_and_mean(
    out: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    h: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """Rows [begin, end) of `out[i] = [h[i] | mean of h over i's edges]`; h is `[num_src, H]`."""
    width = h.shape[1]
    for i in range(begin, end):
        for f in range(width):
            out[i, f] = h[i, f]
        for f in range(width, 2 * width):
            out[i, f] = 0
        first = indptr[i]
        last = indptr[i + 1]
        for e in range(first, last):
            s = indices[e]
            for f in range(width):
                out[i, width + f] += h[s, f]
        if last > first + 1:
            scale = np.float32(1) / np.float32(last - first)
            for f in range(width, 2 * width):
                out[i, f] *= scale


@numba.njit(nogil=True, cache=True)
def transpose(
    indptr: np.ndarray, indices: np.ndarray, num_src: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A block's edges by source.

    Returns:
        (int64 `[num_src + 1]`, int32 `[nnz]`, float32 `[nnz]`): where the edges of each source
        begin, their destinations in ascending order, and 1 / degree of each destination.
    """
    begin = np.zeros(num_src + 2, np.int64)
    for e in range(len(indices)):
        begin[indices[e] + 2] += 1
    for s in range(num_src):
        begin[s + 2] += begin[s + 1]
    dst = np.empty(len(indices), np.int32)
    weight = np.empty(len(indices), np.float32)
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            at = begin[indices[e] + 1]
            begin[indices[e] + 1] = at + 1
            dst[at] = i
            weight[at] = np.float32(1) / np.float32(indptr[i + 1] - indptr[i])
    return begin[:-1], dst, weight


@numba.njit(nogil=True, cache=True, error_model="numpy")
def hidden_self_and_mean_backward(
    grad_z: np.ndarray,
    h: np.ndarray,
    grad_out: np.ndarray,
    begin_of: np.ndarray,
    dst: np.ndarray,
    weight: np.ndarray,
    scale: float,
    begin: int,
    end: int,
) -> None:
    """Rows [begin, end) of grad_z `[num_src, H]`, through mean, dropout and ReLU in one pass.

    Args:
        grad_z: to fill.
        h: the activations `[num_src, H]`; gradient passes where they are positive.
        grad_out: `[num_dst, 2H]`.
        begin_of, dst, weight: from `transpose`.
        scale: what dropout multiplied the kept elements by.
        begin, end: the rows.
    """
    width = h.shape[1]
    for s in range(begin, end):
        first = begin_of[s]
        last = begin_of[s + 1]
        if s < len(grad_out):
            for f in range(width):
                grad_z[s, f] = grad_out[s, f]
        elif first == last:
            for f in range(width):
                grad_z[s, f] = 0
        else:  # nearly every row has one edge: no need to add it to zeros
            w = weight[first]
            i = dst[first]
            first += 1
            for f in range(width):
                grad_z[s, f] = w * grad_out[i, width + f]
        for e in range(first, last):
            w = weight[e]
            i = dst[e]
            for f in range(width):
                grad_z[s, f] += w * grad_out[i, width + f]
        for f in range(width):
            grad_z[s, f] = grad_z[s, f] * scale if h[s, f] > 0 else np.float32(0)
