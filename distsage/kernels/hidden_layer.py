"""The loops of a hidden layer: product, ReLU and dropout, and their gradients.

Runs on trainer ranks and in the local run, on any number of threads at once: they claim pieces of
the work from a common counter, and the result does not depend on which thread takes which. Arrays
are as `distsage.kernels.simd` has them. The inner loops take 64 columns at a time, in four vectors.
"""

from typing import NamedTuple

import numpy as np

from distsage.kernels import level
from distsage.kernels.compiled import compiled
from distsage.kernels.gather import Edges, Tables, gather_self_and_mean
from distsage.kernels.level import Level
from distsage.kernels.rng import draw
from distsage.kernels.simd import (
    CACHE_LINE,
    LANES,
    add16,
    add_scaled_rows,
    claim,
    drop16,
    load16,
    load16_exactly,
    mark16,
    multiply_tile,
    positive16,
    prefetch_row,
    row,
    scale16,
    slot_row,
    store16,
    where_marked16,
    zeros16,
)

ROWS = 64
"""Rows of a hidden layer at a time: one per bit of the numbers that say which elements count."""

# What stays in registers: AVX2 has sixteen of half the size, AVX-512 has thirty-two. Six rows of a
# tile and seven vectors of a sum leave AVX2 three and two registers for what is multiplied.
_TILE_ROWS, _TILE_VECTORS = (12, 2) if level.chosen() >= Level.AVX512 else (6, 1)
_ACCUMULATORS = 8 if level.chosen() >= Level.AVX512 else 7

TILE_COLUMNS = _TILE_VECTORS * LANES
"""Columns of a tile of a product."""

PIECE = 192
"""Pieces have a multiple of so many rows: whole tiles, and whole numbers of `ROWS`."""

_VECTOR = 4 * LANES
"""Bytes of a vector."""


class Dropout(NamedTuple):
    """Which elements are dropped.

    Attributes:
        threshold: an element is dropped when its hash (`drop16`) is below this uint32.
        scale: of the others.
        key: of the layer; row i has the key `draw(key, i)`.
    """

    threshold: int
    scale: float
    key: np.uint64


class BySource(NamedTuple):
    """The edges of a layer, by source; see `transpose`.

    Attributes:
        begin: int64 `[num_src + 1]`, where the edges of each source begin.
        dst: int32 `[nnz]`, their destinations, ascending.
        weight: float32 `[nnz]`, 1 / degree of each destination.
    """

    begin: np.ndarray
    dst: np.ndarray
    weight: np.ndarray


@compiled
def relu_dropout(
    h: np.ndarray, marks: np.ndarray, bias: np.ndarray, dropout: Dropout, begin: int, end: int
) -> None:
    """In place on rows [begin, end) of h: `max(h + bias, 0) * scale`, or 0 where it is dropped.

    One row after the other, one vector at a time; waits for memory.

    Args:
        h: `[n, H]`.
        marks: uint64 `[ceil(n / 64), max(H, 16)]`, zeros; `marks[i // 64, c]` gets bit i % 64 where
            h[i, c] is not zero afterwards.
        bias: float32 `[1, H]`.
        dropout: which elements are dropped.
        begin, end: the rows; begin is a multiple of 64.
    """
    width = h.shape[1]
    threshold = np.uint32(dropout.threshold)
    scale = np.float32(dropout.scale)
    for i in range(begin, end):
        at = row(h, i)
        key_i = draw(dropout.key, i)
        tail = load16(h, at, width)  # read before the vector that it overlaps is overwritten
        for c in range(0, width, LANES):
            a = load16(h, at, c) if c + LANES < width else tail
            a = add16(a, load16(bias, row(bias, 0), c))
            a = drop16(scale16(positive16(a, a), scale), key_i, h, c, threshold)
            mark16(marks, i, h, c, a)
            store16(h, at, c, a)


