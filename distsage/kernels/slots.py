"""The loops that find a batch's rows: their slots, and the numbers of sparse ones.

Runs on trainer ranks and in the local run.
"""

import numpy as np

from distsage.kernels.compiled import compiled


@compiled
def split_slots(
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

    One edge after the other; waits for the slots' cache lines.

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


@compiled
def copy_rows(
    out_indptr: np.ndarray,
    out_columns: np.ndarray,
    out_values: np.ndarray,
    at: np.ndarray,
    indptr: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    slots: np.ndarray,
) -> None:
    """Copy the numbers of sparse rows, one row after the other; waits for memory.

    Args:
        out_indptr: int64 `[. + 1]`; row i gets the numbers [out_indptr[i], out_indptr[i + 1]).
        out_columns, out_values: to fill, as columns and values are.
        at: integer `[m]`, which rows are filled.
        indptr: int64 `[. + 1]`, of the rows that are copied.
        columns: int32 `[nnz]`.
        values: `[nnz]`, or `[0]`: there are none.
        slots: integer `[m]`, which rows are copied; as long as those that they fill.
    """
    for i in range(len(slots)):
        first = indptr[slots[i]]
        begin = out_indptr[at[i]]
        for k in range(out_indptr[at[i] + 1] - begin):
            out_columns[begin + k] = columns[first + k]
            if len(values) > 0:
                out_values[begin + k] = values[first + k]
