"""Layer-wise inference over whole neighbourhoods: no sampling, every row computed once per layer.

Runs in the local run and in `predict`; on trainer ranks `layer_rows` is the owner-computes step of
each layer, between exchanges of halo rows.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from distsage.data.graph import Topology
from distsage.train.layers import neighbour_mean
from distsage.train.model import GraphSAGE

_CHUNK_BYTES = 32 * 2**20
"""How much one chunk's input to the matrix product may take."""


@torch.no_grad()
def exchanged_rows(model: GraphSAGE, layer: int, h: Tensor) -> Tensor:
    """What a layer takes the mean of, row by row: `W_neigh h` where that is narrower, otherwise h.

    The mean is linear, so that hidden rows may be multiplied before they are sent and added up:
    the last layer of 256 hidden columns and 47 classes then moves a fifth of the bytes. Features
    (layer 0) are left as they are, because nobody has to compute them.

    Args:
        model: on the device that computes.
        layer: 0 for the first.
        h: `[n, in_width]`, the previous layer's rows.

    Returns:
        `[n, in_width]`, or float32 `[n, out_width]`.
    """
    if not _multiplies_first(model, layer):
        return h
    return h @ model.layers[layer].weight[:, model.layers[layer].in_width :].t()


@torch.no_grad()
def layer_rows(
    model: GraphSAGE,
    layer: int,
    own: Tensor,
    tables: tuple[Tensor, ...],
    indptr: np.ndarray,
    slots: np.ndarray,
) -> Tensor:
    """Compute one layer for some destinations from all their neighbours.

    Local; no dropout. Beside the result it holds about 32 MiB at a time (on a GPU also the edges
    of these rows).

    Args:
        model: on the device that computes.
        layer: 0 for the first. ReLU follows all but the last.
        own: `[n, in_width]`, the previous layer's rows (features for layer 0) of the destinations.
        tables: `exchanged_rows` of the neighbours, on the model's device; slots count through them
            as in `InputLayer`, for instance (own rows, halo rows).
        indptr: int64 `[n + 1]`, may be a slice of a longer one: counted from its first element.
        slots: integer `[nnz]`, slot of each edge's source; starts at the first edge of the range.

    Returns:
        float32 `[n, out_width]` on the model's device.
    """
    width = model.layers[layer].in_width
    weight, bias = model.layers[layer].weight, model.layers[layer].bias
    out = torch.empty(len(own), len(weight), device=weight.device)
    rows_at_once = max(1, _CHUNK_BYTES // (8 * width))
    for begin, end in _ranges(len(own), rows_at_once):
        edge_slots = slots[indptr[begin] - indptr[0] : indptr[end] - indptr[0]]
        mean = neighbour_mean(
            tables,
            torch.from_numpy(indptr[begin : end + 1] - indptr[begin]).to(weight.device),
            torch.from_numpy(np.require(edge_slots, requirements="W")).to(weight.device),
        )
        h = torch.addmm(bias, own[begin:end].float(), weight[:, :width].t(), out=out[begin:end])
        if _multiplies_first(model, layer):
            h += mean
        else:
            h.addmm_(mean, weight[:, width:].t())
        if layer < len(model.layers) - 1:
            h.relu_()
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
        tables = (exchanged_rows(model, layer, h),)
        h = layer_rows(model, layer, h, tables, topology.indptr, topology.indices)
    return h


def _multiplies_first(model: GraphSAGE, layer: int) -> bool:
    out_width, both_widths = model.layers[layer].weight.shape
    return layer > 0 and 2 * out_width < both_widths


def _ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)
