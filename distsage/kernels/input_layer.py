"""The loops of a first layer that multiplies before it averages: sparse rows, and wide ones.

Runs on trainer ranks, in the local run and in prediction, on any number of threads at once. Each
distinct row of a batch is multiplied once, and what is averaged are products. Arrays are as
`distsage.kernels.simd` has them; the inner loops take 64 columns at a time, in four vectors.
"""

from typing import NamedTuple

import numpy as np

from distsage.kernels.compiled import compiled
from distsage.kernels.hidden_layer import BySource
from distsage.kernels.simd import (
    LANES,
    add16,
    item,
    load16,
    prefetch_row,
    row,
    scale16,
    store16,
    zeros16,
)

_AHEAD = 16
"""How many rows ahead are prefetched."""


class Csr(NamedTuple):
    """Sparse rows.

    Attributes:
        indptr: int64 `[n + 1]`; row i has the numbers [indptr[i], indptr[i + 1]).
        columns: int32 `[nnz]`.
        values: `[nnz]`, or `[0]`: every number is 1.
    """

    indptr: np.ndarray
    columns: np.ndarray
    values: np.ndarray


class ByColumn(NamedTuple):
    """The numbers of sparse rows, by column; see `transpose_rows`.

    Attributes:
        begin: int64 `[width + 1]`, where the numbers of each column begin.
        rows: int32 `[nnz]`, their rows, ascending.
        values: float32 `[nnz]`.
    """

    begin: np.ndarray
    rows: np.ndarray
    values: np.ndarray


@compiled
def multiply_rows(out: np.ndarray, rows: Csr, weight: np.ndarray, begin: int, end: int) -> None:
    """Rows [begin, end) of `out = rows weight`: each a sum of few rows of the weight, in float32.

    One row after the other, 64 columns at a time, and for these all its numbers: the sums stay in
    registers. Waits for the cache that holds the weight.

    Args:
        out: `[n, H]`.
        rows: `[n, F]`.
        weight: `[F, H]`.
        begin, end: which rows.
    """
    indptr, columns, values = rows
    width = out.shape[1]
    ones = len(values) == 0
    last_number = indptr[end]
    for i in range(begin, end):
        first = indptr[i]
        last = indptr[i + 1]
        for k in range(min(first + _AHEAD, last_number), min(last + _AHEAD, last_number)):
            prefetch_row(weight, row(weight, columns[k]))
        to = row(out, i)
        for c in range(0, width, 4 * LANES):
            a0 = zeros16()
            a1 = zeros16()
            a2 = zeros16()
            a3 = zeros16()
            for k in range(first, last):
                source = row(weight, columns[k])
                v = np.float32(1) if ones else item(values, k)
                a0 = add16(a0, scale16(load16(weight, source, c), v))
                a1 = add16(a1, scale16(load16(weight, source, c + LANES), v))
                a2 = add16(a2, scale16(load16(weight, source, c + 2 * LANES), v))
                a3 = add16(a3, scale16(load16(weight, source, c + 3 * LANES), v))
            store16(out, to, c, a0)
            store16(out, to, c + LANES, a1)
            store16(out, to, c + 2 * LANES, a2)
            store16(out, to, c + 3 * LANES, a3)


