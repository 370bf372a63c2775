"""The baselines' model: SAGEConv as DGL's documentation stacks it."""

import itertools

import dgl
import dgl.nn.pytorch as dglnn
from torch import Tensor, nn
from torch.nn import functional


class SAGE(nn.Module):
    """SAGEConv layers with the mean aggregator, ReLU and dropout between them."""

    def __init__(self, widths: list[int], dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            dglnn.SAGEConv(a, b, "mean") for a, b in itertools.pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, blocks: list[dgl.DGLGraph], h: Tensor) -> Tensor:
        """Logits of the last block's destination nodes."""
        for i, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            h = layer(block, h)
            if i < len(self.layers) - 1:
                h = self.dropout(functional.relu(h))
        return h
