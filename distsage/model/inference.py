"""Layer-wise inference over whole neighbourhoods: no sampling, every row computed once per layer.

Runs in the local run and in prediction; on trainer ranks `layer_rows` is the owner-computes step of
each layer, between exchanges of halo rows. Rows between layers are in the host's memory, or where
`Rooms` puts them, wherever the model computes.
"""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distsage.data.graph import Topology
from distsage.features.matrix import Features, SparseRows
from distsage.features.slots import gather_rows
from distsage.features.stored import StoredFeatures
from distsage.kernels import threads
from distsage.kernels.picking import number_nodes
from distsage.model import cpu, cpu_input, tensor_ops
from distsage.model.backend import by_kernels
from distsage.model.graphsage import GraphSAGE

_PIECE_BYTES = 4 * 2**20
"""How much the input of one piece's matrix product may take, per thread. By kernels."""

_SHARE_OF_GPU = 1 / 8
"""How much of a GPU's free memory the rows of one piece may take; what is made of them as much."""

_TORCH_PIECE_BYTES = 256 * 2**20
"""The same on a CPU at level `torch`."""


class Rooms:
    """Where the rows that inference makes are kept: here, in memory.

    A subclass may keep them elsewhere, and layers for a process that goes on after this one.
    """

    def table(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Room for rows that are needed for a while; as `torch.empty`."""
        return torch.empty(shape, dtype=dtype)

    def layer(self, layer: int, count: int, width: int) -> Tensor:
        """Room for what comes out of a layer, float32 `[count, width]`; 0 for the first layer."""
        return self.table(count, width)

    def finish(self, layer: int, rows: Tensor, on_headway: Callable[[], object]) -> None:
        """All rows of the layer are there, in the room that it was given.

        Making them last may take long; `on_headway` is called again and again meanwhile.
        """

    def finished(self, num_layers: int) -> list[int]:
        """Which of so many layers are finished already, in their order."""
        return []

    def taken_up(self, layer: int) -> Tensor:
        """The rows of one of the layers that are finished already."""
        raise AssertionError("nothing outlives a process in its memory")

    def forget(self, layer: int) -> None:
        """Nobody will take up this layer, or one before it."""


IN_MEMORY = Rooms()


def working_bytes(model: GraphSAGE, *, sparse: bool) -> int:
    """Memory that the layers take beside the rows that rooms are made for, on a CPU; about.

    Args:
        model: on the CPU.
        sparse: whether the features are sparse rows.
    """
    kernels = by_kernels(torch.device("cpu"))
    piece_bytes = _PIECE_BYTES if kernels else _TORCH_PIECE_BYTES
    most = 0
    for index, layer in enumerate(model.layers):
        out_width, both_widths = layer.weight.shape
        width = out_width if sparse and index == 0 else layer.in_width
        # Of a destination: its own row, its neighbours' mean, and what comes of both.
        most = max(most, piece_bytes * (both_widths + 2 * out_width) // (2 * width))
    return (threads.budget() if kernels else 1) * most


def exchanged_rows(
    model: GraphSAGE, layer: int, h: Features | StoredFeatures, rooms: Rooms = IN_MEMORY
) -> Tensor:
    """What a layer takes the mean of, row by row: `W_neigh h` where that is narrower, otherwise h.

    The mean is linear, so that rows may be multiplied before they are sent and added up: the last
    layer of 256 hidden columns and 47 classes then moves a fifth of the bytes. Sparse rows always
    are.

    Args:
        model: on the device that computes.
        layer: 0 for the first.
        h: `[n, in_width]`, the previous layer's rows, on the CPU.
        rooms: where rows are put that are not in memory yet.

    Returns:
        `[n, in_width]`, or float32 `[n, out_width]`, on the CPU.
    """
    if not _multiplies_first(model, layer, h):
        assert isinstance(h, Tensor)
        return h
    weight = model.weight_of(layer).detach()[:, model.layers[layer].in_width :].t().contiguous()
    out = rooms.table(len(h), weight.shape[1])

    def rows(begin: int, end: int) -> None:
        out[begin:end] = _product(h, begin, end, weight)

    row_bytes = 4 * max(weight.shape[1] if _is_sparse(h) else len(weight), 1)
    if by_kernels(weight.device):
        threads.share_rows(rows, len(h), max(1, _PIECE_BYTES // row_bytes))
    else:
        step = max(1, _piece_bytes(weight.device) // row_bytes)
        for begin in range(0, len(h), step):
            rows(begin, min(begin + step, len(h)))
    return out


def _product(rows: Features | StoredFeatures, begin: int, end: int, weight: Tensor) -> Tensor:
    """Rows [begin, end) times a contiguous weight `[F, out]`: float32 on its device, here."""
    some = rows[begin:end] if isinstance(rows, Tensor) else rows.between(begin, end)
    if isinstance(some, Tensor):
        return some.to(weight.device).float() @ weight
    if by_kernels(weight.device):
        return cpu_input.sparse_product(some, weight)
    return tensor_ops.sparse_products(some.to(weight.device), weight)


def layer_rows(
    model: GraphSAGE,
    layer: int,
    own: Features | StoredFeatures,
    tables: tuple[Tensor, ...],
    indptr: np.ndarray,
    slots: np.ndarray,
    on_rows: Callable[[int], object] = lambda count: None,
    rooms: Rooms = IN_MEMORY,
) -> Tensor:
    """Compute one layer for some destinations from all their neighbours.

    Local; no dropout. Beside the result it holds 4 MiB a thread and what a product makes of them;
    on a GPU, within a quarter of its free memory, the rows of some destinations at a time.

    Args:
        model: on the device that computes.
        layer: 0 for the first. ReLU follows all but the last.
        own: `[n, in_width]`, the previous layer's rows (features for layer 0) of the destinations,
            on the CPU.
        tables: `exchanged_rows` of the neighbours, on the CPU; slots count through them as in
            `InputLayer`, for instance (own rows, halo rows).
        indptr: int64 `[n + 1]`, may be a slice of a longer one: counted from its first element.
        slots: integer `[nnz]`, slot of each edge's source; starts at the first edge of the range.
        on_rows: told how many rows more are computed, every few thousand; by any thread, but by one
            at a time.
        rooms: where the rows are put.

    Returns:
        float32 `[n, out_width]` on the CPU.
    """
    width = model.layers[layer].in_width
    weight, bias = model.weight_of(layer).detach(), model.layers[layer].bias.detach()
    weight_self, weight_neighbours = weight[:, :width].t().contiguous(), weight[:, width:].t()
    out = rooms.layer(layer, len(own), len(weight))
    telling = threading.Lock()

    def compute(begin: int, end: int, mean: Tensor) -> None:
        h = _product(own, begin, end, weight_self).add_(bias)
        if _multiplies_first(model, layer, own):
            h += mean
        else:
            h.addmm_(mean, weight_neighbours)
        if layer < len(model.layers) - 1:
            h.relu_()
        out[begin:end] = h
        with telling:
            on_rows(end - begin)

    def edges(begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        first, last = indptr[begin] - indptr[0], indptr[end] - indptr[0]
        return indptr[begin : end + 1] - indptr[begin], slots[first:last]

    row_width = max(tables[0].shape[1], 0 if _is_sparse(own) else width)
    if by_kernels(weight.device):
        threads.share_rows(
            lambda begin, end: compute(begin, end, cpu.neighbour_mean(tables, *edges(begin, end))),
            len(own),
            max(1, _PIECE_BYTES // (8 * row_width)),
        )
        rooms.finish(layer, out, lambda: on_rows(0))
        return out
    mean_of = _MeanByTensorOps(tables, weight.device)
    row_bytes = 4 * row_width
    for begin, end in _pieces(indptr, _piece_bytes(weight.device) // row_bytes):
        compute(begin, end, mean_of(*edges(begin, end)))
    rooms.finish(layer, out, lambda: on_rows(0))
    return out


class _MeanByTensorOps:
    """Brings the distinct rows of some edges to a device and averages them there."""

    def __init__(self, tables: tuple[Tensor, ...], device: torch.device) -> None:
        self._tables = tables
        self._device = device
        self._scratch = np.full(sum(len(table) for table in tables), -1, np.int32)

    def __call__(self, indptr: np.ndarray, slots: np.ndarray) -> Tensor:
        distinct = np.empty(len(slots), slots.dtype)
        numbers = np.empty(len(slots), np.int32)
        count = number_nodes(slots[:0], slots, self._scratch, distinct, numbers)
        rows = gather_rows(self._tables, distinct[:count]).to(self._device)
        return tensor_ops.segment_mean(
            rows.float(),
            torch.from_numpy(indptr).to(self._device),
            torch.from_numpy(numbers).to(self._device),
        )


def _pieces(indptr: np.ndarray, most_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of destinations that have, with their edges, at most so many rows; at least one."""
    rows = indptr - indptr[0] + np.arange(len(indptr))
    begin = 0
    while begin < len(indptr) - 1:
        end = int(np.searchsorted(rows, rows[begin] + most_rows, side="right")) - 1
        end = max(end, begin + 1)
        yield begin, end
        begin = end


def _piece_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE_OF_GPU)
    return _TORCH_PIECE_BYTES


