"""Where layer 1 finds its rows: feature tables, and the slot of every node in them.

Runs on trainer ranks and in the local run.

A trainer's rows lie in up to three tables of one width and type: its part's own rows (in place, in
the server's shared memory), rows of other parts that are cached, and the misses of this batch.
Slots count through them in this order, as if they were one table that nobody has to build. The
local run has one table, in which the slot of a node is its id.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distsage.train import kernels
from distsage.train.compiled import compiled
from distsage.train.sampler import Csc, MiniBatch


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory as `distsage.train.vectors` takes it: half precisions as integers."""
    tensor = tensor.detach()
    if tensor.dtype == torch.float32:
        return tensor.numpy()
    bits = tensor.view(torch.int16).numpy()
    return bits.view(np.uint16) if tensor.dtype == torch.bfloat16 else bits


@dataclass(frozen=True)
class InputLayer:
    """What layer 1 of the model aggregates.

    Attributes:
        tables: the feature tables `[., F]`, all of one dtype; slots count through them in order.
            At most three on the CPU, exactly one (the gathered rows) on another device.
        indptr: int64 `[n1 + 1]`, edges of each destination.
        slots: int32 or int64 `[nnz]`, the slot of each edge's source.
        dst_slots: int32 or int64 `[n1]`, the slot of each destination.
    """

    tables: tuple[Tensor, ...]
    indptr: Tensor
    slots: Tensor
    dst_slots: Tensor

    def to(self, device: torch.device) -> "InputLayer":
        """Copy to a device; asynchronous where the tensors are pinned."""
        return InputLayer(
            tuple(t.to(device, non_blocking=True) for t in self.tables),
            self.indptr.to(device, non_blocking=True),
            self.slots.to(device, non_blocking=True),
            self.dst_slots.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Block:
    """One inner layer as the model reads it: `Csc` as tensors.

    Attributes:
        indptr: int64 `[num_dst + 1]`.
        indices: int32 `[nnz]`, `_bid` of the source of each edge.
        num_src: number of source nodes.
    """

    indptr: Tensor
    indices: Tensor
    num_src: int

    @classmethod
    def from_csc(cls, csc: Csc) -> "Block":
        """Wrap a sampled layer; no copy."""
        return cls(torch.from_numpy(csc.indptr), torch.from_numpy(csc.indices), csc.num_src)

    def to(self, device: torch.device) -> "Block":
        """Copy to a device; asynchronous where the tensors are pinned."""
        return replace(
            self,
            indptr=self.indptr.to(device, non_blocking=True),
            indices=self.indices.to(device, non_blocking=True),
        )

    @property
    def num_dst(self) -> int:
        """Number of destination nodes."""
        return len(self.indptr) - 1


def blocks_of(batch: MiniBatch) -> list[Block]:
    """Layers 2..L of a batch as tensors; no copy."""
    return [Block.from_csc(csc) for csc in batch.blocks]


def local_input(batch: MiniBatch, table: Tensor) -> InputLayer:
    """Layer 1 of a batch on one table `[N, F]` of all nodes, in place; inputs not numbered."""
    assert batch.input_gid is None
    return InputLayer(
        (table,),
        torch.from_numpy(batch.input_edges.indptr),
        torch.from_numpy(batch.input_edges.indices),
        torch.from_numpy(batch.dst_gid),
    )


def gathered_input(batch: MiniBatch, rows: Tensor) -> InputLayer:
    """Layer 1 of a batch with numbered inputs; rows `[len(batch.input_gid), F]` are gathered."""
    assert batch.input_gid is not None
    assert len(rows) == len(batch.input_gid)
    return InputLayer(
        (rows,),
        torch.from_numpy(batch.input_edges.indptr),
        torch.from_numpy(batch.input_edges.indices),
        torch.arange(len(batch.dst_gid), dtype=torch.int32),
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

    def split(self, src_gid: np.ndarray, dst_gid: np.ndarray) -> "SlotSplit":
        """Slots of a batch's sources `[nnz]` and destinations `[n1]`, and the rows that miss."""
        slots = np.empty(len(src_gid), np.int32)
        dst_slots = np.empty(len(dst_gid), np.int32)
        missed_gid = np.empty(len(src_gid) + len(dst_gid), np.int64)
        num_missed, num_own, num_cached = _split(
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
        return SlotSplit(slots, dst_slots, missed_gid[:num_missed].copy(), num_own, num_cached)


@dataclass(frozen=True)
class SlotSplit:
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
        return InputLayer(
            tables,
            torch.from_numpy(indptr),
            torch.from_numpy(self.slots),
            torch.from_numpy(self.dst_slots),
        )

    def gather(self, tables: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The rows of `slots` in one table `[nnz, F]`, in pinned memory where there is a GPU."""
        assert len(tables[2]) == len(self.missed_gid)
        rows = torch.empty(
            len(self.slots),
            tables[0].shape[1],
            dtype=tables[0].dtype,
            pin_memory=torch.cuda.is_available(),
        )
        kernels.gather(as_array(rows), self.slots, *(as_array(table) for table in tables))
        return rows


@compiled
def _split(
    src_gid: np.ndarray,
    dst_gid: np.ndarray,
    num_parts: int,
    own_rows: int,
    num_kept: int,
    slot: np.ndarray,
    seen: np.ndarray,
    slots: np.ndarray,
    dst_slots: np.ndarray,
    missed_gid: np.ndarray,
) -> tuple[int, int, int]:
    """Fill slots, dst_slots and the beginning of missed_gid; return (missed, own, cached).

    `slot` `[N]` is as `SlotMap` has it, before and after; `seen` is room for num_kept + 1 bits.
    """
    owner = np.empty(len(missed_gid), np.int32)
    begin = np.zeros(num_parts + 1, np.int64)
    seen[:] = 0
    seen[num_kept >> 6] = np.uint64(1) << np.uint64(num_kept & 63)  # stands for all misses
    num_missed = 0
    num_seen = 0
    num_own = 0
    for gids, out in ((dst_gid, dst_slots), (src_gid, slots)):
        for e in range(len(gids)):
            v = gids[e]
            s = slot[v]
            if s < 0:
                owner[num_missed] = -1 - s
                begin[-s] += 1
                missed_gid[num_missed] = v
                s = np.int32(num_kept + num_missed)
                slot[v] = s
                num_missed += 1
            # No branch, because nobody could predict it.
            kept = min(s, num_kept)
            new = 1 - int(seen[kept >> 6] >> np.uint64(kept & 63) & np.uint64(1))
            seen[kept >> 6] |= np.uint64(1) << np.uint64(kept & 63)
            num_seen += new
            num_own += new * int(kept < own_rows)
            out[e] = s
    # Misses in the order of their parts, so that what each part is asked for lies together.
    begin = np.cumsum(begin)
    place = np.empty(num_missed, np.int32)
    unordered = missed_gid[:num_missed].copy()
    for m in range(num_missed):
        slot[unordered[m]] = -1 - owner[m]
        place[m] = begin[owner[m]]
        begin[owner[m]] += 1
        missed_gid[place[m]] = unordered[m]
    for out in (dst_slots, slots):
        for e in range(len(out)):
            s = out[e]
            if s >= num_kept:
                out[e] = num_kept + place[s - num_kept]
    return num_missed, num_own, num_seen - num_own
