"""From the rows of each trainer's nodes to the rows of whole parts. Runs on trainer ranks."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distsage.train.collectives import Collectives

Take = Callable[[slice], Tensor]
"""Copies a range of rows."""


def rows_of_parts(
    rows: Tensor,
    gids: np.ndarray,
    offsets: np.ndarray,
    bounds: np.ndarray,
    trainers: Collectives,
    on_piece: Callable[[], None],
    new: Callable[..., Tensor] = torch.empty,
) -> Iterator[tuple[int, np.ndarray, Take]]:
    """Give each part's rows to the trainer that has the part's first node. Collective.

    Args:
        rows: `[m, D]`, on the CPU, of all nodes of this trainer.
        gids: int64, ascending, the nodes of this host whose rows are wanted.
        offsets: int64 `[P + 1]`; part p owns the gids in [offsets[p], offsets[p + 1]).
        bounds: int64 `[trainers + 1]`; trainer r has the gids in [bounds[r], bounds[r + 1]).
        trainers: of the job.
        on_piece: called now and then while rows are sent.
        new: makes room for the rows of other trainers, as `torch.empty` does.

    Yields:
        Of each part that falls to this trainer: its number, the gids, and what copies their rows.
    """
    # A part without nodes at the very end begins behind the last trainer's nodes.
    writers = np.searchsorted(bounds, offsets[:-1], side="right") - 1
    writers = np.minimum(writers, trainers.size - 1)
    owner = np.searchsorted(bounds, gids, side="right") - 1
    writer = writers[np.searchsorted(offsets, gids, side="right") - 1]
    # Writers come before those that send to them, so what is sent lies before what is kept.
    send = np.bincount(writer[owner == trainers.rank], minlength=trainers.size)
    receive = np.bincount(owner[writer == trainers.rank], minlength=trainers.size)
    send[trainers.rank] = receive[trainers.rank] = 0
    own = gids[owner == trainers.rank] - bounds[trainers.rank]
    sent, kept = np.split(own, [int(send.sum())])
    received = trainers.exchange(
        rows, send.tolist(), receive.tolist(), on_piece, taken=torch.from_numpy(sent), new=new
    )
    wanted = gids[writer == trainers.rank]

    def from_row(first: int) -> Take:
        def take(some: slice) -> Tensor:
            begin, end = first + some.start, first + some.stop
            here = rows[torch.from_numpy(kept[begin:end])]
            if end <= len(kept):
                return here
            return torch.cat((here, received[max(begin - len(kept), 0) : end - len(kept)]))

        return take

    for part in np.flatnonzero(writers == trainers.rank).tolist():
        begin, end = np.searchsorted(wanted, offsets[part : part + 2])
        yield part, wanted[begin:end], from_row(int(begin))
