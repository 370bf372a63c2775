"""Where the feature rows of all nodes are, seen from one host, and how a batch gets at its own.

Runs on trainer ranks and in the local run. A finder makes layer 1 of a batch: by kernels it reads
the rows where they are; for PyTorch's operations they are put together in one table first, as far
as they are not on the GPU already.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from distsage.data.sparse_rows import SparseRows, gather_sparse_rows
from distsage.features.matrix import Features
from distsage.features.resident import ResidentRows, input_rows
from distsage.features.slots import (
    FoundSlots,
    InputLayer,
    MultipliedInput,
    SlotMap,
    TableRows,
    gather_rows,
    gathered_input,
    local_input,
    multiplied_input,
)
from distsage.sampling.batch import MiniBatch

PULL_ROWS = 65536
"""Rows asked of the servers at once: bounds the memory that a pull takes."""


class RowFinder(Protocol):
    """Makes layer 1 of batches. Keeps scratch space: not for use by two threads at once."""

    def input_layer(
        self, sampled: MiniBatch
    ) -> tuple[InputLayer | MultipliedInput, dict[str, int]]:
        """Layer 1 of a batch, and counts of where its rows came from. Blocks on other hosts."""
        ...


@dataclass(frozen=True)
class LocalRows:
    """All rows on this machine.

    Attributes:
        rows: `[N, F]`.
        resident: what is on the GPU.
        multiplies: layer 1 multiplies before it averages; of sparse rows it always does.
        in_place: it reads dense rows where they are, by kernels.
    """

    rows: Features
    resident: ResidentRows | None = None
    multiplies: bool = False
    in_place: bool = True

    @property
    def numbers_inputs(self) -> bool:
        """Whether the inputs of batches have to be numbered."""
        return self.multiplies or not self.in_place

    def input_layer(
        self, sampled: MiniBatch
    ) -> tuple[InputLayer | MultipliedInput, dict[str, int]]:
        """See `RowFinder`; may be used by several threads."""
        if isinstance(self.rows, SparseRows):
            assert sampled.input_gid is not None
            return multiplied_input(sampled, self.rows.take(sampled.input_gid)), {}
        if sampled.input_gid is None:
            return local_input(sampled, self.rows), {}
        if self.in_place:
            return multiplied_input(sampled, TableRows((self.rows,), sampled.input_gid)), {}
        rows = input_rows((self.rows,), sampled.input_gid, self.resident)
        make = multiplied_input if self.multiplies else gathered_input
        return make(sampled, rows), {}


@dataclass(frozen=True)
class PartRows:
    """The rows of this host's part, copies of some of other parts, and the others' on request.

    Attributes:
        offsets: int64 `[P + 1]`; part i owns the gids in [offsets[i], offsets[i + 1]).
        part: this host's.
        own: `[n, F]`, its rows, in place in the server's memory.
        cached_gid: int64 `[c]`, nodes of other parts whose rows are kept here as well.
        cached: `[c, F]`, their rows, dense or sparse as the own ones.
        pull: rows of gids (int64 `[n]`, those of each part together, parts in ascending order)
            from their servers; blocks. Several threads may call it.
        resident: what is on the GPU.
        multiplies: layer 1 multiplies before it averages; otherwise sparse rows are filled in.
        in_place: it reads dense rows where they are, by kernels.
    """

    offsets: np.ndarray
    part: int
    own: Features
    cached_gid: np.ndarray
    cached: Features
    pull: Callable[[np.ndarray], Features]
    resident: ResidentRows | None = None
    multiplies: bool = False
    in_place: bool = True

    @property
    def numbers_inputs(self) -> bool:
        """Whether the inputs of batches have to be numbered."""
        return self.multiplies or not self.in_place or isinstance(self.own, SparseRows)

    def new_finder(self) -> "PartRowFinder":
        """What makes layer 1 of batches; each thread has its own."""
        return PartRowFinder(self)


class PartRowFinder:
    """Finds rows by slots in (own, cached, misses of a batch); see `RowFinder`."""

    def __init__(self, rows: PartRows) -> None:
        self._rows = rows
        self._slot_map = SlotMap(rows.offsets, rows.part, rows.cached_gid)
        # As in a topology: code that is compiled for its type serves all gids.
        self._gid_type = np.int32 if rows.offsets[-1] < 2**31 else np.int64

    def input_layer(
        self, sampled: MiniBatch
    ) -> tuple[InputLayer | MultipliedInput, dict[str, int]]:
        """See `RowFinder`."""
        if sampled.input_gid is None:
            found = self._slot_map.find(sampled.input_edges.indices, sampled.dst_gid)
        else:
            found = self._slot_map.find(sampled.input_gid, sampled.input_gid[:0])
        missed = self._rows.pull(found.missed_gid)
        if isinstance(missed, SparseRows):
            inputs = self._sparse_input(sampled, found, missed)
            received = missed.sent_bytes
        else:
            inputs = self._dense_input(sampled, found, missed)
            received = missed.nbytes
        num_missed = len(found.missed_gid)
        return inputs, {
            "input_nodes": found.num_own + found.num_cached + num_missed,
            "local_rows": found.num_own,
            "cached_rows": found.num_cached,
            "missed_rows": num_missed,
            "received_bytes": received,
        }

    def _dense_input(
        self, sampled: MiniBatch, found: FoundSlots, missed: Tensor
    ) -> InputLayer | MultipliedInput:
        rows = self._rows
        tables = self._tables(missed)
        if sampled.input_gid is None:
            return found.input(sampled.input_edges.indptr, tables)
        if rows.multiplies and rows.in_place:
            return multiplied_input(sampled, TableRows(tables, found.slots))
        gathered = input_rows(tables, found.slots, rows.resident)
        return (multiplied_input if rows.multiplies else gathered_input)(sampled, gathered)

    def _sparse_input(
        self, sampled: MiniBatch, found: FoundSlots, missed: SparseRows
    ) -> InputLayer | MultipliedInput:
        taken = gather_sparse_rows(self._sparse_tables(missed), found.slots)
        if self._rows.multiplies:
            return multiplied_input(sampled, taken)
        return gathered_input(sampled, taken.filled_in())

    def fetch(self, gids: Tensor) -> Features:
        """Feature rows of any distinct gids (int64 `[n]`), in that order. Blocks."""
        wanted = gids.numpy().astype(self._gid_type)
        found = self._slot_map.find(wanted, wanted[:0])
        missed = self._rows.pull(found.missed_gid)
        if isinstance(missed, SparseRows):
            return gather_sparse_rows(self._sparse_tables(missed), found.slots)
        return gather_rows(self._tables(missed), found.slots)

    def _tables(self, missed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, cached = self._rows.own, self._rows.cached
        assert isinstance(own, Tensor)
        assert isinstance(cached, Tensor)
        return own, cached, missed

    def _sparse_tables(self, missed: SparseRows) -> tuple[SparseRows, SparseRows, SparseRows]:
        own, cached = self._rows.own, self._rows.cached
        assert isinstance(own, SparseRows)
        assert isinstance(cached, SparseRows)
        return own, cached, missed
