"""GraphSAGE with the mean aggregator on plain tensors, the same on CPU and GPU.

Runs on trainer ranks, in the local run and in inference.

Layer l computes `W_self h_v + W_neigh mean(h_u : u in N(v)) + b` (GraphSAGE, arXiv 1706.02216,
Algorithm 1 with the mean aggregator as in DGL's SAGEConv), with ReLU and dropout between layers.
Both matrices lie in one weight, so that a layer is one matrix product on `[h_v | mean]`. Features
need no gradient, so layer 1 has none to its input.

Precision bf16 means: rows between the layers and both factors of every matrix product are bfloat16;
sums are accumulated in float32; parameters, their gradients and the logits are float32.
"""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from distsage.train import kernels
from distsage.train.features import Block, InputLayer
from distsage.train.rng import draw


class SageLayer(nn.Module):
    """The linear half of one layer.

    Attributes:
        weight: `[out_width, 2 * in_width]`, W_self beside W_neigh.
        bias: `[out_width]`.
    """

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.in_width = in_width
        self.weight = nn.Parameter(torch.empty(out_width, 2 * in_width))
        self.bias = nn.Parameter(torch.zeros(out_width))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """As DGL's SAGEConv: each matrix xavier-uniform with ReLU's gain, bias zero."""
        gain = nn.init.calculate_gain("relu")
        with torch.no_grad():
            for half in self.weight.split(self.in_width, dim=1):
                nn.init.xavier_uniform_(half, gain, generator=generator)
            self.bias.zero_()

    def forward(self, self_and_mean: Tensor) -> Tensor:
        """Return `[n, out_width]` from `[h_v | mean of h_u]`, `[n, 2 * in_width]`."""
        return _Linear.apply(self_and_mean, self.weight, self.bias)


class GraphSAGE(nn.Module):
    """The model; parameters are float32 and equal wherever the seed is equal.

    Args:
        in_features: F.
        hidden: width of the layers between.
        num_classes: C, width of the logits.
        num_layers: L >= 1.
        dropout: probability in [0, 1) that a hidden element is dropped in training mode.
        seed: of the initial weights.
        precision: float32 or bfloat16, of the rows between layers and of matrix products.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        num_classes: int,
        num_layers: int,
        dropout: float,
        seed: int = 0,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        widths = [in_features, *[hidden] * (num_layers - 1), num_classes]
        layers = nn.ModuleList(SageLayer(a, b) for a, b in itertools.pairwise(widths))
        self.layers = cast(Sequence[SageLayer], layers)  # ModuleList has no element type
        self.dropout = dropout
        self.precision = precision
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            layer.reset_parameters(generator)

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments that rebuild a model into which the weights of this one fit."""
        first, last = self.layers[0], self.layers[-1]
        return {
            "in_features": first.in_width,
            "hidden": last.in_width,
            "num_classes": len(last.bias),
            "num_layers": len(self.layers),
            "dropout": self.dropout,
        }

    def forward(self, inputs: InputLayer, blocks: Sequence[Block], key: np.uint64) -> Tensor:
        """Logits `[B, C]` of a batch's seeds; no seeds give `[0, C]` and zero gradients.

        Args:
            inputs: layer 1, on the device of the parameters.
            blocks: layers 2..L, likewise.
            key: the batch's dropout stream, unused in evaluation mode.
        """
        h = self.layers[0](input_self_and_mean(inputs, self.precision))
        for i, (layer, block) in enumerate(zip(self.layers[1:], blocks, strict=True)):
            p = self.dropout if self.training else 0.0
            h = layer(hidden_self_and_mean(h, block, p, np.uint64(draw(key, i))))
        return h.float()


def input_self_and_mean(inputs: InputLayer, dtype: torch.dtype = torch.float32) -> Tensor:
    """Layer 1's `[x_v | mean of x_u]`, `[n1, 2F]` of the given dtype, without gradient."""
    num_dst = len(inputs.dst_slots)
    width = inputs.tables[0].shape[1]
    if inputs.slots.device.type == "cpu":
        out = torch.empty(num_dst, 2 * width, dtype=dtype)
        assert all(t.is_contiguous() for t in inputs.tables), "the kernel takes contiguous tables"
        edges = inputs.indptr.numpy(), inputs.slots.numpy(), inputs.dst_slots.numpy()
        _gather(out, *edges, inputs.tables)
        return out
    (table,) = inputs.tables
    return torch.cat((table[inputs.dst_slots], _mean(table, inputs.indptr, inputs.slots)), 1).to(
        dtype
    )


