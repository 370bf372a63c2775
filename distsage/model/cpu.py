"""What the model computes between its parameters, on a CPU, by kernels.

Runs on trainer ranks, in the local run and in prediction. `distsage.model.tensor_ops` is the same
maths in plain operations.

With bfloat16, rows between layers and both factors of every product are bfloat16, and sums are
float32. A processor that multiplies bfloat16 does so; elsewhere the rounded factors are multiplied
in float32, which gives the same but for the order of the sums.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distsage.features.slots import InputLayer, as_array, three_tables
from distsage.kernels import level, threads
from distsage.kernels.gather import Edges, Tables, gather_self_and_mean
from distsage.kernels.hidden_layer import (
    PIECE,
    ROWS,
    TILE_COLUMNS,
    Dropout,
    hidden_layer_backward,
    hidden_layer_forward,
    relu_dropout,
    transpose,
)
from distsage.kernels.level import Level
from distsage.kernels.simd import LANES
from distsage.model.workspace import Workspace
from distsage.sampling.batch import Block

SEGMENTS = 8
"""Into how many sums of rows the gradient of a weight is divided, for any number of threads."""

_TASKS_PER_THREAD = 4
"""Pieces of that gradient's computation for each thread, at least."""

_PRODUCT_ROWS = 1024
"""Rows of a product by oneDNN in one call, at most; it prepares the weight anew for each."""

_NOTHING = Edges(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32))


def input_self_and_mean(inputs: InputLayer, workspace: Workspace, dtype: torch.dtype) -> Tensor:
    """Layer 1's `[x_v | mean of x_u]`, `[n1, 2F]`: the block `input` of the workspace."""
    x = _input_block(inputs, workspace, dtype)
    _gather(x, *_sources(inputs))
    return x


def neighbour_mean(tables: tuple[Tensor, ...], indptr: np.ndarray, slots: np.ndarray) -> Tensor:
    """Mean of the edges' rows per destination, float32 `[n, F]`, in this thread alone.

    Args:
        tables: one to three; slots count through them.
        indptr: int64 `[n + 1]`.
        slots: integer `[nnz]`.
    """
    out = torch.empty(len(indptr) - 1, tables[0].shape[1])
    edges = Edges(indptr, slots, slots[:0])
    gather_self_and_mean(out.numpy(), edges, three_tables(tables), 0, len(out))
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x weight' + bias` in the precision of x, `[n, out]`; gradients of parameters are float32."""
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


def hidden_layer(
    x: Tensor | InputLayer,
    weight: Tensor,
    bias: Tensor,
    block: Block,
    p: float,
    key: np.uint64,
    workspace: Workspace,
    dtype: torch.dtype,
) -> Tensor:
    """See `distsage.model.layers.hidden_layer`.

    One function, because neither the product nor the gradient before ReLU need ever be in memory as
    a whole: each is made, and used, a few rows at a time.
    """
    inputs = None
    if isinstance(x, InputLayer):
        inputs, x = x, _input_block(x, workspace, dtype)
    result: Tensor = _HiddenLayer.apply(x, inputs, weight, bias, block, p, key, workspace)
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = _product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = _product(x.t(), grad.t()).t().float()
        return grad_x, grad_weight, grad.sum(0, dtype=torch.float32)


