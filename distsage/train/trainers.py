"""Collectives among the trainers; the local run is a world of one. Runs on trainer ranks."""

from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class Trainers:
    """The trainers of the job. Every method is collective and blocks, except for a world of one.

    Attributes:
        rank: trainer rank.
        size: number of trainers.
    """

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Add up CPU tensors of one shape; the result is the same on every rank to the last bit."""
        if self.size == 1:
            return values
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

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

    def exchange(self, rows: Tensor, send_counts: list[int], receive_counts: list[int]) -> Tensor:
        """Send consecutive CPU rows to each trainer in turn; return those received, likewise."""
        if self.size == 1:
            return rows
        received = rows.new_empty((sum(receive_counts), *rows.shape[1:]))
        torch.distributed.all_to_all_single(received, rows, receive_counts, send_counts)
        return received
