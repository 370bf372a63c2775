"""The scale of each column of features that are kept in int8."""

import numpy as np
import pytest
import scipy.sparse
import torch

from distsage.data.column_scales import column_peaks, column_scales
from distsage.data.precision import cast_features
from distsage.errors import UserError

ROWS = 300


def columns() -> np.ndarray:
    """Normal, huge, tiny, constant, all zero, one number only, below what int8 can scale."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 7)).astype(np.float32)
    x[:, 1] *= 3e37
    x[:, 2] *= 1e-30
    x[:, 3] = -4.5
    x[:, 4:6] = 0
    x[17, 5] = -2
    x[:, 6] *= 1e-39
    return x


@pytest.mark.parametrize("bytes_at_a_time", [28, 1000, 1 << 22])
def test_no_number_is_further_away_than_half_a_step(bytes_at_a_time, monkeypatch):
    monkeypatch.setattr("distsage.data.raw._CHUNK_BYTES", bytes_at_a_time)
    x = columns()
    scale = column_scales(column_peaks(x))
    np.testing.assert_array_equal(column_peaks(x), np.abs(x).max(0))
    cast = cast_features(torch.from_numpy(x), "int8", scale)
    assert cast.dtype == torch.int8
    assert int(cast.min()) >= -127
    back = cast.numpy() * scale.astype(np.float64)
    assert (np.abs(back - x)[:, :6] <= scale[:6].astype(np.float64) * 0.500001).all()
    assert (cast[:, 3] == -127).all()
    assert (cast[:, [4, 6]] == 0).all()
    assert cast[:, 5].nonzero().tolist() == [[17]]
    assert (scale[[4, 6]] == 1).all()


@pytest.mark.parametrize("bytes_at_a_time", [4, 1 << 22])
def test_sparse_numbers_are_those_of_the_table(bytes_at_a_time, monkeypatch):
    monkeypatch.setattr("distsage.data.raw._CHUNK_BYTES", bytes_at_a_time)
    x = columns()
    x[::3] = 0
    matrix = scipy.sparse.csr_matrix(x)
    np.testing.assert_array_equal(column_peaks(matrix), column_peaks(x))
    scale = column_scales(column_peaks(matrix))
    values = cast_features(torch.from_numpy(matrix.data), "int8", scale[matrix.indices])
    filled = scipy.sparse.csr_matrix((values.numpy(), matrix.indices, matrix.indptr), x.shape)
    table = cast_features(torch.from_numpy(x), "int8", scale)
    np.testing.assert_array_equal(filled.toarray(), table.numpy())


def test_no_rows_have_scales():
    np.testing.assert_array_equal(column_scales(column_peaks(np.ones((0, 3), np.float32))), 1)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_matrix])
def test_numbers_that_are_not_finite_are_refused(wrong, kind):
    x = columns()
    x[5, 2] = wrong
    with pytest.raises(UserError, match=r"a feature in column 2 is (inf|nan), which --feat-dtype"):
        column_scales(column_peaks(kind(x)))
