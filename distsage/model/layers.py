"""What the model computes between its parameters: by our kernels on a CPU, by torch elsewhere.

Runs on trainer ranks, in the local run and in prediction.
"""

import numpy as np
import torch
from torch import Tensor

from distsage.features.slots import InputLayer, MultipliedInput
from distsage.model import cpu, cpu_input, tensor_ops
from distsage.model.backend import by_kernels
from distsage.model.workspace import Workspace
from distsage.sampling.batch import Block


def input_self_and_mean(
    inputs: InputLayer, workspace: Workspace, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Layer 1's `[x_v | mean of x_u]`, `[n1, 2F]` of the given dtype, without gradient.

    By kernels it is the block `input` of the workspace.
    """
    (table, *_) = inputs.tables
    if isinstance(table, Tensor) and by_kernels(table.device):
        return cpu.input_self_and_mean(inputs, workspace, dtype)
    return tensor_ops.input_self_and_mean(inputs, dtype)


def input_sums(
    inputs: MultipliedInput,
    weight: Tensor,
    workspace: Workspace,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Layer 1's `x_v W_self' + mean of x_u W_neigh'`, `[n1, H]` of the given dtype.

    Each distinct row is multiplied once. By kernels it is the block `hidden` of the workspace.
    """
    if by_kernels(weight.device):
        return cpu_input.input_sums(inputs, weight, workspace, dtype)
    return tensor_ops.input_sums(inputs, weight, dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x weight' + bias` in the precision of x, `[n, out]`; gradients of parameters are float32."""
    implementation = cpu if by_kernels(x.device) else tensor_ops
    return implementation.linear(x, weight, bias)


def hidden_layer(
    x: Tensor | InputLayer | MultipliedInput,
    weight: Tensor,
    bias: Tensor,
    block: Block,
    p: float,
    key: np.uint64,
    workspace: Workspace,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One layer but the last, and what the next aggregates: `[h_v | mean of h_u]`.

    h = dropout(ReLU(x weight' + bias)).

    Args:
        x: `[num_src, 2 * in]`; in layer 1, what `input_self_and_mean` makes it from, or what
            `input_sums` multiplies.
        weight: float32 `[H, 2 * in]`.
        bias: float32 `[H]`.
        block: the edges of the next layer.
        p: probability in [0, 1) that an element of h is dropped; the others are scaled by
            1 / (1 - p).
        key: names the mask, which is a pure function of it. The masks of kernels and of torch's
            operations differ.
        workspace: by kernels, its block `input` holds x in layer 1, until the backward pass; its
            block `hidden` is used while this runs.
        dtype: of what is computed.

    Returns:
        `[num_dst, 2H]` of the given dtype.
    """
    if isinstance(x, MultipliedInput):
        z = input_sums(x, weight, workspace, dtype)
        if by_kernels(weight.device):
            return cpu_input.activated(z, bias, block, p, key)
        return tensor_ops.activated(z + bias.to(dtype), block, p, key)
    if by_kernels(weight.device):
        return cpu.hidden_layer(x, weight, bias, block, p, key, workspace, dtype)
    if isinstance(x, InputLayer):
        x = tensor_ops.input_self_and_mean(x, dtype)
    return tensor_ops.hidden_layer(x, weight, bias, block, p, key)
