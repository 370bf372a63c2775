"""Features that stay where they lie, in files or in memory, and are read some rows at a time.

Runs in prediction, which goes through the features of all nodes once or twice.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from distsage.data.precision import cast_features
from distsage.data.raw import rows_per_chunk
from distsage.data.sparse_rows import SparseRows
from distsage.features.matrix import Features
from distsage.partitioning.parts import Parts, SparseArrays

# Parts whose files are open at a time: threads read neighbouring rows.
_OPEN_PARTS = 8


@dataclass(frozen=True)
class StoredFeatures:
    """The features of all nodes, in one piece or several.

    Attributes:
        piece: opens a piece by its number: float32, dense rows `[., F]` or sparse ones; may be
            read-only memory maps that begin at any byte.
        offsets: int64 `[P + 1]`; piece p has the rows [offsets[p], offsets[p + 1]).
        width: F.
        is_sparse: whether the rows are sparse.
        dtype: in which type rows are given, as `cast_features` has it.
        scale: float32 `[F]`, for int8: the scales of the columns.
    """

    piece: Callable[[int], np.ndarray | SparseArrays]
    offsets: np.ndarray
    width: int
    is_sparse: bool
    dtype: str = "float32"
    scale: np.ndarray | None = None

    @classmethod
    def of_matrix(cls, features: "np.ndarray | scipy.sparse.csr_matrix") -> "StoredFeatures":
        """Those of a graph."""
        offsets = np.array([0, features.shape[0]])
        width = int(features.shape[1])
        if isinstance(features, np.ndarray):
            return cls(lambda _: features, offsets, width, is_sparse=False)
        rows = SparseArrays(
            features.indptr.astype(np.int64, copy=False),
            features.indices.astype(np.int32, copy=False),
            None if (features.data == 1).all() else features.data,
        )
        return cls(lambda _: rows, offsets, width, is_sparse=True)

    @classmethod
    def of_parts(cls, parts: Parts) -> "StoredFeatures":
        """Those in the files of some parts, by gid."""
        sparse = parts.manifest.features.is_sparse

        @lru_cache(_OPEN_PARTS)
        def opened(part: int) -> np.ndarray | SparseArrays:
            return parts.sparse_features(part) if sparse else parts.map_part(part)["features"]

        return cls(opened, parts.offsets, parts.manifest.num_features, is_sparse=sparse)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, F), as of a table."""
        return len(self), self.width

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def between(self, begin: int, end: int) -> Features:
        """The rows [begin, end), on the CPU; several threads may ask.

        Raises:
            UserError: a value is too large for the type, or a file cannot be read.
        """
        first = int(np.searchsorted(self.offsets, begin, side="right")) - 1
        last = int(np.searchsorted(self.offsets, end, side="left"))
        found = []
        for piece in range(first, max(last, first + 1)):
            low, high = (int(bound) for bound in self.offsets[piece : piece + 2])
            found.append(self._rows(piece, max(begin, low) - low, min(end, high) - low))
        dense = [rows for rows in found if isinstance(rows, Tensor)]
        sparse = [rows for rows in found if isinstance(rows, SparseRows)]
        if sparse:
            return SparseRows.joined(sparse)
        return dense[0] if len(dense) == 1 else torch.cat(dense)

    def table(self, new: Callable[..., Tensor]) -> Tensor:
        """All rows of dense features as one table `[N, F]`, which kernels may read in any order.

        Args:
            new: makes room for it, as `torch.empty` does. Not called where the rows lie in memory,
                or in a map of one file, as they are.

        Raises:
            UserError: as for `between`.
        """
        piece = self.piece(0)
        assert isinstance(piece, np.ndarray)
        if len(piece) == len(self) and self.dtype == "float32" and piece.flags.aligned:
            with warnings.catch_warnings():  # of a map that nobody may write; nobody does
                warnings.simplefilter("ignore", UserWarning)
                return torch.from_numpy(piece)
        table = new(*self.shape, dtype=getattr(torch, self.dtype))
        step = rows_per_chunk(4 * self.width)
        for begin in range(0, len(self), step):
            end = min(begin + step, len(self))
            rows = self.between(begin, end)
            assert isinstance(rows, Tensor)
            table[begin:end] = rows
        return table

    def _rows(self, piece: int, begin: int, end: int) -> Features:
        rows = self.piece(piece)
        if isinstance(rows, np.ndarray):
            return cast_features(_tensor(rows[begin:end]), self.dtype, self.scale)
        first, last = int(rows.indptr[begin]), int(rows.indptr[end])
        columns = _tensor(rows.columns[first:last])
        values = None
        if rows.values is not None:
            scale = None if self.scale is None else self.scale[columns.numpy()]
            values = cast_features(_tensor(rows.values[first:last]), self.dtype, scale)
        indptr = torch.from_numpy(rows.indptr[begin : end + 1] - first)
        return SparseRows(indptr, columns, values, self.width)


def _tensor(array: np.ndarray) -> Tensor:
    """An array in memory as it is, others as a copy that begins where numbers may."""
    in_place = array.flags.aligned and array.flags.writeable
    return torch.from_numpy(array if in_place else np.array(array))
