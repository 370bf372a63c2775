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
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from distsage.features.slots import InputLayer, MultipliedInput
from distsage.kernels.rng import draw
from distsage.model.layers import hidden_layer, input_self_and_mean, input_sums, linear
from distsage.model.workspace import Workspace
from distsage.sampling.batch import Block


class SageLayer(nn.Module):
    """The parameters of the linear half of one layer, `x weight' + bias`, x `[n, 2 * in_width]`.

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
        self._input_scale: Tensor | None = None
        self._workspace = Workspace()
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

    def lay_out_for_sparse_rows(self) -> None:
        """Have layer 1's weight lie in memory by input column, since sparse rows add these up.

        The parameter is the same, and so are its gradient and the optimiser's state, which have to
        lie likewise. Comes before these are made.
        """
        weight = self.layers[0].weight
        weight.data = weight.data.t().contiguous().t()

    def scale_inputs(self, scale: Tensor) -> None:
        """Have features count in units of their own, for instance those of int8.

        The parameters stay what they are for features in units of one. Layer 1 is linear, so its
        weight is multiplied by the scale instead of every number that is read: once a batch.

        Args:
            scale: float32 `[F]`, how much 1 of each column is; on the device of the parameters.
        """
        self._input_scale = scale.repeat(2)

    def weight_of(self, layer: int) -> Tensor:
        """What a layer's input is multiplied by, `[out_width, 2 * in_width]`; 0 is the first."""
        weight = self.layers[layer].weight
        if layer > 0 or self._input_scale is None:
            return weight
        return weight * self._input_scale

    def forward(
        self, inputs: InputLayer | MultipliedInput, blocks: Sequence[Block], key: np.uint64
    ) -> Tensor:
        """Logits `[B, C]` of a batch's seeds; no seeds give `[0, C]` and zero gradients.

        Batches share their memory: the backward pass of one comes before the next one is computed.

        Args:
            inputs: layer 1, on the device of the parameters.
            blocks: layers 2..L, likewise.
            key: the batch's dropout stream, unused in evaluation mode.
        """
        p = self.dropout if self.training else 0.0
        x: InputLayer | MultipliedInput | Tensor = inputs
        for i, (layer, block) in enumerate(zip(self.layers[:-1], blocks, strict=True)):
            x = hidden_layer(
                x,
                self.weight_of(i),
                layer.bias,
                block,
                p,
                np.uint64(draw(key, i)),
                self._workspace,
                self.precision,
            )
        weight, bias = self.weight_of(len(self.layers) - 1), self.layers[-1].bias
        if isinstance(x, MultipliedInput):
            return input_sums(x, weight, self._workspace, self.precision).float() + bias
        if isinstance(x, InputLayer):
            x = input_self_and_mean(x, self._workspace, self.precision)
        return linear(x, weight, bias).float()