@compiled
def add_means(
    out: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    products: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """Add to rows [begin, end) of out the mean of the products that their edges lead to.

    One destination after the other, 64 columns at a time, and for these all edges. Waits for the
    cache that holds the products.

    Args:
        out: `[n, H]`; a row without edges stays as it is.
        indptr: int64 `[n + 1]`.
        indices: int32 `[nnz]`.
        products: `[., H]`.
        begin, end: the destinations.
    """
    width = out.shape[1]
    last_edge = indptr[end]
    for i in range(begin, end):
        first = indptr[i]
        last = indptr[i + 1]
        for e in range(min(first + _AHEAD, last_edge), min(last + _AHEAD, last_edge)):
            prefetch_row(products, row(products, indices[e]))
        share = np.float32(1) / np.float32(max(last - first, 1))
        to = row(out, i)
        tail = load16(out, to, width)  # read before the vectors that it overlaps are overwritten
        for c in range(0, width, 4 * LANES):
            a0 = zeros16()
            a1 = zeros16()
            a2 = zeros16()
            a3 = zeros16()
            for e in range(first, last):
                source = row(products, indices[e])
                a0 = add16(a0, load16(products, source, c))
                a1 = add16(a1, load16(products, source, c + LANES))
                a2 = add16(a2, load16(products, source, c + 2 * LANES))
                a3 = add16(a3, load16(products, source, c + 3 * LANES))
            b0 = load16(out, to, c) if c + LANES < width else tail
            b1 = load16(out, to, c + LANES) if c + 2 * LANES < width else tail
            b2 = load16(out, to, c + 2 * LANES) if c + 3 * LANES < width else tail
            b3 = load16(out, to, c + 3 * LANES) if c + 4 * LANES < width else tail
            store16(out, to, c, add16(b0, scale16(a0, share)))
            store16(out, to, c + LANES, add16(b1, scale16(a1, share)))
            store16(out, to, c + 2 * LANES, add16(b2, scale16(a2, share)))
            store16(out, to, c + 3 * LANES, add16(b3, scale16(a3, share)))


@compiled
def spread_means(out: np.ndarray, edges: BySource, grad: np.ndarray, begin: int, end: int) -> None:
    """Rows [begin, end) of the gradient of the products that `add_means` averages.

    One source after the other, 64 columns at a time, and for these all edges. Waits for the cache
    that holds grad.

    Args:
        out: float32 `[num_src, H]`.
        edges: by source.
        grad: `[num_dst, H]`, the gradient of the sums.
        begin, end: the sources.
    """
    begin_of, dst, edge_weight = edges
    last_edge = begin_of[end]
    for s in range(begin, end):
        first = begin_of[s]
        last = begin_of[s + 1]
        for e in range(min(first + _AHEAD, last_edge), min(last + _AHEAD, last_edge)):
            prefetch_row(grad, row(grad, dst[e]))
        _spread(row(out, s), out, first, last, dst, edge_weight, grad)


@compiled
def _spread(
    to: int,
    out: np.ndarray,
    first: int,
    last: int,
    dst: np.ndarray,
    edge_weight: np.ndarray,
    grad: np.ndarray,
) -> None:
    """The row at the address `to` of out = weighted sum of the rows of grad of some edges."""
    for c in range(0, out.shape[1], 4 * LANES):
        a0 = zeros16()
        a1 = zeros16()
        a2 = zeros16()
        a3 = zeros16()
        for e in range(first, last):
            source = row(grad, dst[e])
            w = edge_weight[e]
            a0 = add16(a0, scale16(load16(grad, source, c), w))
            a1 = add16(a1, scale16(load16(grad, source, c + LANES), w))
            a2 = add16(a2, scale16(load16(grad, source, c + 2 * LANES), w))
            a3 = add16(a3, scale16(load16(grad, source, c + 3 * LANES), w))
        store16(out, to, c, a0)
        store16(out, to, c + LANES, a1)
        store16(out, to, c + 2 * LANES, a2)
        store16(out, to, c + 3 * LANES, a3)


@compiled
def transpose_rows(rows: Csr, width: int) -> ByColumn:
    """Sparse rows `[n, width]` by column: a counting sort. Waits for the second-level cache."""
    indptr, columns, values = rows
    first, last = indptr[0], indptr[len(indptr) - 1]
    begin = np.zeros(width + 2, np.int64)
    for k in range(first, last):
        begin[columns[k] + 2] += 1
    for c in range(width):
        begin[c + 2] += begin[c + 1]
    row_of = np.empty(last - first, np.int32)
    value_of = np.empty(last - first, np.float32)
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            at = begin[columns[k] + 1]
            begin[columns[k] + 1] = at + 1
            row_of[at] = i
            value_of[at] = np.float32(1) if len(values) == 0 else item(values, k)
    return ByColumn(begin[:-1], row_of, value_of)


@compiled
def weight_gradient(
    out: np.ndarray, by_column: ByColumn, grad: np.ndarray, begin: int, end: int
) -> None:
    """Rows [begin, end) of `out = rows' grad`, the gradient of the weight of `multiply_rows`.

    Rows of out whose column does not occur become 0; numbers of rows that grad does not have are
    left out. One column after the other, 64 columns of grad at a time, and for these all numbers.
    Waits for the cache that holds grad. A sum has one order, whoever computes it.

    Args:
        out: float32 `[F, H]`.
        by_column: the sparse rows.
        grad: `[n, H]`.
        begin, end: the columns.
    """
    begin_of, row_of, values = by_column
    for column in range(begin, end):
        first = begin_of[column]
        last = begin_of[column + 1]
        while last > first and row_of[last - 1] >= len(grad):
            last -= 1
        _spread(row(out, column), out, first, last, row_of, values, grad)
