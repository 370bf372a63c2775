"""What the model computes between its parameters, in plain tensor operations.

Runs on GPUs, and on CPUs at level `torch`: the same code, so that it is tested everywhere. The
gradients are autograd's. It is the reference for `distsage.model.cpu`.
"""

import numpy as np
import torch
from torch import Tensor, nn

from distsage.features.matrix import SparseRows
from distsage.features.slots import InputLayer, MultipliedInput, PartlyResident, TableRows
from distsage.sampling.batch import Block


def input_self_and_mean(inputs: InputLayer, dtype: torch.dtype) -> Tensor:
    """Layer 1's `[x_v | mean of x_u]`, `[n1, 2F]` of the given dtype; sums are float32."""
    (rows,) = inputs.tables
    if isinstance(rows, PartlyResident):
        rows = rows.assembled()
    mean = segment_mean(rows.float(), inputs.indptr, inputs.slots)
    return torch.cat((rows[torch.as_tensor(inputs.dst_slots)].float(), mean), 1).to(dtype)


def input_sums(inputs: MultipliedInput, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`x_v W_self' + mean of x_u W_neigh'`, `[n1, H]`: each distinct row is multiplied once."""
    rows = inputs.rows
    assert not isinstance(rows, TableRows), "torch's operations take rows that are gathered"
    if isinstance(rows, PartlyResident):
        rows = rows.assembled()
    of_self, of_mean = weight.to(dtype).chunk(2, dim=1)
    own = _products(rows, of_self, inputs.num_dst)
    products = _products(rows, of_mean, rows.shape[0])
    mean = segment_mean(products.float(), inputs.indptr, inputs.indices)
    return (own.float() + mean).to(dtype)


def _products(rows: Tensor | SparseRows, weight: Tensor, count: int) -> Tensor:
    """`rows weight'` of the first rows, `[count, H]` in the type of the weight."""
    if isinstance(rows, Tensor):
        return nn.functional.linear(rows[:count].to(weight.dtype), weight)
    return sparse_products(rows.between(0, count), weight.t())


def sparse_products(rows: SparseRows, weight: Tensor) -> Tensor:
    """`rows weight`, `[n, H]` in the type of the weight `[F, H]`; sums are float32."""
    begin, end = int(rows.indptr[0]), int(rows.indptr[-1])
    values = None if rows.values is None else rows.values[begin:end].float()
    sums = nn.functional.embedding_bag(
        rows.columns[begin:end].long(),
        weight.float(),
        rows.indptr - begin,
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )
    return sums.to(weight.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x weight' + bias` in the precision of x, `[n, out]`."""
    return nn.functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def hidden_layer(
    x: Tensor, weight: Tensor, bias: Tensor, block: Block, p: float, key: np.uint64
) -> Tensor:
    """`[h_v | mean of h_u]` with h = dropout(ReLU(x weight' + bias)), `[num_dst, 2H]` as x is."""
    return activated(linear(x, weight, bias), block, p, key)


def activated(z: Tensor, block: Block, p: float, key: np.uint64) -> Tensor:
    """`[h_v | mean of h_u]` with h = dropout(ReLU(z)), `[num_dst, 2H]` as z is.

    The mean and its gradient are sums in float32, since a source may have thousands of
    destinations.
    """
    h = dropout(z.relu().float(), p, key)
    mean = segment_mean(h, block.indptr, block.indices)
    return torch.cat((h[: block.num_dst], mean), 1).to(z.dtype)


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
