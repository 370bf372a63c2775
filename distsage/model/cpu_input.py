"""Layer 1 where it multiplies rows before it averages them, on a CPU, by kernels.

Runs on trainer ranks, in the local run and in prediction. `distsage.model.tensor_ops` is the same
maths in plain operations, and `distsage.model.cpu` the layers that average first.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distsage.features.matrix import SparseRows
from distsage.features.slots import MultipliedInput, TableRows, as_array, three_tables
from distsage.kernels import threads
from distsage.kernels.gather import gather
from distsage.kernels.hidden_layer import ROWS, Dropout, relu_dropout, transpose
from distsage.kernels.input_layer import (
    Csr,
    add_means,
    multiply_rows,
    spread_means,
    transpose_rows,
    weight_gradient,
)
from distsage.kernels.simd import LANES
from distsage.model.cpu import SEGMENTS, aggregate, gradients, product_in_this_thread
from distsage.model.workspace import Workspace
from distsage.sampling.batch import Block

_PIECE_ROWS = 512
"""Dense rows that are gathered, and multiplied, at a time."""


def input_sums(
    inputs: MultipliedInput, weight: Tensor, workspace: Workspace, dtype: torch.dtype
) -> Tensor:
    """See `distsage.model.layers.input_sums`."""
    result: Tensor = _InputSums.apply(weight, inputs, workspace, dtype)
    return result


def activated(z: Tensor, bias: Tensor, block: Block, p: float, key: np.uint64) -> Tensor:
    """`[h_v | mean of h_u]` with h = dropout(ReLU(z + bias)), `[num_dst, 2H]` as z is.

    Overwrites z.
    """
    result: Tensor = _Activated.apply(z, bias, block, p, key)
    return result


def _multiply_sparse(rows: SparseRows, weight: Tensor, out: Tensor) -> None:
    """Fill out `[n, H]` with `rows weight`, on all threads.

    Args:
        rows: `[n, F]`.
        weight: `[F, H]`, rows contiguous.
        out: `[n, H]`.
    """
    arrays = as_array(out), _csr(rows), as_array(weight)
    threads.share_rows(
        lambda begin, end: multiply_rows(*arrays, begin, end),
        len(out),
        threads.piece(len(out), ROWS),
    )


def sparse_product(rows: SparseRows, weight: Tensor) -> Tensor:
    """`rows weight`, float32 `[n, H]`, in this thread alone; the weight `[F, H]` is contiguous."""
    out = torch.empty(len(rows), weight.shape[1])
    multiply_rows(out.numpy(), _csr(rows), as_array(weight), 0, len(out))
    return out


def _csr(rows: SparseRows) -> Csr:
    """Sparse rows as kernels take them."""
    values = np.empty(0, np.float32) if rows.values is None else as_array(rows.values)
    return Csr(rows.indptr.numpy(), rows.columns.numpy(), values)


class _InputSums(torch.autograd.Function):
    """Nothing of the batch is saved but its rows and edges: the gradient of W needs no more."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, inputs: MultipliedInput, workspace: Workspace, dtype: torch.dtype
    ) -> Tensor:
        rows = _in_place(inputs)
        hidden = len(weight)
        products = workspace.take("products", rows.shape[0], hidden, dtype)
        out = workspace.take("hidden", inputs.num_dst, hidden, dtype)
        if isinstance(rows, SparseRows):
            by_column = weight.detach().to(dtype).t().contiguous()
            _multiply_sparse(rows.between(0, len(out)), by_column[: rows.width], out)
            _multiply_sparse(rows, by_column[rows.width :], products)
        else:
            _multiply_tables(rows, weight.detach().to(dtype), out, products)
        arrays = as_array(out), inputs.indptr, inputs.indices, as_array(products)
        threads.share_rows(
            lambda begin, end: add_means(*arrays, begin, end),
            len(out),
            threads.piece(len(out), ROWS),
        )
        ctx.inputs, ctx.workspace = inputs, workspace
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs: MultipliedInput = ctx.inputs
        rows = _in_place(inputs)
        grad = grad.contiguous()
        edges = transpose(inputs.indptr, inputs.indices, rows.shape[0])
        spread = ctx.workspace.take("spread", rows.shape[0], grad.shape[1], torch.float32)
        arrays = as_array(spread), edges, as_array(grad)
        threads.share_rows(
            lambda begin, end: spread_means(*arrays, begin, end),
            len(spread),
            threads.piece(len(spread), ROWS),
        )
        if isinstance(rows, SparseRows):
            return _sparse_gradient(rows, grad, spread), None, None, None
        return _table_gradient(rows, grad, spread), None, None, None


