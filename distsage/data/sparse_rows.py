"""Rows of which most numbers are zero, as ranks keep and send them. Server and trainer ranks.

Runs in the local run, too. A row is as long as it has numbers, in memory and on the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distsage.kernels.slots import copy_rows


@dataclass(frozen=True)
class SparseRows:
    """Rows of which most numbers are zero, one after the other (CSR).

    Attributes:
        indptr: int64 `[n + 1]`; row i has the numbers [indptr[i], indptr[i + 1]).
        columns: int32 `[nnz]`, ascending within a row, each at most once.
        values: float32, float16, bfloat16 or int8 `[nnz]`; None: every number is 1.
        width: F.
    """

    indptr: Tensor
    columns: Tensor
    values: Tensor | None
    width: int

    @classmethod
    def of_counts(
        cls, counts: Tensor, columns: Tensor, values: Tensor | None, width: int
    ) -> "SparseRows":
        """Rows that have so many numbers each: integers `[n]`."""
        indptr = _indptr(counts.numpy())
        assert int(indptr[-1]) == len(columns), "the rows have all numbers"
        return cls(indptr, columns, values, width)

    @classmethod
    def joined(cls, pieces: "Sequence[SparseRows]") -> "SparseRows":
        """The rows of all pieces, of one width and type; at least one, each with its own numbers.

        What `between` returns has others' numbers beside its own.
        """
        if len(pieces) == 1:
            return pieces[0]
        values = [piece.values for piece in pieces if piece.values is not None]
        return cls.of_counts(
            torch.cat([piece.counts for piece in pieces]),
            torch.cat([piece.columns for piece in pieces]),
            torch.cat(values) if values else None,
            pieces[0].width,
        )

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """(n, F), as of a table."""
        return len(self), self.width

    @property
    def counts(self) -> Tensor:
        """How many numbers each row has: int32 `[n]`, as they are sent."""
        return self.indptr.diff().int()

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return self.indptr.nbytes + self._numbers_bytes

    @property
    def sent_bytes(self) -> int:
        """What they take on the network."""
        return 4 * len(self) + self._numbers_bytes

    @property
    def _numbers_bytes(self) -> int:
        return self.columns.nbytes + (0 if self.values is None else self.values.nbytes)

    def between(self, begin: int, end: int) -> "SparseRows":
        """The rows [begin, end); nothing is copied, and indptr does not begin with 0."""
        return SparseRows(self.indptr[begin : end + 1], self.columns, self.values, self.width)

    def to(self, device: torch.device) -> "SparseRows":
        """On a device; only their own numbers are copied there."""
        begin, end = int(self.indptr[0]), int(self.indptr[-1])
        values = None if self.values is None else self.values[begin:end].to(device)
        indptr = (self.indptr - begin).to(device)
        return SparseRows(indptr, self.columns[begin:end].to(device), values, self.width)

    def take(self, slots: np.ndarray) -> "SparseRows":
        """Copies of some rows, in this order; slots are integers `[m]`. Rows on the CPU only."""
        return gather_sparse_rows((self,), slots)

    def put(self, at: np.ndarray, source: "SparseRows", slots: np.ndarray) -> None:
        """Overwrite rows by those of another table, as long as they are. Rows on the CPU only.

        Args:
            at: integer `[m]`, which rows.
            source: of this width and type.
            slots: integer `[m]`, which of its rows.
        """
        copy_rows(
            self.indptr.numpy(),
            self.columns.numpy(),
            _bits(self.values),
            at,
            source.indptr.numpy(),
            source.columns.numpy(),
            _bits(source.values),
            slots,
        )

    def filled_in(self) -> Tensor:
        """The rows as a table `[n, F]` of the type of the values, or float32. On the CPU."""
        some = self.to(torch.device("cpu"))
        values = torch.ones(len(some.columns)) if some.values is None else some.values
        table = values.new_zeros(self.shape)
        row = torch.repeat_interleave(torch.arange(len(self)), some.indptr.diff())
        table[row, some.columns.long()] = values
        return table


def gather_sparse_rows(tables: Sequence[SparseRows], slots: np.ndarray) -> SparseRows:
    """Copies of rows of some tables, in the order of slots.

    Args:
        tables: on the CPU, of one width and type.
        slots: integer `[m]`; they count through the tables.
    """
    counts = np.empty(len(slots), np.int64)
    found = []
    first = 0
    for table in tables:
        at = np.flatnonzero((slots >= first) & (slots < first + len(table)))
        here = slots[at] - first
        begin = table.indptr.numpy()
        counts[at] = begin[here + 1] - begin[here]
        found.append((at, table, here))
        first += len(table)
    assert sum(len(at) for at, _, _ in found) == len(slots), "slots are those of the tables"
    indptr = _indptr(counts)
    total, values = int(indptr[-1]), tables[0].values
    rows = SparseRows(
        indptr,
        torch.empty(total, dtype=torch.int32),
        None if values is None else values.new_empty(total),
        tables[0].width,
    )
    for at, table, here in found:
        rows.put(at, table, here)
    return rows


def _indptr(counts: np.ndarray) -> Tensor:
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return torch.from_numpy(indptr)


def _bits(values: Tensor | None) -> np.ndarray:
    """Numbers to be copied as they are, whatever they mean."""
    if values is None:
        return np.empty(0, np.int32)
    return values.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[values.itemsize]).numpy()
