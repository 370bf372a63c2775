"""The scale of each column of features that are kept in int8. Runs wherever features are read.

A number x of column j is kept as the whole number that is nearest to `x / scale[j]`, where
`scale[j]` is the column's peak, its largest magnitude over all nodes, divided by 127. Numpy only.
"""

import numpy as np
import scipy.sparse

from distsage.data.raw import rows_per_chunk
from distsage.errors import UserError

_LARGEST = 127
"""Of the whole numbers; -128 is not used."""


def column_peaks(features: "np.ndarray | scipy.sparse.csr_matrix") -> np.ndarray:
    """The largest magnitude of each column, float32 `[F]`; NaN where there is one.

    Args:
        features: float32 `[n, F]`, a table or a CSR matrix; n may be 0.
    """
    peaks = np.zeros(features.shape[1], np.float32)
    if isinstance(features, np.ndarray):
        step = rows_per_chunk(4 * len(peaks))
        for begin in range(0, len(features), step):
            np.maximum(peaks, np.abs(features[begin : begin + step]).max(0), out=peaks)
        return peaks
    step = rows_per_chunk(4)
    for begin in range(0, features.nnz, step):
        some = slice(begin, begin + step)
        with np.errstate(invalid="ignore"):  # NaN is to stay
            np.maximum.at(peaks, features.indices[some], np.abs(features.data[some]))
    return peaks


def column_scales(peaks: np.ndarray) -> np.ndarray:
    """Scales of columns with these peaks, float32 `[F]`.

    A column of zeros has scale 1; so has one whose numbers are too small for float32 to hold a
    127th of them exactly, and they become 0.

    Raises:
        UserError: a number is not finite.
    """
    wrong = np.flatnonzero(~np.isfinite(peaks))
    if len(wrong) > 0:
        raise UserError(
            f"a feature in column {wrong[0]} is {peaks[wrong[0]]:g}, which --feat-dtype int8 "
            "cannot keep; use float32"
        )
    scales = peaks / np.float32(_LARGEST)
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)
