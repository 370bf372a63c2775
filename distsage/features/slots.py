"""Where layer 1 finds its rows: feature tables, and the slot of every node in them.

Runs on trainer ranks and in the local run.

A trainer's rows lie in up to three tables of one width and type: its part's own rows (in place, in
the server's shared memory), rows of other parts that are cached, and the misses of this batch.
Slots count through them in this order, as if they were one table that nobody has to build. The
local run has one table, in which the slot of a node is its id.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distsage.features.matrix import SparseRows
from distsage.kernels import level
from distsage.kernels.gather import Tables, gather
from distsage.kernels.level import Level
from distsage.kernels.slots import split_slots
from distsage.sampling.batch import MiniBatch


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory as `distsage.kernels.simd` takes it: half precisions as integers."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.float32, torch.int8):
        return tensor.numpy()
    bits = tensor.view(torch.int16).numpy()
    return bits.view(np.uint16) if tensor.dtype == torch.bfloat16 else bits


@dataclass(frozen=True)
class PartlyResident:
    """The input rows of a batch, of which some are in a GPU's memory already.

    Attributes:
        resident: `[r, F]`, what is there.
        resident_rows: int64 `[a]`, which of its rows the batch takes.
        resident_at: int64 `[a]`, and where they belong among the batch's rows.
        rows: `[b, F]`, the others.
        rows_at: int64 `[b]`, where they belong.
    """

    resident: Tensor
    resident_rows: Tensor
    resident_at: Tensor
    rows: Tensor
    rows_at: Tensor

    def assembled(self) -> Tensor:
        """All rows `[a + b, F]`; once everything is on the GPU."""
        out = self.resident.new_empty(len(self.resident_at) + len(self.rows_at), self.rows.shape[1])
        out[self.resident_at] = self.resident[self.resident_rows]
        out[self.rows_at] = self.rows
        return out


@dataclass(frozen=True)
class InputLayer:
    """What layer 1 of the model aggregates.

    On a CPU the edges are numpy arrays, on a GPU tensors.

    Attributes:
        tables: the feature tables `[., F]`, all of one dtype; slots count through them in order.
            At most three for kernels; for torch's operations exactly one, the gathered rows, or
            what they are assembled from.
        indptr: int64 `[n1 + 1]`, edges of each destination.
        slots: int32 or int64 `[nnz]`, the slot of each edge's source.
        dst_slots: int32 or int64 `[n1]`, the slot of each destination.
    """

    tables: tuple[Tensor, ...] | tuple[PartlyResident]
    indptr: Any
    slots: Any
    dst_slots: Any


@dataclass(frozen=True)
class TableRows:
    """Rows of feature tables, where they are. For kernels.

    Attributes:
        tables: as of an `InputLayer`.
        slots: int32 or int64 `[n]`, which rows.
    """

    tables: tuple[Tensor, ...]
    slots: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(n, F)."""
        return len(self.slots), self.tables[0].shape[1]


@dataclass(frozen=True)
class MultipliedInput:
    """What layer 1 of the model aggregates where it multiplies rows before it averages them.

    On a CPU the edges are numpy arrays, on a GPU tensors.

    Attributes:
        rows: the distinct rows of the batch, `[num_src, F]`, those of the destinations first. For
            torch's operations dense rows are gathered, or what they are assembled from.
        indptr: int64 `[n1 + 1]`, edges of each destination.
        indices: int32 `[nnz]`, the row of each edge's source.
    """

    rows: SparseRows | TableRows | Tensor | PartlyResident
    indptr: Any
    indices: Any

    @property
    def num_dst(self) -> int:
        """n1."""
        return len(self.indptr) - 1


def multiplied_input(
    batch: MiniBatch, rows: SparseRows | TableRows | Tensor | PartlyResident
) -> MultipliedInput:
    """Layer 1 of a batch with numbered inputs; rows are those of `batch.input_gid`."""
    assert batch.input_gid is not None
    return MultipliedInput(rows, batch.input_edges.indptr, batch.input_edges.indices)


def local_input(batch: MiniBatch, table: Tensor) -> InputLayer:
    """Layer 1 of a batch on one table `[N, F]` of all nodes, in place; inputs not numbered."""
    assert batch.input_gid is None
    return InputLayer(
        (table,),
        batch.input_edges.indptr,
        batch.input_edges.indices,
        batch.dst_gid,
    )


