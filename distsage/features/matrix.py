"""Feature matrices as they are kept: a dense table, or sparse rows. Trainer ranks and local run.

A dense table is a tensor `[n, F]`. Sparse rows hold only the numbers that are not zero: a row is
as long as it has numbers, on disk, in memory and on the network. Nothing here expands them but
`dense_table`.
"""

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from distsage.data.column_scales import column_peaks, column_scales
from distsage.data.precision import cast_features
from distsage.data.sparse_rows import SparseRows

Features = Tensor | SparseRows
"""A dense table `[n, F]`, or sparse rows. Both say their `shape` and `nbytes`."""


def rows_between(features: Features, begin: int, end: int) -> Features:
    """The rows [begin, end); nothing is copied."""
    if isinstance(features, SparseRows):
        return features.between(begin, end)
    return features[begin:end]


def feature_scales(features: "np.ndarray | scipy.sparse.csr_matrix") -> np.ndarray | None:
    """The scales of columns that are kept in int8, float32 `[F]`.

    None where all numbers of sparse features are 1, which need none.

    Raises:
        UserError: a number is not finite.
    """
    if not isinstance(features, np.ndarray) and (features.data == 1).all():
        return None
    return column_scales(column_peaks(features))


def sparse_rows(
    matrix: scipy.sparse.csr_matrix, dtype: str, scale: np.ndarray | None = None
) -> SparseRows:
    """A CSR matrix of float32 as sparse rows, its values in `dtype`.

    Args:
        matrix: `[N, F]`.
        dtype: as `cast_features` has it.
        scale: float32 `[F]`, for int8: its `feature_scales`.

    Raises:
        UserError: a value is too large for the type.
    """
    values = None
    if not (matrix.data == 1).all():
        scale = None if scale is None else scale[matrix.indices]
        values = cast_features(torch.from_numpy(matrix.data), dtype, scale)
    return SparseRows(
        torch.from_numpy(matrix.indptr.astype(np.int64, copy=False)),
        torch.from_numpy(matrix.indices.astype(np.int32, copy=False)),
        values,
        int(matrix.shape[1]),
    )


def dense_table(
    features: "np.ndarray | scipy.sparse.csr_matrix", dtype: str, scale: np.ndarray | None = None
) -> Tensor:
    """Features as a table `[N, F]` of `dtype`; sparse ones are filled in.

    Args:
        features: float32.
        dtype: as `cast_features` has it.
        scale: float32 `[F]`, for int8: their `feature_scales`.

    Raises:
        UserError: a value is too large for the type.
    """
    dense = features if isinstance(features, np.ndarray) else features.toarray()
    return cast_features(torch.from_numpy(dense), dtype, scale)


def feature_rows(features: "np.ndarray | scipy.sparse.csr_matrix") -> Features:
    """Features as they are, float32: a table, or sparse rows."""
    if isinstance(features, np.ndarray):
        return torch.from_numpy(features)
    return sparse_rows(features, "float32")
