"""A host's copy of the remote feature rows that its trainers will ask for most. Trainer ranks.

Which rows pay does not depend on the run: the partitioner ranks them by the probability that a
batch contains them (SALIENT++, arXiv 2305.03152, section 4). The copy is filled once, before the
first epoch, and never changes. The trainers of a host share it: each pulls an equal share of the
rows into one segment of shared memory.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distsage.config import TrainConfig
from distsage.data.sparse_rows import SparseRows
from distsage.errors import UserError
from distsage.features.matrix import Features, rows_between
from distsage.features.rows import PULL_ROWS
from distsage.launch.watch.progress import Mark, State
from distsage.limits import human_bytes
from distsage.partitioning.manifest import Manifest


def ranking_note(parts: Manifest, config: TrainConfig) -> str | None:
    """What to say when the rows were ranked for other batches than the run has; None if not."""
    names = ("fan_out", "batch_size")
    ranked_for = [parts.configuration.get(name) for name in names]
    if ranked_for == [list(config.fan_outs), config.batch_size]:
        return None
    options = (
        f"--{name.replace('_', '-')} "
        f"{','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in zip(names, ranked_for, strict=True)
    )
    return (
        f"the cache holds the rows that pay for {' '.join(options)}, for which the graph was "
        "partitioned; partition it with this run's to miss fewer"
    )


def fill_cache(
    gids: np.ndarray,
    like: Features,
    counts: np.ndarray | None,
    pull: Callable[[np.ndarray], Features],
    segment: Path,
    *,
    share: int,
    num_shares: int,
    barrier: Callable[[], None],
    mark: Mark,
) -> Features:
    """Rows of `gids` in memory that the trainers of this host share. Collective over all trainers.

    Args:
        gids: int64 `[c]`, what to cache, the same on all trainers of the host.
        like: `[., F]`, features whose width and type the rows have.
        counts: int64 `[c]`, how many numbers each row has, where they are sparse.
        pull: rows of ascending gids (int64), from their servers.
        segment: the file in shared memory, named for this job and host; gone when this returns.
        share: which of `num_shares` equal shares this trainer fills; share 0 makes the file.
        num_shares: trainers on this host.
        barrier: waits for all trainers.
        mark: notes progress.

    Returns:
        `[c, F]`, complete.

    Raises:
        UserError: the host's shared memory is too small.
    """
    makes_it = share == 0 and len(gids) > 0
    num_bytes = _num_bytes(len(gids), like, counts)
    with _new_segment(segment, num_bytes) if makes_it else contextlib.nullcontext():
        if makes_it and counts is not None:
            bounds = _mapped(segment, 8 * (len(gids) + 1)).view(torch.int64)
            torch.cumsum(torch.from_numpy(counts), 0, out=bounds[1:])
        barrier()
        rows: Features
        if len(gids) == 0:
            rows = rows_between(like, 0, 0)
        elif isinstance(like, SparseRows):
            rows = _sparse_view(_mapped(segment, num_bytes), len(gids), like)
        else:
            rows = _mapped(segment, num_bytes).view(like.dtype).view(len(gids), like.shape[1])
        begin, end = (len(gids) * i // num_shares for i in (share, share + 1))
        for first in range(begin, end, PULL_ROWS):
            mark(f"filling the cache: {first - begin} of {end - begin} rows", State.WAITING)
            chunk = gids[first : min(first + PULL_ROWS, end)]
            order = np.argsort(chunk)
            pulled = pull(chunk[order])
            if isinstance(rows, SparseRows):
                assert isinstance(pulled, SparseRows)
                assert counts is not None
                expected = counts[first : first + len(chunk)][order]
                assert (pulled.counts.numpy() == expected).all(), "rows are as long as was said"
                rows.put(first + order, pulled, np.arange(len(chunk)))
            else:
                assert isinstance(pulled, Tensor)
                rows[first + torch.from_numpy(order)] = pulled
        barrier()
    return rows


def _num_bytes(num_rows: int, like: Features, counts: np.ndarray | None) -> int:
    """What the rows take: a table, or bounds, columns and values one after the other."""
    if not isinstance(like, SparseRows):
        return num_rows * like.shape[1] * like.element_size()
    assert counts is not None
    value_bytes = 0 if like.values is None else like.values.element_size()
    return 8 * (num_rows + 1) + int(counts.sum()) * (4 + value_bytes)


def _mapped(segment: Path, num_bytes: int) -> Tensor:
    """The first bytes of a segment, shared: uint8 `[num_bytes]`."""
    return torch.from_file(str(segment), shared=True, size=num_bytes, dtype=torch.uint8)


def _sparse_view(memory: Tensor, num_rows: int, like: SparseRows) -> SparseRows:
    """Sparse rows in memory, whose bounds are there already."""
    end = 8 * (num_rows + 1)
    indptr = memory[:end].view(torch.int64)
    columns_end = end + 4 * int(indptr[-1])
    columns = memory[end:columns_end].view(torch.int32)
    values = None if like.values is None else memory[columns_end:].view(like.values.dtype)
    return SparseRows(indptr, columns, values, like.width)


@contextlib.contextmanager
def _new_segment(segment: Path, num_bytes: int) -> Iterator[None]:
    """A segment of shared memory that has a name inside, for others to map it.

    It is held open meanwhile, so that no other job takes it for one that was left
    (`distsage.launch.preflight.sweep_leftovers`). Without a name it vanishes with the last process
    that has it mapped.
    """
    descriptor = os.open(segment, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        _allocate(descriptor, segment, num_bytes)
        yield
    finally:
        segment.unlink(missing_ok=True)
        os.close(descriptor)


def _allocate(descriptor: int, segment: Path, num_bytes: int) -> None:
    try:
        # Takes the memory now: where there is none, a write to the mapping would kill the process.
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        raise UserError(
            f"{segment.parent} has no room for a cache of {human_bytes(num_bytes)} on this host "
            f"({error.strerror}); lower --cache-ratio, or give --cache-bytes"
        ) from error