def infer(
    model: GraphSAGE,
    topology: Topology,
    features: Features | StoredFeatures,
    num_layers: int | None = None,
    on_rows: Callable[[int], object] = lambda count: None,
    rooms: Rooms = IN_MEMORY,
) -> Tensor:
    """Logits of every node from whole neighbourhoods, in one process.

    Args:
        model: its device computes; rooms are made for two layers' rows of all nodes.
        topology: in-edges of all N nodes.
        features: `[N, F]`.
        num_layers: stop after so many layers; None goes through all. All but the last give the
            input of the last layer, the embeddings.
        on_rows: as in `layer_rows`; of N rows in each layer.
        rooms: where all that is put. The layers that are finished there are not computed again.

    Returns:
        float32 `[N, C]`, or the width of the layer that was stopped after, on the CPU.
    """
    count = len(model.layers) if num_layers is None else num_layers
    h: Features | StoredFeatures = features
    first = 0
    finished = rooms.finished(count)
    if finished:
        first, h = finished[-1] + 1, rooms.taken_up(finished[-1])
        on_rows(first * topology.num_nodes)
    for layer in range(first, count):
        if isinstance(h, StoredFeatures) and not _multiplies_first(model, layer, h):
            h = h.table(rooms.table)
        table = exchanged_rows(model, layer, h, rooms)
        edges = topology.indptr, topology.indices
        h = layer_rows(model, layer, h, (table,), *edges, on_rows, rooms)
        rooms.forget(layer - 1)
        del table  # before the next one is made
    assert isinstance(h, Tensor)
    return h


def _multiplies_first(model: GraphSAGE, layer: int, rows: Features | StoredFeatures) -> bool:
    out_width, both_widths = model.layers[layer].weight.shape
    return _is_sparse(rows) or 2 * out_width < both_widths


def _is_sparse(rows: Features | StoredFeatures) -> bool:
    return rows.is_sparse if isinstance(rows, StoredFeatures) else isinstance(rows, SparseRows)
