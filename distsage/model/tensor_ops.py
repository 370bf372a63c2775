"""What the model computes between its parameters, in plain tensor operations.

Runs on GPUs, and on CPUs at level `torch`: the same code, so that it is tested everywhere. The
gradients are autograd's. It is the reference for `distsage.model.cpu`.
"""

import numpy as np
import torch
from torch import Tensor, nn

from distsage.features.slots import InputLayer, PartlyResident
from distsage.sampling.batch import Block


def input_self_and_mean(inputs: InputLayer, dtype: torch.dtype) -> Tensor:
    """Layer 1's `[x_v | mean of x_u]`, `[n1, 2F]` of the given dtype; sums are float32."""
    (rows,) = inputs.tables
    if isinstance(rows, PartlyResident):
        rows = rows.assembled()
    mean = segment_mean(rows.float(), inputs.indptr, inputs.slots)
    return torch.cat((rows[torch.as_tensor(inputs.dst_slots)].float(), mean), 1).to(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x weight' + bias` in the precision of x, `[n, out]`."""
    return nn.functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def hidden_layer(
    x: Tensor, weight: Tensor, bias: Tensor, block: Block, p: float, key: np.uint64
) -> Tensor:
    """`[h_v | mean of h_u]` with h = dropout(ReLU(x weight' + bias)), `[num_dst, 2H]` as x is.

    The mean and its gradient are sums in float32, since a source may have thousands of
    destinations.
    """
    h = dropout(linear(x, weight, bias).relu().float(), p, key)
    mean = segment_mean(h, block.indptr, block.indices)
    return torch.cat((h[: block.num_dst], mean), 1).to(x.dtype)


def dropout(h: Tensor, p: float, key: np.uint64) -> Tensor:
    """Drop elements with probability p and scale the others; a pure function of the key."""
    if p == 0:
        return h
    generator = torch.Generator(h.device).manual_seed(int(key) & (2**63 - 1))
    kept = torch.empty_like(h, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    return h * kept / (1 - p)


def segment_mean(rows: Tensor, indptr: Tensor | np.ndarray, sources: Tensor | np.ndarray) -> Tensor:
    """Mean of the edges' rows per destination, `[n, width]`; 0 where there is no edge.

    Args:
        rows: float32 `[., width]`.
        indptr: int64 `[n + 1]`.
        sources: integer `[nnz]`, a row for each edge.
    """
    sources = torch.as_tensor(sources)
    return nn.functional.embedding_bag(
        sources,
        rows,
        torch.as_tensor(indptr).to(sources.dtype),
        mode="mean",
        include_last_offset=True,
    )
