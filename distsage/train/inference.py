"""Layer-wise inference over whole neighbourhoods: no sampling, every row computed once per layer.

Runs in the local run and in `predict`; on trainer ranks `layer_rows` is the owner-computes step of
each layer, between exchanges of halo rows.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from distsage.data.graph import Topology
from distsage.train.features import InputLayer
from distsage.train.layers import input_self_and_mean
from distsage.train.model import GraphSAGE

_CHUNK_BYTES = 32 * 2**20
"""How much one chunk's input to the matrix product may take."""


@torch.no_grad()
def layer_rows(
    model: GraphSAGE,
    layer: int,
    tables: tuple[Tensor, ...],
    indptr: np.ndarray,
    slots: np.ndarray,
    dst_slot: int = 0,
) -> Tensor:
    """Compute one layer for consecutive destinations from all their neighbours.

    Local; no dropout. Beside the result it holds about 32 MiB at a time (on a GPU also the edges
    of these rows).

    Args:
        model: on the device that computes.
        layer: 0 for the first. ReLU follows all but the last.
        tables: the previous layer's rows (features for layer 0), float32 `[., F]`, on the model's
            device; slots count through them as in `InputLayer`, for instance (own rows, halo rows).
        indptr: int64 `[n + 1]`, may be a slice of a longer one: counted from its first element.
        slots: integer `[nnz]`, slot of each edge's source; starts at the first edge of the range.
        dst_slot: slot of the first destination; the others follow.

    Returns:
        float32 `[n, width]` on the model's device.
    """
    linear = model.layers[layer]
    device = linear.weight.device
    out = torch.empty(len(indptr) - 1, len(linear.weight), device=device)
    rows_at_once = max(1, _CHUNK_BYTES // (8 * linear.in_width))
    for begin, end in _ranges(len(out), rows_at_once):
        edge_slots = slots[indptr[begin] - indptr[0] : indptr[end] - indptr[0]]
        edges = torch.from_numpy(np.require(edge_slots, requirements="W")).to(device)
        inputs = InputLayer(
            tables,
            torch.from_numpy(indptr[begin : end + 1] - indptr[begin]).to(device),
            edges,
            torch.arange(dst_slot + begin, dst_slot + end, dtype=edges.dtype, device=device),
        )
        h = linear(input_self_and_mean(inputs))
        out[begin:end] = h if layer == len(model.layers) - 1 else h.relu_()
    return out


def infer(
    model: GraphSAGE, topology: Topology, features: Tensor, num_layers: int | None = None
) -> Tensor:
    """Logits of every node from whole neighbourhoods, in one process.

    Args:
        model: its device computes; it has to hold two layers' rows of all nodes.
        topology: in-edges of all N nodes.
        features: float32 `[N, F]`.
        num_layers: stop after so many layers; None goes through all. All but the last give the
            input of the last layer, the embeddings.

    Returns:
        float32 `[N, C]`, or the width of the layer that was stopped after, on the model's device.
    """
    h = features.to(model.layers[0].weight.device)
    for layer in range(len(model.layers) if num_layers is None else num_layers):
        h = layer_rows(model, layer, (h,), topology.indptr, topology.indices)
    return h


def _ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)