@compiled
def hidden_layer_forward(
    h: np.ndarray,
    marks: np.ndarray,
    x: np.ndarray,
    edges: Edges,
    tables: Tables,
    weight: np.ndarray,
    bias: np.ndarray,
    dropout: Dropout,
    counter: np.ndarray,
    step: int,
) -> None:
    """Rows of `relu_dropout(x weight' + bias)`, products and sums in float32.

    Tile by tile of rows, and for these panel by panel of columns. A tile of the product is as large
    as the registers can hold; ReLU and dropout get it from the first-level cache, so that the
    product itself is never in memory. In layer 1 the rows of a tile are gathered first, and while
    their products are computed, the memory delivers what the next ones are gathered from: so the
    loop waits for arithmetic.

    Args:
        h: `[n, H]`, to fill.
        marks, dropout: as in `relu_dropout`.
        x: `[n, K]`; to fill, where there are dst_slots.
        edges, tables: what x is gathered from, as in `gather_self_and_mean`; no dst_slots where x
            is given.
        weight: float32 `[panels, K, TILE_COLUMNS]`: the transposed weight, TILE_COLUMNS of its
            columns in each panel; the last one ends with the last column.
        bias: float32 `[1, H]`.
        counter: the rows that are claimed so far, by all threads.
        step: how many to claim at a time, a multiple of `PIECE`.
    """
    width = h.shape[1]
    length = x.shape[1]
    threshold = np.uint32(dropout.threshold)
    scale = np.float32(dropout.scale)
    gathers = len(edges.dst_slots) > 0
    tile = _aligned(_TILE_ROWS * TILE_COLUMNS).reshape(_TILE_ROWS, TILE_COLUMNS)[:, :width]
    wide = np.empty((_TILE_ROWS, length + LANES), np.float32)[:, :length]
    keys = np.empty(_TILE_ROWS, np.uint64)
    ahead = np.empty((len(weight), length), np.int64)
    out = row(tile, 0)
    begin = claim(counter, step)
    while begin < len(h):
        end = min(begin + step, len(h))
        rows = _TILE_ROWS if end - begin >= _TILE_ROWS else 1
        first = begin
        while first < end:
            first = min(first, end - rows)  # a few rows twice, so that the last tile is a whole one
            if gathers:
                gather_self_and_mean(x, edges, tables, first, first + rows)
            asked = _look_ahead(ahead, x, edges, tables, first + rows, min(first + 2 * rows, end))
            a, a_size = row(x, first), 4 * length
            if x.itemsize != 4:
                a, a_size = row(wide, 0), wide.strides[0]
                for r in range(rows):
                    for c in range(0, length, LANES):
                        store16(wide, row(wide, r), c, load16(x, row(x, first + r), c))
            for r in range(rows):
                keys[r] = draw(dropout.key, first + r)
            for panel in range(len(weight)):
                b = row(weight[panel], 0)
                lines = row(ahead, panel)
                if rows == 1:
                    multiply_tile(out, a, a_size, b, length, lines, 0, 1, _TILE_VECTORS)
                elif panel * length < asked:
                    multiply_tile(out, a, a_size, b, length, lines, 1, _TILE_ROWS, _TILE_VECTORS)
                else:
                    multiply_tile(out, a, a_size, b, length, lines, 0, _TILE_ROWS, _TILE_VECTORS)
                column = max(0, min(panel * TILE_COLUMNS, width - TILE_COLUMNS))
                for r in range(rows):
                    i = first + r
                    for c in range(0, tile.shape[1], LANES):
                        at = column + c
                        z = add16(load16(tile, row(tile, r), c), load16(bias, row(bias, 0), at))
                        z = drop16(scale16(positive16(z, z), scale), keys[r], h, at, threshold)
                        mark16(marks, i, h, at, z)
                        store16(h, row(h, i), at, z)
            first += rows
        begin = claim(counter, step)