def hidden_self_and_mean(z: Tensor, block: Block, p: float, key: np.uint64) -> Tensor:
    """A hidden layer's input: `[h_v | mean of h_u]`, `[num_dst, 2H]`, for h = dropout(ReLU(z)).

    One function for all three steps because their common gradient is one pass over z.

    Args:
        z: `[num_src, H]`; it is overwritten with h, unseen by autograd, so that whatever computed
            z must not have saved it.
        block: the layer's edges.
        p: probability in [0, 1) that an element is dropped; the others are scaled by 1 / (1 - p).
        key: names the mask, which is a pure function of it.
    """
    return _HiddenSelfAndMean.apply(z, block.indptr, block.indices, p, key)


class _Linear(torch.autograd.Function):
    """`x W' + b`. On the CPU by oneDNN, which is faster here than the BLAS behind `addmm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        ctx.save_for_backward(x, weight)
        if x.device.type == "cpu" and torch.backends.mkldnn.is_available() and len(x):
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        return grad_x, (grad.t() @ x).float(), grad.sum(0, dtype=torch.float32)


class _HiddenSelfAndMean(torch.autograd.Function):
    """Saves h alone: an element passes gradient exactly where it is positive."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, indptr: Tensor, indices: Tensor, p: float, key: np.uint64
    ) -> Tensor:
        ctx.scale = 1.0 / (1.0 - p)
        threshold = round(p * 2**32)
        num_dst = len(indptr) - 1
        if z.device.type == "cpu":
            out = z.new_empty(num_dst, 2 * z.shape[1])
            h = _array(z)
            _in_threads(
                len(h), lambda a, b: kernels.relu_dropout(h, threshold, ctx.scale, key, a, b)
            )
            dst = np.arange(num_dst, dtype=np.int32)
            _gather(out, indptr.numpy(), indices.numpy(), dst, (z,))
        else:
            z.clamp_(min=0).mul_((_hash32(z, key) >= threshold) * ctx.scale)
            out = torch.cat((z[:num_dst], _mean(z, indptr, indices)), 1)
        ctx.save_for_backward(z, indptr, indices)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        h, indptr, indices = ctx.saved_tensors
        num_dst, width = len(grad), h.shape[1]
        if grad.device.type == "cpu":
            grad_z = torch.empty_like(h)
            edges = kernels.transpose(indptr.numpy(), indices.numpy(), len(h))
            arrays = (_array(grad_z), _array(h), _array(grad.contiguous()), *edges)
            _in_threads(
                len(h), lambda a, b: kernels.hidden_self_and_mean_backward(*arrays, ctx.scale, a, b)
            )
        else:
            degree = indptr.diff()
            grad_mean = grad[:, width:] / degree.clamp(min=1)[:, None]
            grad_z = torch.zeros_like(h)
            grad_z[:num_dst] = grad[:, :width]
            grad_z.index_add_(0, indices, grad_mean.repeat_interleave(degree, 0))
            grad_z.mul_((h > 0) * ctx.scale)
        return grad_z, None, None, None, None


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
    dst_slots: np.ndarray,
    tables: tuple[Tensor, ...],
) -> None:
    """`kernels.gather_self_and_mean` for all rows of out, from one to three tables."""
    arrays = [_array(t) for t in tables]
    arrays += [arrays[0][:0]] * (3 - len(arrays))
    edges = (_array(out), indptr, slots, dst_slots)
    _in_threads(len(dst_slots), lambda a, b: kernels.gather_self_and_mean(*edges, *arrays, a, b))


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory as `distsage.train.vectors` takes it: half precisions as integers."""
    tensor = tensor.detach()
    if tensor.dtype == torch.float32:
        return tensor.numpy()
    bits = tensor.view(torch.int16).numpy()
    return bits.view(np.uint16) if tensor.dtype == torch.bfloat16 else bits


def _in_threads(count: int, kernel: Callable[[int, int], None], least: int = 256) -> None:
    """Run kernel(begin, end) over [0, count), one piece of at least `least` per torch thread."""
    pieces = min(torch.get_num_threads(), math.ceil(count / least))
    if pieces <= 1:
        kernel(0, count)
        return
    bounds = [count * i // pieces for i in range(pieces + 1)]
    list(_pool().map(kernel, bounds[:-1], bounds[1:]))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "kernel")
