"""Layer-wise inference where every trainer computes its own nodes. Runs on trainer ranks.

Each trainer owns a contiguous range of gids inside its host's part. A layer needs the previous
layer's rows of the range's in-neighbours: own ones are here, the others (the halo) come from their
owners, each once per layer. Features come from the servers, hidden rows from the other trainers.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from distsage.data.graph import Topology
from distsage.features.matrix import Features, rows_between
from distsage.features.rows import PULL_ROWS
from distsage.launch.watch.progress import Mark, State
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import IN_MEMORY, Rooms, exchanged_rows, layer_rows
from distsage.train.collectives import Collectives

# Edges that are numbered at a time.
_CHUNK = 1 << 20


class HaloInference:
    """The exchange plan of one trainer; made once, used for every evaluation.

    Making it is collective. `run` gives the logits of this trainer's nodes.

    Args:
        topology: the whole graph.
        bounds: int64 `[trainers + 1]`; trainer r owns the gids in [bounds[r], bounds[r + 1]).
        part: (low, high), the gids of this host's part, which include this trainer's.
        trainers: of the job.
        mark: notes progress.
        rooms: where rows, and a number for each edge, are put.
    """

    def __init__(
        self,
        topology: Topology,
        bounds: np.ndarray,
        part: tuple[int, int],
        trainers: Collectives,
        mark: Mark,
        rooms: Rooms = IN_MEMORY,
    ) -> None:
        mark("reading the edges of its nodes", State.LOADING)
        self._trainers = trainers
        self._mark = mark
        self._rooms = rooms
        self._low, self._high = (int(bound) for bound in bounds[trainers.rank : trainers.rank + 2])
        self._part = part
        self._indptr = np.asarray(topology.indptr[self._low : self._high + 1])
        sources = np.asarray(topology.indices[self._indptr[0] : self._indptr[-1]])
        num_nodes = topology.num_nodes
        self._feature_halo, self._feature_slots = _halo(sources, *part, num_nodes, rooms)
        own = self._low, self._high
        same = part == own
        self._hidden_slots = self._feature_slots
        hidden_halo = self._feature_halo
        if not same:
            hidden_halo, self._hidden_slots = _halo(sources, *own, num_nodes, rooms)
        # The halo is sorted, so what each owner is asked for lies together.
        wanted = np.diff(np.searchsorted(hidden_halo, bounds))
        self._receive_counts: list[int] = wanted.tolist()
        if trainers.size == 1:
            self._send_counts, self._send_rows = [0], torch.empty(0, dtype=torch.int64)
            return
        ones = [1] * trainers.size
        asked = self._exchange(torch.from_numpy(wanted), ones, ones)
        self._send_counts = asked.tolist()
        gids = torch.from_numpy(hidden_halo.astype(np.int64))
        asked_gids = self._exchange(gids, self._receive_counts, self._send_counts)
        self._send_rows = asked_gids - self._low

    def _exchange(
        self, rows: Tensor, send: list[int], receive: list[int], taken: Tensor | None = None
    ) -> Tensor:
        doing = "exchanging halo rows with the other trainers"
        self._mark(doing, State.WAITING)
        return self._trainers.exchange(
            rows,
            send,
            receive,
            lambda: self._mark(doing, State.WAITING),
            taken=taken,
            new=self._rooms.table,
        )

    def _remote(
        self, model: GraphSAGE, own_features: Features, pull: Callable[[Tensor], Features]
    ) -> Tensor:
        """What layer 1 takes the mean of, of the halo: from the servers, piece by piece."""
        nothing = exchanged_rows(model, 0, rows_between(own_features, 0, 0))
        halo = torch.from_numpy(self._feature_halo)
        remote = self._rooms.table(len(halo), nothing.shape[1], dtype=nothing.dtype)
        for begin in range(0, len(halo), PULL_ROWS):
            self._mark("fetching halo rows from the servers", State.WAITING)
            some = slice(begin, begin + PULL_ROWS)
            remote[some] = exchanged_rows(model, 0, pull(halo[some]))
        return remote

    def run(
        self,
        model: GraphSAGE,
        own_features: Features,
        pull: Callable[[Tensor], Features],
        num_layers: int | None = None,
        on_rows: Callable[[int], object] = lambda count: None,
        done: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Logits `[high - low, C]`, float32, of this trainer's nodes, on the CPU. Collective.

        Args:
            model: on its device.
            own_features: `[n, F]`, the rows of this host's part.
            pull: feature rows of the gids (int64, ascending) that it is given; CPU.
            num_layers: stop after so many layers, at least one, and return their rows; None goes
                through all.
            on_rows: as in `layer_rows`; of this trainer's nodes in each layer.
            done: a layer that every trainer has finished already, and this trainer's rows of it.
        """
        if done is None:
            first, h = 1, self._first_layer(model, own_features, pull, on_rows)
        else:
            first, h = done[0] + 1, done[1]
        for layer in range(first, len(model.layers) if num_layers is None else num_layers):
            rows = exchanged_rows(model, layer, h, self._rooms)
            received = self._exchange(
                rows, self._send_counts, self._receive_counts, self._send_rows
            )
            # Every trainer has finished the layer before, so nobody goes on from an earlier one.
            self._rooms.forget(layer - 2)
            tables = rows, received
            del rows, received
            h = self._layer(model, layer, h, tables, self._hidden_slots, on_rows)
            del tables  # before the next ones are made
        return h

    def _first_layer(
        self,
        model: GraphSAGE,
        own_features: Features,
        pull: Callable[[Tensor], Features],
        on_rows: Callable[[int], object],
    ) -> Tensor:
        remote = self._remote(model, own_features, pull)
        first = self._low - self._part[0]
        own = rows_between(own_features, first, first + self._high - self._low)
        tables = exchanged_rows(model, 0, own_features, self._rooms), remote
        del remote
        return self._layer(model, 0, own, tables, self._feature_slots, on_rows)

    def _layer(
        self,
        model: GraphSAGE,
        layer: int,
        own: Features,
        tables: tuple[Tensor, ...],
        slots: np.ndarray,
        on_rows: Callable[[int], object],
    ) -> Tensor:
        doing = f"computing layer {layer} of its nodes"
        self._mark(doing, State.WORKING)

        def computed(count: int) -> None:
            self._mark(doing, State.WORKING)
            on_rows(count)

        return layer_rows(model, layer, own, tables, self._indptr, slots, computed, self._rooms)


def _halo(
    sources: np.ndarray, low: int, high: int, num_nodes: int, rooms: Rooms
) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of `sources` outside [low, high), sorted, and the slot of every source.

    Slots count through the own rows, then the halo's: int32 (int64 where they do not fit).
    """
    is_remote = np.zeros(num_nodes, bool)
    chunks = [slice(begin, begin + _CHUNK) for begin in range(0, len(sources), _CHUNK)]
    for some in chunks:
        is_remote[sources[some]] = True
    is_remote[low:high] = False
    halo = np.flatnonzero(is_remote)
    slot_type = np.int32 if num_nodes < 2**31 else np.int64
    slot = np.empty(num_nodes, slot_type)
    slot[low:high] = np.arange(high - low, dtype=slot_type)
    slot[halo] = np.arange(high - low, high - low + len(halo), dtype=slot_type)
    slots = rooms.table(len(sources), dtype=torch.from_numpy(slot[:0]).dtype).numpy()
    for some in chunks:
        slots[some] = slot[sources[some]]
    return halo, slots
