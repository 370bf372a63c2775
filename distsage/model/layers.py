"""What the model computes between its parameters: on the CPU by our kernels, elsewhere by torch.

Runs on trainer ranks, in the local run and in inference. Every function has two implementations of
the same maths, masks of dropout included: kernels on numpy views for the CPU, tensor operations for
other devices.
"""

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distsage.train import kernels
from distsage.train.features import Block, InputLayer, as_array
from distsage.train.vectors import LANES
from distsage.train.workspace import Workspace


def input_self_and_mean(
    inputs: InputLayer, workspace: Workspace, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Layer 1's `[x_v | mean of x_u]`, `[n1, 2F]` of the given dtype, without gradient.

    On the CPU it is the block `input` of the workspace.
    """
    if _by_kernels(inputs.slots):
        assert all(t.is_contiguous() for t in inputs.tables), "the kernel takes contiguous tables"
        width = 2 * inputs.tables[0].shape[1]
        out = workspace.take("input", len(inputs.dst_slots), width, dtype)
        edges = inputs.indptr.numpy(), inputs.slots.numpy(), inputs.dst_slots.numpy()
        _gather(out, *edges, inputs.tables)
        return out
    (table,) = inputs.tables
    mean = _mean(table, inputs.indptr, inputs.slots)
    return torch.cat((table[inputs.dst_slots], mean), 1).to(dtype)


def neighbour_mean(tables: tuple[Tensor, ...], indptr: Tensor, slots: Tensor) -> Tensor:
    """Mean of the edges' rows per destination, float32 `[n, F]`, without gradient.

    Args:
        tables, indptr, slots: as in `InputLayer`.
    """
    if _by_kernels(slots):
        assert all(t.is_contiguous() for t in tables), "the kernel takes contiguous tables"
        out = torch.empty(len(indptr) - 1, tables[0].shape[1])
        _gather(out, indptr.numpy(), slots.numpy(), None, tables)
        return out
    (table,) = tables
    return _mean(table, indptr, slots).float()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x weight' + bias` in the precision of x, `[n, out]`; gradients of parameters are float32."""
    return _Linear.apply(x, weight, bias)


def hidden_layer(
    x: Tensor | InputLayer,
    weight: Tensor,
    bias: Tensor,
    block: Block,
    p: float,
    key: np.uint64,
    workspace: Workspace,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One layer but the last, and what the next aggregates: `[h_v | mean of h_u]`.

    h = dropout(ReLU(x weight' + bias)). One function, because neither the product nor the gradient
    before ReLU need ever be in memory as a whole: each is made, and used, a few rows at a time.

    Args:
        x: `[num_src, 2 * in]`; in layer 1, what `input_self_and_mean` makes it from.
        weight: float32 `[H, 2 * in]`.
        bias: float32 `[H]`.
        block: the edges of the next layer.
        p: probability in [0, 1) that an element of h is dropped; the others are scaled by
            1 / (1 - p).
        key: names the mask, which is a pure function of it.
        workspace: its block `input` holds x in layer 1, until the backward pass; its block `hidden`
            is used while this runs.
        dtype: of what is computed.

    Returns:
        `[num_dst, 2H]` of the given dtype.
    """
    inputs = None
    if isinstance(x, InputLayer):
        if _by_kernels(x.slots) and dtype == torch.float32:
            inputs = x
            x = workspace.take("input", len(x.dst_slots), 2 * x.tables[0].shape[1], dtype)
        else:
            x = input_self_and_mean(x, workspace, dtype)
    return _HiddenLayer.apply(
        x, inputs, weight, bias, block.indptr, block.indices, p, key, workspace
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return _affine(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = _affine(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        grad_weight = _affine(grad.t(), x.t(), None).float()
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
        indptr: Tensor,
        indices: Tensor,
        p: float,
        key: np.uint64,
        workspace: Workspace,
    ) -> Tensor:
        weight = weight.to(x.dtype)
        ctx.scale = 1.0 / (1.0 - p)
        activate = _activate_by_kernels if _by_kernels(x) else _activate_by_torch
        h, marks = activate(x, inputs, weight, bias, p, ctx.scale, key, workspace)
        num_dst = len(indptr) - 1
        if _by_kernels(x):
            out = h.new_empty(num_dst, 2 * h.shape[1])
            dst = np.arange(num_dst, dtype=np.int32)
            _gather(out, indptr.numpy(), indices.numpy(), dst, (h,))
        else:
            out = torch.cat((h[:num_dst], _mean(h, indptr, indices)), 1)
        ctx.save_for_backward(x, weight, marks, indptr, indices)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, marks, indptr, indices = ctx.saved_tensors
        gradients = _gradients_by_kernels if _by_kernels(x) else _gradients_by_torch
        needs_z = ctx.needs_input_grad[0]
        grad_weight, grad_bias, grad_z = gradients(
            x, marks, grad, indptr, indices, ctx.scale, needs_z
        )
        grad_x = _affine(grad_z, weight.t(), None) if needs_z else None
        return grad_x, None, grad_weight, grad_bias, None, None, None, None, None


def _activate_by_kernels(
    x: Tensor,
    inputs: InputLayer | None,
    weight: Tensor,
    bias: Tensor,
    p: float,
    scale: float,
    key: np.uint64,
    workspace: Workspace,
) -> tuple[Tensor, Tensor]:
    """`dropout(ReLU(x weight' + bias))` and its marks, as `kernels.relu_dropout` has them.

    Fills x first where there are inputs.
    """
    assert x.is_contiguous(), "the kernels take contiguous rows"
    h = workspace.take("hidden", len(x), len(weight), x.dtype)
    threshold = round(p * 2**32)
    words = math.ceil(len(h) / kernels.ROWS)
    marks = torch.zeros(words, max(h.shape[1], LANES), dtype=torch.uint64)
    if x.dtype == torch.float32:
        arrays = as_array(h), marks.numpy(), as_array(x), *_sources(inputs, x)
        parameters = _panels(weight).numpy(), bias.detach().numpy()[None]
        _in_threads(
            _ranges(len(h)),
            lambda a, b: kernels.hidden_layer_forward(
                *arrays, *parameters, threshold, scale, key, a, b
            ),
        )
    else:
        torch.mm(x, weight.t(), out=h)
        arrays = as_array(h), marks.numpy(), bias.detach().numpy()[None]
        _in_threads(
            _ranges(len(h)), lambda a, b: kernels.relu_dropout(*arrays, threshold, scale, key, a, b)
        )
    return h, marks


def _panels(weight: Tensor) -> Tensor:
    """A weight as `kernels.hidden_layer_forward` takes it."""
    columns = kernels.TILE_COLUMNS
    weight = nn.functional.pad(weight, (0, 0, 0, max(0, columns - len(weight))))
    begins = [min(i, len(weight) - columns) for i in range(0, len(weight), columns)]
    return torch.stack([weight[i : i + columns].t() for i in begins])


def _activate_by_torch(
    x: Tensor,
    inputs: InputLayer | None,
    weight: Tensor,
    bias: Tensor,
    p: float,
    scale: float,
    key: np.uint64,
    _: Workspace,
) -> tuple[Tensor, Tensor]:
    """The same in tensor operations; the marks are a bool for each element."""
    h = _affine(x, weight, bias)
    h.clamp_(min=0).mul_((_hash32(h, key) >= round(p * 2**32)) * scale)
    return h, h > 0


def _gradients_by_kernels(
    x: Tensor,
    marks: Tensor,
    grad: Tensor,
    indptr: Tensor,
    indices: Tensor,
    scale: float,
    needs_z: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight and bias, and that before ReLU `[num_src, H]` if it is needed."""
    width, hidden = x.shape[1], grad.shape[1] // 2
    ranges = _ranges(len(x))
    whole_vectors = math.ceil(width / LANES) * LANES
    grad_weight = torch.zeros(len(ranges), hidden, whole_vectors)
    grad_bias = torch.zeros(len(ranges), hidden)
    grad_z = x.new_empty(len(x) if needs_z else 0, hidden)
    edges = kernels.transpose(indptr.numpy(), indices.numpy(), len(x))
    arrays = as_array(grad_z), as_array(x), marks.numpy(), as_array(grad.contiguous()), *edges
    sums = dict(zip(ranges, zip(grad_weight.numpy(), grad_bias.numpy(), strict=True), strict=True))
    _in_threads(
        ranges, lambda a, b: kernels.hidden_layer_backward(*sums[a, b], *arrays, scale, a, b)
    )
    return grad_weight.sum(0)[:, :width], grad_bias.sum(0), grad_z


def _gradients_by_torch(
    x: Tensor,
    marks: Tensor,
    grad: Tensor,
    indptr: Tensor,
    indices: Tensor,
    scale: float,
    needs_z: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in tensor operations."""
    num_dst, width = len(grad), marks.shape[1]
    degree = indptr.diff()
    grad_mean = grad[:, width:] / degree.clamp(min=1)[:, None]
    grad_z = grad.new_zeros(marks.shape)
    grad_z[:num_dst] = grad[:, :width]
    grad_z.index_add_(0, indices, grad_mean.repeat_interleave(degree, 0))
    grad_z.mul_(marks * scale)
    return (grad_z.t() @ x).float(), grad_z.sum(0, dtype=torch.float32), grad_z


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x weight' + bias`. On the CPU by oneDNN, which is faster here than the BLAS of `mm`."""
    bias = None if bias is None else bias.to(x.dtype)
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available() and x.numel():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


def _hash32(h: Tensor, key: np.uint64) -> Tensor:
    """The hash of `kernels.relu_dropout` for every element: int64 `[n, H]` in [0, 2**32)."""
    rows = np.arange(1, len(h) + 1, dtype=np.uint64)
    x = np.uint64(key) + rows * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    low = torch.from_numpy((x & np.uint64(0xFFFFFFFF)).astype(np.int64)).to(h.device)[:, None]
    high = torch.from_numpy((x >> np.uint64(32)).astype(np.int64)).to(h.device)[:, None]
    mask = 0xFFFFFFFF
    k = torch.arange(h.shape[1], device=h.device)
    y = (k * 0x9E3779B9 & mask) + low & mask
    y = ((y ^ (y >> 16)) * 0x7FEB352D & mask) ^ high
    y = (y ^ (y >> 15)) * 0x846CA68B & mask
    return y ^ (y >> 16)


def _mean(table: Tensor, indptr: Tensor, slots: Tensor) -> Tensor:
    """Mean of the edges' rows per destination, `[n, width]`; 0 where there is no edge."""
    return nn.functional.embedding_bag(
        slots, table, indptr.to(slots.dtype), mode="mean", include_last_offset=True
    )


def _gather(
    out: Tensor,
    indptr: np.ndarray,
    slots: np.ndarray,
    dst_slots: np.ndarray | None,
    tables: tuple[Tensor, ...],
) -> None:
    """`kernels.gather_self_and_mean` for all rows of out, from one to three tables.

    Without dst_slots the means alone.
    """
    edges = (as_array(out), indptr, slots, slots[:0] if dst_slots is None else dst_slots)
    arrays = _three(tables)
    _in_threads(_ranges(len(out)), lambda a, b: kernels.gather_self_and_mean(*edges, *arrays, a, b))


def _sources(inputs: InputLayer | None, x: Tensor) -> tuple[np.ndarray, ...]:
    """What `kernels.hidden_layer_forward` gathers x from: edges and tables, or nothing."""
    if inputs is None:
        nothing = np.empty(0, np.int32)
        return np.empty(0, np.int64), nothing, nothing, *_three((x[:0],))
    assert all(t.is_contiguous() for t in inputs.tables), "the kernel takes contiguous tables"
    edges = inputs.indptr.numpy(), inputs.slots.numpy(), inputs.dst_slots.numpy()
    return *edges, *_three(inputs.tables)


def _three(tables: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    """One to three tables as three."""
    arrays = [as_array(t) for t in tables]
    return *arrays, *[arrays[0][:0]] * (3 - len(arrays))


def _by_kernels(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _ranges(count: int, least: int = 4 * kernels.ROWS) -> list[tuple[int, int]]:
    """[0, count) in one piece of at least `least` per torch thread, as (begin, end).

    All begin with a multiple of `kernels.ROWS`.
    """
    pieces = max(1, min(torch.get_num_threads(), math.ceil(count / least)))
    size = math.ceil(count / pieces / kernels.ROWS) * kernels.ROWS
    bounds = [min(count, size * i) for i in range(pieces + 1)]
    return [(a, b) for a, b in itertools.pairwise(bounds) if a < b] or [(0, 0)]


def _in_threads(ranges: list[tuple[int, int]], kernel: Callable[[int, int], None]) -> None:
    """Run kernel(begin, end) on each range, at the same time."""
    if len(ranges) == 1:
        kernel(*ranges[0])
    else:
        list(_pool().map(lambda bounds: kernel(*bounds), ranges))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "kernel")
