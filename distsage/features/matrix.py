"""Feature matrices as they are kept: a dense table, or sparse rows. Trainer ranks and local run.

A dense table is a tensor `[n, F]`. Sparse rows hold only the numbers that are not zero: a row is
as long as it has numbers, on disk, in memory and, once it travels, on the network. Nothing here
expands them but `dense_table`.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from distsage.data.precision import cast_features
from distsage.kernels.slots import take_rows


@dataclass(frozen=True)
class SparseRows:
    """Rows of which most numbers are zero, one after the other (CSR).

    Attributes:
        indptr: int64 `[n + 1]`; row i has the numbers [indptr[i], indptr[i + 1]).
        columns: int32 `[nnz]`, ascending within a row, each at most once.
        values: float32, float16 or bfloat16 `[nnz]`; None: every number is 1.
        width: F.
    """

    indptr: Tensor
    columns: Tensor
    values: Tensor | None
    width: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """(n, F), as of a table."""
        return len(self), self.width

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        arrays = (self.indptr, self.columns, *(() if self.values is None else (self.values,)))
        return sum(array.nbytes for array in arrays)

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
        indptr = np.zeros(len(slots) + 1, np.int64)
        begin = self.indptr.numpy()
        np.cumsum(begin[slots + 1] - begin[slots], out=indptr[1:])
        columns = torch.empty(int(indptr[-1]), dtype=torch.int32)
        bits = _bits(self.values)
        values = None if self.values is None else self.values.new_empty(len(columns))
        take_rows(begin, self.columns.numpy(), bits, slots, indptr, columns.numpy(), _bits(values))
        return SparseRows(torch.from_numpy(indptr), columns, values, self.width)


def _bits(values: Tensor | None) -> np.ndarray:
    """Numbers to be copied as they are, whatever they mean."""
    if values is None:
        return np.empty(0, np.int32)
    return values.view(torch.int32 if values.element_size() == 4 else torch.int16).numpy()


Features = Tensor | SparseRows
"""A dense table `[n, F]`, or sparse rows. Both say their `shape` and `nbytes`."""


def sparse_rows(matrix: scipy.sparse.csr_matrix, dtype: str) -> SparseRows:
    """A CSR matrix of float32 as sparse rows, its values in `dtype` (as `cast_features` has it).

    Raises:
        UserError: a value is too large for the type.
    """
    values = None
    if not (matrix.data == 1).all():
        values = cast_features(torch.from_numpy(matrix.data), dtype)
    return SparseRows(
        torch.from_numpy(matrix.indptr.astype(np.int64, copy=False)),
        torch.from_numpy(matrix.indices.astype(np.int32, copy=False)),
        values,
        int(matrix.shape[1]),
    )


def dense_table(features: "np.ndarray | scipy.sparse.csr_matrix", dtype: str) -> Tensor:
    """Features as a table `[N, F]` of `dtype`; sparse ones are filled in.

    Raises:
        UserError: a value is too large for the type.
    """
    dense = features if isinstance(features, np.ndarray) else features.toarray()
    return cast_features(torch.from_numpy(dense), dtype)


def feature_rows(features: "np.ndarray | scipy.sparse.csr_matrix") -> Features:
    """Features as they are, float32: a table, or sparse rows."""
    if isinstance(features, np.ndarray):
        return torch.from_numpy(features)
    return sparse_rows(features, "float32")