@compiled
def _look_ahead(
    ahead: np.ndarray, x: np.ndarray, edges: Edges, tables: Tables, begin: int, end: int
) -> int:
    """Note in ahead the pairs of cache lines that the rows [begin, end) of x are made from.

    As many as there is room for. Returns how many there are; the rest of the last row of ahead
    that has any names what is in the cache already.
    """
    indptr, slots, dst_slots = edges
    own, cached, missed = tables
    lines = ahead.reshape(ahead.size)
    count = 0
    for i in range(begin, end):
        if len(dst_slots) > 0:
            size = own.shape[1] * own.itemsize
            count = _note(lines, count, slot_row(own, cached, missed, dst_slots[i]), size)
            for e in range(indptr[i], indptr[i + 1]):
                count = _note(lines, count, slot_row(own, cached, missed, slots[e]), size)
        else:
            count = _note(lines, count, row(x, i), x.shape[1] * x.itemsize)
    begun = -(-count // ahead.shape[1]) * ahead.shape[1]
    lines[count:begun] = row(x, 0)
    return count


@compiled
def _note(lines: np.ndarray, count: int, address: int, size: int) -> int:
    """Note pairs of cache lines that hold `size` bytes, while there is room; return the count."""
    first = address & -CACHE_LINE
    while first < address + size and count < lines.size:
        lines[count] = first
        first += 2 * CACHE_LINE
        count += 1
    return count


@compiled
def transpose(indptr: np.ndarray, indices: np.ndarray, num_src: int) -> BySource:
    """The edges of a block by source: a counting sort, edge by edge. Waits for the second cache."""
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
    return BySource(begin[:-1], dst, weight)


@compiled
def hidden_layer_backward(
    grad_weight: np.ndarray,
    grad_bias: np.ndarray,
    grad_z: np.ndarray,
    x: np.ndarray,
    marks: np.ndarray,
    grad_out: np.ndarray,
    edges: BySource,
    scale: float,
    blocks: int,
    counter: np.ndarray,
) -> None:
    """Gradients of a hidden layer, through mean, dropout and ReLU.

    The gradient before ReLU is zero wherever ReLU or dropout has set h to zero, which with dropout
    of a half is three elements in four. So the product with x, which is the gradient of the weight,
    multiplies the other elements only.

    A piece of the work is a segment of rows and a block of hidden columns. There are always as many
    segments, whose sums are added up afterwards, so that the result does not depend on the number
    of threads; blocks are what threads may have more of.

    Args:
        grad_weight: float32 `[segments, H, whole vectors >= width of x]`, zeros; to fill.
        grad_bias: float32 `[segments, H]`, zeros; to fill.
        grad_z: `[num_src, H]`, to fill with the gradient before ReLU, or `[0, H]`.
        x: the layer's input `[num_src, .]`.
        marks: uint64 `[ceil(num_src / 64), max(H, 16)]`, where the activations are not zero, as in
            `relu_dropout`.
        grad_out: `[num_dst, 2H]`.
        edges: of the next layer.
        scale: what dropout multiplied the kept elements by.
        blocks: of hidden columns, at most H / 64 or 1.
        counter: the pieces that are claimed so far, by all threads.
    """
    num_segments, width = grad_bias.shape
    num_units = (len(x) + ROWS - 1) // ROWS
    quads = width // (4 * LANES)
    task = claim(counter, 1)
    while task < num_segments * blocks:
        segment, block = task // blocks, task % blocks
        left = quads * block // blocks * 4 * LANES
        right = quads * (block + 1) // blocks * 4 * LANES if block + 1 < blocks else width
        begin = num_units * segment // num_segments * ROWS
        end = min(num_units * (segment + 1) // num_segments * ROWS, len(x))
        _backward_piece(
            grad_weight[segment, left:right],
            grad_bias[segment, left:right],
            grad_z[:, left:right],
            x,
            marks[:, left : max(right, LANES)],
            grad_out[:, left:right],
            grad_out[:, width + left : width + right],
            edges,
            scale,
            begin,
            end,
        )
        task = claim(counter, 1)


@compiled
def _backward_piece(
    grad_weight: np.ndarray,
    grad_bias: np.ndarray,
    grad_z: np.ndarray,
    x: np.ndarray,
    marks: np.ndarray,
    grad_self: np.ndarray,
    grad_mean: np.ndarray,
    edges: BySource,
    scale: float,
    begin: int,
    end: int,
) -> None:
    """The gradients from rows [begin, end) for some hidden columns, of which alone the arrays are.

    64 rows at a time: first their gradient before ReLU, one row after the other, 64 columns at a
    time and for these all edges; then its product with x. Waits for arithmetic.
    """
    begin_of, dst, edge_weight = edges
    width = len(grad_bias)
    scale32 = np.float32(scale)
    z = np.empty((ROWS, width + LANES), np.float32)[:, :width]
    sums = np.empty((1, width), np.float32)
    panel = _aligned(ROWS * _ACCUMULATORS * LANES)
    for first_row in range(begin, end, ROWS):
        rows = min(ROWS, end - first_row)
        for r in range(rows):
            s = first_row + r
            if s + ROWS < end:
                prefetch_row(x, row(x, s + ROWS))
            first = begin_of[s]
            last = begin_of[s + 1]
            to = row(z, r)
            for c in range(0, width, 4 * LANES):
                if s < len(grad_self):
                    source = row(grad_self, s)
                    a0 = load16(grad_self, source, c)
                    a1 = load16(grad_self, source, c + LANES)
                    a2 = load16(grad_self, source, c + 2 * LANES)
                    a3 = load16(grad_self, source, c + 3 * LANES)
                else:
                    a0 = zeros16()
                    a1 = zeros16()
                    a2 = zeros16()
                    a3 = zeros16()
                for e in range(first, last):
                    source = row(grad_mean, dst[e])
                    w = edge_weight[e]
                    a0 = add16(a0, scale16(load16(grad_mean, source, c), w))
                    a1 = add16(a1, scale16(load16(grad_mean, source, c + LANES), w))
                    a2 = add16(a2, scale16(load16(grad_mean, source, c + 2 * LANES), w))
                    a3 = add16(a3, scale16(load16(grad_mean, source, c + 3 * LANES), w))
                a0 = where_marked16(marks, s, z, c, scale16(a0, scale32))
                a1 = where_marked16(marks, s, z, c + LANES, scale16(a1, scale32))
                a2 = where_marked16(marks, s, z, c + 2 * LANES, scale16(a2, scale32))
                a3 = where_marked16(marks, s, z, c + 3 * LANES, scale16(a3, scale32))
                store16(z, to, c, a0)
                store16(z, to, c + LANES, a1)
                store16(z, to, c + 2 * LANES, a2)
                store16(z, to, c + 3 * LANES, a3)
            if len(grad_z):
                to = row(grad_z, s)
                for c in range(0, width, LANES):
                    store16(grad_z, to, c, load16(z, row(z, r), c))
        column_sums(sums, z, rows)
        for j in range(width):
            grad_bias[j] += sums[0, j]
        _add_outer_products(grad_weight, panel, marks[first_row // ROWS], z, x, first_row, rows)


@compiled
def _add_outer_products(
    grad_weight: np.ndarray,
    panel: np.ndarray,
    marks: np.ndarray,
    z: np.ndarray,
    x: np.ndarray,
    first_row: int,
    rows: int,
) -> None:
    """`grad_weight[j] += sum of z[r, j] * x[first_row + r]` over the bits r of marks[j]."""
    vectors = grad_weight.shape[1] // LANES
    panels = (vectors + _ACCUMULATORS - 1) // _ACCUMULATORS
    size = z.strides[0]
    for p in range(panels):
        at = vectors * p // panels
        count = vectors * (p + 1) // panels - at
        base = _pack(panel, x, first_row, rows, at, count)
        for j in range(z.shape[1]):
            to = row(grad_weight, j) + at * _VECTOR
            scales = row(z, 0) + 4 * j
            chosen = marks[j]
            if count == 8:
                add_scaled_rows(to, base, 8 * _VECTOR, scales, size, chosen, 8)
            elif count == 7:
                add_scaled_rows(to, base, 7 * _VECTOR, scales, size, chosen, 7)
            elif count == 6:
                add_scaled_rows(to, base, 6 * _VECTOR, scales, size, chosen, 6)
            elif count == 5:
                add_scaled_rows(to, base, 5 * _VECTOR, scales, size, chosen, 5)
            elif count == 4:
                add_scaled_rows(to, base, 4 * _VECTOR, scales, size, chosen, 4)
            elif count == 3:
                add_scaled_rows(to, base, 3 * _VECTOR, scales, size, chosen, 3)
            elif count == 2:
                add_scaled_rows(to, base, 2 * _VECTOR, scales, size, chosen, 2)
            else:
                add_scaled_rows(to, base, _VECTOR, scales, size, chosen, 1)


@compiled
def _pack(panel: np.ndarray, x: np.ndarray, first_row: int, rows: int, at: int, count: int) -> int:
    """Copy `count` vectors of each row, from vector `at` on, to panel; return its address.

    There rows are aligned, float32, zero beyond the width of x, and in the first-level cache.
    """
    to = panel[: rows * count * LANES].reshape(rows, count * LANES)
    for r in range(rows):
        source = row(x, first_row + r)
        for i in range(count):
            c = (at + i) * LANES
            if c + LANES <= x.shape[1]:
                store16(to, row(to, r), i * LANES, load16(x, source, c))
            else:
                store16(to, row(to, r), i * LANES, load16_exactly(x, source, c))
    return row(to, 0)


@compiled
def _aligned(count: int) -> np.ndarray:
    """Memory for float32 `[count]` that begins with a cache line."""
    memory = np.empty((1, count + LANES), np.float32)
    skip = -row(memory, 0) % _VECTOR // 4
    return memory[0, skip : skip + count]


@compiled
def column_sums(out: np.ndarray, rows: np.ndarray, count: int) -> None:
    """Fill out, float32 `[1, H]`, with the sum of the first rows of `[., H]`."""
    width = rows.shape[1]
    to = row(out, 0)
    for c in range(0, width, 4 * LANES):
        a0 = zeros16()
        a1 = zeros16()
        a2 = zeros16()
        a3 = zeros16()
        for s in range(count):
            source = row(rows, s)
            a0 = add16(a0, load16(rows, source, c))
            a1 = add16(a1, load16(rows, source, c + LANES))
            a2 = add16(a2, load16(rows, source, c + 2 * LANES))
            a3 = add16(a3, load16(rows, source, c + 3 * LANES))
        store16(out, to, c, a0)
        store16(out, to, c + LANES, a1)
        store16(out, to, c + 2 * LANES, a2)
        store16(out, to, c + 3 * LANES, a3)
