"""Collectives among the trainers; the local run is a world of one. Runs on trainer ranks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor

# What a trainer sends at once in an exchange: bounds the time between two signs of progress.
_PIECE_BYTES = 32 * 2**20
EXCHANGE_BYTES = 3 * _PIECE_BYTES
"""Memory that an exchange takes beside the rows; about."""


@dataclass(frozen=True)
class Collectives:
    """What the trainers of the job do together.

    Every method is collective and blocks, except for a world of one.

    Attributes:
        rank: trainer rank.
        size: number of trainers.
        received_bytes, sent_bytes: in exchanges so far, from and to each trainer.
    """

    rank: int = 0
    size: int = 1
    received_bytes: list[int] = field(default_factory=list, init=False)
    sent_bytes: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.received_bytes.extend([0] * self.size)
        self.sent_bytes.extend([0] * self.size)

    def sum(self, values: Tensor) -> Tensor:
        """Add up CPU tensors of one shape; the result is the same on every rank to the last bit."""
        total = values.clone()
        self.add_up(total)
        return total

    def add_up(self, values: Tensor) -> None:
        """Replace a tensor, on any device, by the sum of all ranks'; as `sum` otherwise."""
        if self.size > 1:
            torch.distributed.all_reduce(values)

    def barrier(self) -> None:
        """Wait for all trainers."""
        self.sum(torch.zeros(1))

    def concatenate(self, rows: Tensor) -> Tensor:
        """Stack the CPU rows `[n_r, ...]` of all trainers in the order of their ranks."""
        if self.size == 1:
            return rows
        lengths = [int(n) for n in self._gather(torch.tensor([len(rows)]))]
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: len(rows)] = rows
        pieces = self._gather(padded)
        return torch.cat([piece[:n] for piece, n in zip(pieces, lengths, strict=True)])

    def _gather(self, values: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, values)
        return gathered

    def exchange(
        self,
        rows: Tensor,
        send_counts: list[int],
        receive_counts: list[int],
        on_piece: Callable[[], None] = lambda: None,
        *,
        taken: Tensor | None = None,
        new: Callable[..., Tensor] = torch.empty,
    ) -> Tensor:
        """Send consecutive CPU rows to each trainer in turn; return those received, likewise.

        They go in pieces of some 32 MiB a trainer.

        Args:
            rows: `[n, ...]`.
            send_counts: how many go to each trainer.
            receive_counts: how many come from each.
            on_piece: called after each piece.
            taken: int64, which of the rows are sent, in this order; None sends all.
            new: makes room for what is received, as `torch.empty` does.
        """
        if self.size == 1:
            return rows if taken is None else rows[taken]
        received = new(sum(receive_counts), *rows.shape[1:], dtype=rows.dtype)
        row_bytes = rows.element_size() * math.prod(rows.shape[1:])
        for peer in range(self.size):
            if peer != self.rank:
                self.received_bytes[peer] += receive_counts[peer] * row_bytes
                self.sent_bytes[peer] += send_counts[peer] * row_bytes
        at_once = max(1, _PIECE_BYTES // (row_bytes * self.size))
        most = int(self.concatenate(torch.tensor([max(send_counts)])).max())
        outgoing = (rows if taken is None else taken).split(send_counts)
        incoming = received.split(receive_counts)
        for begin in range(0, most, at_once):
            to_each = [some[begin : begin + at_once] for some in outgoing]
            sent = torch.cat(to_each)
            places = [some[begin : begin + at_once] for some in incoming]
            counts = [len(place) for place in places]
            piece = rows.new_empty((sum(counts), *rows.shape[1:]))
            torch.distributed.all_to_all_single(
                piece,
                sent if taken is None else rows[sent],
                counts,
                [len(some) for some in to_each],
            )
            for place, some in zip(places, piece.split(counts), strict=True):
                place.copy_(some)
            on_piece()
        return received