def _in_place(inputs: MultipliedInput) -> SparseRows | TableRows:
    rows = inputs.rows
    assert isinstance(rows, SparseRows | TableRows), "kernels read dense rows where they are"
    return rows


def _multiply_tables(rows: TableRows, weight: Tensor, out: Tensor, products: Tensor) -> None:
    """Fill products with `x W_neigh'` of all rows, and out with `x W_self'` of its first ones."""
    of_self, of_mean = (half.contiguous() for half in weight.chunk(2, dim=1))

    def multiply(begin: int, end: int) -> None:
        x = _gathered(rows, begin, end).to(weight.dtype)
        products[begin:end] = product_in_this_thread(x, of_mean)
        if begin < len(out):
            last = min(end, len(out))
            out[begin:last] = product_in_this_thread(x[: last - begin], of_self)

    threads.share_rows(multiply, len(products), _PIECE_ROWS)


def _gathered(rows: TableRows, begin: int, end: int) -> Tensor:
    """Copies of the rows [begin, end)."""
    x = rows.tables[0].new_empty(end - begin, rows.shape[1])
    gather(as_array(x), rows.slots[begin:end], three_tables(rows.tables))
    return x


def _sparse_gradient(rows: SparseRows, grad: Tensor, spread: Tensor) -> Tensor:
    """Gradient of the weight, float32 `[H, 2F]`, which lies in memory by input column.

    Args:
        rows: `[num_src, F]`.
        grad: `[n1, H]`, of the sums.
        spread: `[num_src, H]`, of the products.
    """
    by_column = transpose_rows(_csr(rows), rows.width)
    gradient = torch.empty(2, rows.width, grad.shape[1])
    of_self, of_mean = (half.numpy() for half in gradient)

    def columns(begin: int, end: int) -> None:
        weight_gradient(of_self, by_column, as_array(grad), begin, end)
        weight_gradient(of_mean, by_column, as_array(spread), begin, end)

    threads.share_rows(columns, rows.width, threads.piece(rows.width, ROWS))
    return gradient.view(2 * rows.width, -1).t()


def _table_gradient(rows: TableRows, grad: Tensor, spread: Tensor) -> Tensor:
    """The same of dense rows.

    There are always as many segments of rows, whose sums are added up afterwards, so that the
    result does not depend on the number of threads.
    """
    pieces = math.ceil(len(spread) / _PIECE_ROWS)
    segments = max(1, min(SEGMENTS, pieces))
    sums = torch.zeros(segments, grad.shape[1], 2 * rows.shape[1])

    def add_up(segment: int, _: int) -> None:
        of_self, of_mean = sums[segment].chunk(2, dim=1)
        for piece in range(pieces * segment // segments, pieces * (segment + 1) // segments):
            begin = piece * _PIECE_ROWS
            end = min(begin + _PIECE_ROWS, len(spread))
            x = _gathered(rows, begin, end).float()
            of_mean += product_in_this_thread(spread[begin:end].t(), x.t())
            if begin < len(grad):
                g = grad[begin:end].float()
                of_self += product_in_this_thread(g.t(), x[: len(g)].t())

    threads.share_rows(add_up, segments, 1)
    return sums.sum(0)


class _Activated(torch.autograd.Function):
    """Saves only where the activation is not zero: gradient passes exactly there."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, bias: Tensor, block: Block, p: float, key: np.uint64
    ) -> Tensor:
        dropout = Dropout(round(p * 2**32), 1.0 / (1.0 - p), key)
        marks = torch.zeros(math.ceil(len(z) / ROWS), max(z.shape[1], LANES), dtype=torch.uint64)
        arrays = as_array(z), marks.numpy(), bias.detach().numpy()[None], dropout
        threads.share_rows(
            lambda begin, end: relu_dropout(*arrays, begin, end),
            len(z),
            threads.piece(len(z), ROWS),
        )
        ctx.block, ctx.scale = block, dropout.scale
        ctx.save_for_backward(marks)
        ctx.like = z.new_empty(len(z), 0)
        return aggregate(z, block)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (marks,) = ctx.saved_tensors
        _, grad_bias, grad_z = gradients(ctx.like, marks, grad, ctx.block, ctx.scale, needs_z=True)
        return grad_z, grad_bias, None, None, None
