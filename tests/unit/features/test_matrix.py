"""Sparse rows against scipy's matrices, and the choice of layer 1."""

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distsage.features.choice import BatchCounts, choose_input_layer
from distsage.features.matrix import dense_table, sparse_rows

pytestmark = pytest.mark.levels


@st.composite
def matrices(draw: st.DrawFn) -> scipy.sparse.csr_matrix:
    """Up to nine rows and columns; rows and whole matrices without numbers among them."""
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    values = draw(
        st.lists(
            st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.5]),
            min_size=shape[0] * shape[1],
            max_size=shape[0] * shape[1],
        )
    )
    return scipy.sparse.csr_matrix(np.array(values, np.float32).reshape(shape))


@settings(max_examples=60, deadline=None)
@given(matrices(), st.data(), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_taken_rows_are_those_of_the_matrix(matrix, data, dtype):
    rows = sparse_rows(matrix, dtype)
    assert rows.shape == matrix.shape
    which = st.integers(0, matrix.shape[0] - 1)
    slots = np.array(data.draw(st.lists(which, max_size=12)), np.int32)
    begin = data.draw(which)
    for some, expected in (
        (rows.take(slots), matrix[slots]),
        (rows.between(begin, matrix.shape[0]).to(torch.device("cpu")), matrix[begin:]),
        (rows.between(begin, matrix.shape[0]).take(np.arange(1)), matrix[begin : begin + 1]),
    ):
        values = torch.ones(len(some.columns)) if some.values is None else some.values.float()
        back = scipy.sparse.csr_matrix(
            (values.numpy(), some.columns.numpy(), some.indptr.numpy()), some.shape
        )
        np.testing.assert_array_equal(back.toarray(), expected.toarray())


def test_ones_need_no_memory():
    matrix = scipy.sparse.csr_matrix(np.eye(100, dtype=np.float32))
    assert sparse_rows(matrix, "float32").nbytes == 101 * 8 + 100 * 4
    assert sparse_rows(matrix * 2, "float16").nbytes == 101 * 8 + 100 * (4 + 2)
    assert sparse_rows(matrix * 2, "int8", np.ones(100, "f4")).nbytes == 101 * 8 + 100 * (4 + 1)
    assert dense_table(matrix, "float32").nbytes == 100 * 100 * 4


@pytest.mark.parametrize(
    ("shape", "density", "counts", "way"),
    [
        ((15_000, 4687), 0.001, (9353, 14_686, 93_530), "sparse"),  # one-hot attributes
        ((1000, 50), 0.5, (9353, 14_686, 93_530), "gather"),  # half of it is numbers
        ((100_000, 768), None, (19_475, 81_409, 194_737), "gather"),  # embeddings
        ((100_000, 100), None, (24_000, 200_000, 240_000), "gather"),  # narrow
        ((2000, 4000), None, (1500, 2000, 600_000), "multiply"),  # all of many neighbours
    ],
)
def test_the_choice_follows_from_counts(shape, density, counts, way):
    width = shape[1]
    per_row = None if density is None else density * width
    batch = BatchCounts(*counts)
    choice = choose_input_layer("auto", width, per_row, 256, batch)
    assert choice.way == way
    assert f"{width:,} columns" in choice.why
    forced = choose_input_layer("multiply", width, per_row, 256, batch)
    assert forced.way == ("multiply" if density is None else "sparse")
    assert choose_input_layer("gather", width, per_row, 256, batch).way == "gather"