class _HiddenLayer(torch.autograd.Function):
    """Saves of the activation only where it is not zero: gradient passes exactly there."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inputs: InputLayer | None,
        weight: Tensor,
        bias: Tensor,
        block: Block,
        p: float,
        key: np.uint64,
        workspace: Workspace,
    ) -> Tensor:
        weight = weight.to(x.dtype)
        dropout = Dropout(round(p * 2**32), 1.0 / (1.0 - p), key)
        h, marks = _activate(x, inputs, weight, bias, dropout, workspace)
        out = aggregate(h, block)
        ctx.save_for_backward(x, weight, marks)
        ctx.block, ctx.scale = block, dropout.scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, marks = ctx.saved_tensors
        needs_z = ctx.needs_input_grad[0]
        grad_weight, grad_bias, grad_z = gradients(x, marks, grad, ctx.block, ctx.scale, needs_z)
        grad_x = _product(grad_z, weight.t()) if needs_z else None
        return grad_x, None, grad_weight, grad_bias, None, None, None, None


def aggregate(h: Tensor, block: Block) -> Tensor:
    """`[h_v | mean of h_u]`, `[num_dst, 2H]` as h is, on all threads."""
    out = h.new_empty(block.num_dst, 2 * h.shape[1])
    dst = np.arange(block.num_dst, dtype=np.int32)
    _gather(out, Edges(block.indptr, block.indices, dst), three_tables((h,)))
    return out


def _activate(
    x: Tensor,
    inputs: InputLayer | None,
    weight: Tensor,
    bias: Tensor,
    dropout: Dropout,
    workspace: Workspace,
) -> tuple[Tensor, Tensor]:
    """`dropout(ReLU(x weight' + bias))` and its marks, as `relu_dropout` has them.

    Fills x first where there are inputs.
    """
    assert x.is_contiguous(), "the kernels take contiguous rows"
    x, weight = x.detach(), weight.detach()  # as in `_product`
    h = workspace.take("hidden", len(x), len(weight), x.dtype)
    words = math.ceil(len(h) / ROWS)
    marks = torch.zeros(words, max(h.shape[1], LANES), dtype=torch.uint64)
    edges, tables = (_NOTHING, three_tables((x[:0],))) if inputs is None else _sources(inputs)
    arrays = as_array(h), marks.numpy()
    bias_row = bias.detach().numpy()[None]
    if x.dtype == torch.float32 or not _multiplies_bfloat16():
        step = threads.piece(len(h), PIECE)
        panels = _panels(weight.float()).numpy()
        rest = as_array(x), edges, tables, panels, bias_row, dropout, threads.new_counter(), step
        threads.share(lambda: hidden_layer_forward(*arrays, *rest), math.ceil(len(h) / step))
        return h, marks

    def rows(begin: int, end: int) -> None:
        if inputs is not None:
            gather_self_and_mean(as_array(x), edges, tables, begin, end)
        torch.mm(x[begin:end], weight.t(), out=h[begin:end])
        relu_dropout(*arrays, bias_row, dropout, begin, end)

    threads.share_rows(rows, len(h), _product_rows(len(h)))
    return h, marks


def _panels(weight: Tensor) -> Tensor:
    """A weight as `hidden_layer_forward` takes it."""
    weight = nn.functional.pad(weight, (0, 0, 0, max(0, TILE_COLUMNS - len(weight))))
    last = len(weight) - TILE_COLUMNS
    begins = [min(i, last) for i in range(0, len(weight), TILE_COLUMNS)]
    return torch.stack([weight[i : i + TILE_COLUMNS].t() for i in begins])


def gradients(
    x: Tensor, marks: Tensor, grad: Tensor, block: Block, scale: float, needs_z: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight and bias, and that before ReLU `[num_src, H]` if it is needed."""
    width, hidden = x.shape[1], grad.shape[1] // 2
    segments = max(1, min(SEGMENTS, len(x) // (4 * ROWS)))
    whole_vectors = math.ceil(width / LANES) * LANES
    grad_weight = torch.zeros(segments, hidden, whole_vectors)
    grad_bias = torch.zeros(segments, hidden)
    grad_z = x.new_empty(len(x) if needs_z else 0, hidden)
    edges = transpose(block.indptr, block.indices, len(x))
    wanted = (
        1 if threads.budget() == 1 else math.ceil(_TASKS_PER_THREAD * threads.budget() / segments)
    )
    blocks = max(1, min(wanted, hidden // (4 * LANES)))
    arrays = grad_weight.numpy(), grad_bias.numpy(), as_array(grad_z), as_array(x), marks.numpy()
    rest = as_array(grad.contiguous()), edges, scale, blocks, threads.new_counter()
    threads.share(lambda: hidden_layer_backward(*arrays, *rest), segments * blocks)
    return grad_weight.sum(0)[:, :width], grad_bias.sum(0), grad_z


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight' + bias` as x is, `[n, out]`, on all threads; without gradient."""
    x, weight = x.detach(), weight.detach()  # autograd's switch counts for this thread only
    bias = None if bias is None else bias.detach()
    out = x.new_empty(len(x), len(weight))
    if x.shape[1] == 0:  # a batch without seeds; oneDNN refuses it
        return out.zero_()

    def rows(begin: int, end: int) -> None:
        out[begin:end] = product_in_this_thread(x[begin:end], weight, bias)

    threads.share_rows(rows, len(x), _product_rows(len(x)))
    return out


def product_in_this_thread(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight' + bias`, `[n, out]` of any precision, without gradient.

    By oneDNN, which is faster here than the BLAS of `mm`.
    """
    dtype = x.dtype if x.dtype == torch.float32 or _multiplies_bfloat16() else torch.float32
    bias = None if bias is None else bias.to(dtype)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        x.to(dtype), weight.to(dtype), bias, "none", [], ""
    )
    return product


def _product_rows(count: int) -> int:
    """Rows of each call for so many; for any number of threads, since sums may depend on it."""
    return min(_PRODUCT_ROWS, math.ceil(count / 4 / ROWS) * ROWS) or ROWS


def _multiplies_bfloat16() -> bool:
    return level.chosen() >= Level.AVX512_BF16


def _input_block(inputs: InputLayer, workspace: Workspace, dtype: torch.dtype) -> Tensor:
    width = 2 * _tables(inputs)[0].shape[1]
    return workspace.take("input", len(inputs.dst_slots), width, dtype)


def _sources(inputs: InputLayer) -> tuple[Edges, Tables]:
    edges = Edges(inputs.indptr, inputs.slots, inputs.dst_slots)
    return edges, three_tables(_tables(inputs))


def _tables(inputs: InputLayer) -> tuple[Tensor, ...]:
    tables = tuple(table for table in inputs.tables if isinstance(table, Tensor))
    assert tables, "nothing is on a GPU"
    assert all(table.is_contiguous() for table in tables), "the kernels take contiguous tables"
    return tables


def _gather(out: Tensor, edges: Edges, tables: Tables) -> None:
    """`gather_self_and_mean` for all rows of out, on all threads."""
    rows = as_array(out)
    threads.share_rows(
        lambda begin, end: gather_self_and_mean(rows, edges, tables, begin, end),
        len(out),
        threads.piece(len(out), ROWS),
    )