def gathered_input(batch: MiniBatch, rows: Tensor | PartlyResident) -> InputLayer:
    """Layer 1 of a batch with numbered inputs; rows `[len(batch.input_gid), F]` are gathered."""
    assert batch.input_gid is not None
    tables: Any = (rows,)
    return InputLayer(
        tables,
        batch.input_edges.indptr,
        batch.input_edges.indices,
        np.arange(len(batch.dst_gid), dtype=np.int32),
    )


class SlotMap:
    """Finds the slot of any node: own and cached rows by table, others are misses.

    Keeps one int32 per node of the graph: its slot, or -1 minus the part that it is asked of. Not
    for use by two threads at once.

    Args:
        offsets: int64 `[P + 1]`; part i owns the gids in [offsets[i], offsets[i + 1]).
        part: this host's.
        cached_gid: the nodes of the cache in the order of its rows, none of them own.
    """

    def __init__(self, offsets: np.ndarray, part: int, cached_gid: np.ndarray) -> None:
        num_nodes = int(offsets[-1])
        lo, hi = (int(offset) for offset in offsets[part : part + 2])
        self._num_parts = len(offsets) - 1
        self._num_own = hi - lo
        self.num_kept = hi - lo + len(cached_gid)
        assert self.num_kept <= np.iinfo(np.int32).max - num_nodes, "slots are int32"
        self._slot = -1 - np.repeat(np.arange(self._num_parts, dtype=np.int32), np.diff(offsets))
        self._slot[lo:hi] = np.arange(hi - lo, dtype=np.int32)
        self._slot[cached_gid] = np.arange(hi - lo, self.num_kept, dtype=np.int32)
        self._seen = np.zeros(self.num_kept // 64 + 1, np.uint64)

    def find(self, src_gid: np.ndarray, dst_gid: np.ndarray) -> "FoundSlots":
        """Slots of a batch's sources `[nnz]` and destinations `[n1]`, and the rows that miss."""
        slots = np.empty(len(src_gid), np.int32)
        dst_slots = np.empty(len(dst_gid), np.int32)
        missed_gid = np.empty(len(src_gid) + len(dst_gid), np.int64)
        num_missed, num_own, num_cached = split_slots(
            src_gid,
            dst_gid,
            self._num_parts,
            self._num_own,
            self.num_kept,
            self._slot,
            self._seen,
            slots,
            dst_slots,
            missed_gid,
        )
        return FoundSlots(slots, dst_slots, missed_gid[:num_missed].copy(), num_own, num_cached)


@dataclass(frozen=True)
class FoundSlots:
    """Where the rows of one batch are.

    Attributes:
        slots: int32 `[nnz]`.
        dst_slots: int32 `[n1]`.
        missed_gid: int64 `[m]`, distinct, those of each part together, parts in ascending order;
            row j of the third table is that of missed_gid[j].
        num_own, num_cached: how many distinct rows are own ones and cached ones.
    """

    slots: np.ndarray
    dst_slots: np.ndarray
    missed_gid: np.ndarray
    num_own: int
    num_cached: int

    def input(self, indptr: np.ndarray, tables: tuple[Tensor, Tensor, Tensor]) -> InputLayer:
        """Layer 1 on the tables (own rows, cached rows, rows of `missed_gid`)."""
        assert len(tables[2]) == len(self.missed_gid)
        return InputLayer(tables, indptr, self.slots, self.dst_slots)


def gather_rows(tables: tuple[Tensor, ...], slots: np.ndarray, *, pin: bool = False) -> Tensor:
    """Copy rows to one table `[n, F]` of the tables' type.

    Args:
        tables: one to three on the CPU, of one width and type.
        slots: integer `[n]`; they count through the tables.
        pin: into pinned memory, from which a GPU copies by itself.
    """
    shape = len(slots), tables[0].shape[1]
    rows = torch.empty(shape, dtype=tables[0].dtype, pin_memory=pin)
    if level.chosen() > Level.TORCH:
        gather(as_array(rows), slots, three_tables(tables))
        return rows
    begin = 0
    for table in tables:
        here = np.flatnonzero((slots >= begin) & (slots < begin + len(table)))
        rows[torch.from_numpy(here)] = table[torch.from_numpy(slots[here] - begin)]
        begin += len(table)
    return rows


def three_tables(tables: tuple[Tensor, ...]) -> Tables:
    """One to three tables as kernels take them."""
    arrays = [as_array(t) for t in tables]
    return Tables(*arrays, *[arrays[0][:0]] * (3 - len(arrays)))
