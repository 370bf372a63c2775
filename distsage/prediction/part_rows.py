"""From the rows of each trainer's nodes to the rows of whole parts. Runs on trainer ranks."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distsage.train.collectives import Collectives


def rows_of_parts(
    values: Tensor,
    gids: np.ndarray,
    offsets: np.ndarray,
    bounds: np.ndarray,
    trainers: Collectives,
    on_piece: Callable[[], None],
) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """Give each part's rows to the trainer that has the part's first node. Collective.

    Args:
        values: `[n, D]`, on the CPU, of those of `gids` that are this trainer's.
        gids: int64, ascending, the nodes of this host whose rows are wanted.
        offsets: int64 `[P + 1]`; part p owns the gids in [offsets[p], offsets[p + 1]).
        bounds: int64 `[trainers + 1]`; trainer r has the gids in [bounds[r], bounds[r + 1]).
        trainers: of the job.
        on_piece: called now and then while rows are sent.

    Yields:
        Of each part that falls to this trainer: its number, the gids, and their rows.
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
    sent, kept = values.split([int(send.sum()), len(values) - int(send.sum())])
    received = trainers.exchange(sent, send.tolist(), receive.tolist(), on_piece)
    rows = torch.cat((kept, received))
    own_gids = gids[writer == trainers.rank]
    for part in np.flatnonzero(writers == trainers.rank).tolist():
        own = slice(*np.searchsorted(own_gids, offsets[part : part + 2]))
        yield part, own_gids[own], rows[own]
