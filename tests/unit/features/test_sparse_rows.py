"""Sparse rows come through servers, network and cache as they are: empty, short and very long."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distsage.data.sparse_rows import SparseRows, gather_sparse_rows
from distsage.features.cache import fill_cache
from distsage.features.matrix import dense_table, feature_scales, sparse_rows
from distsage.launch.dgl import messages
from distsage.launch.dgl.frames import FrameReader, FrameWriter, Message
from distsage.launch.dgl.messages import Question

KEY = bytes(32)
LONG = 3000


@st.composite
def matrices(draw: st.DrawFn) -> scipy.sparse.csr_matrix:
    """Up to 20 rows; each has no number, one, a few, or one in every column; or all are ones."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    lengths = draw(st.lists(st.sampled_from([0, 0, 1, 5, LONG]), min_size=1, max_size=20))
    columns = [np.sort(rng.permutation(LONG)[:length]) for length in lengths]
    indptr = np.r_[0, np.cumsum(lengths)]
    values = rng.normal(size=indptr[-1]).astype(np.float32)
    if draw(st.booleans()):
        values[:] = 1
    numbers = values, np.concatenate(columns).astype(np.int32), indptr
    return scipy.sparse.csr_matrix(numbers, (len(lengths), LONG))


def assert_same(found: SparseRows, expected: SparseRows) -> None:
    assert found.width == expected.width
    for one, other in (
        (found.indptr, expected.indptr),
        (found.columns, expected.columns),
        (found.values, expected.values),
    ):
        if one is None or other is None:
            assert one is other
        else:
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def rows_in(matrix: scipy.sparse.csr_matrix, dtype: str) -> SparseRows:
    return sparse_rows(matrix, dtype, feature_scales(matrix) if dtype == "int8" else None)


DTYPES = st.sampled_from(["float32", "float16", "bfloat16", "int8"])


@settings(max_examples=40, deadline=None)
@given(matrices(), st.data(), DTYPES)
def test_rows_of_tables_that_were_split(matrix, data, dtype):
    rows = rows_in(matrix, dtype)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=2, max_size=2)))
    begins, ends = [0, *cuts], [*cuts, len(rows)]
    pieces = [rows.take(np.arange(a, b)) for a, b in zip(begins, ends, strict=True)]
    assert_same(SparseRows.joined(pieces), rows)
    slots = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12)), np.int64)
    assert_same(gather_sparse_rows(pieces, slots), rows.take(slots))
    dense = rows.take(slots).filled_in().float().numpy()
    scale = feature_scales(matrix) if dtype == "int8" else None
    expected = dense_table(matrix, dtype, scale)[torch.from_numpy(slots)].float()
    np.testing.assert_array_equal(dense, expected.numpy())


@settings(max_examples=40, deadline=None)
@given(matrices(), st.data(), DTYPES)
def test_what_a_server_answers_arrives(matrix, data, dtype):
    """From its segments, which have an element at least, into a frame and out of it."""
    rows = rows_in(matrix, dtype)
    slots = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12)), np.int64)
    spare = rows.columns.new_zeros(1)
    segments = {
        messages.SPARSE_INDPTR: rows.indptr,
        messages.SPARSE_COLUMNS: torch.cat((rows.columns, spare)),
    }
    if rows.values is not None:
        kept = torch.cat((rows.values, rows.values.new_zeros(1)))
        segments[messages.SPARSE_VALUES] = (
            kept.view(torch.int16) if kept.element_size() == 2 else kept
        )
    state = SimpleNamespace(kv_store=SimpleNamespace(data_store=segments))
    question = Question(messages.SPARSE_ROWS, (LONG,), torch.from_numpy(slots))
    answer = Message(1, 0, 0, 0, None, question.process_request(state).tensors)
    arrived = sent(answer)
    counts, columns, *rest = arrived.tensors
    values = rest[0].view(getattr(torch, dtype)) if rest else None
    found = SparseRows.of_counts(counts, columns, values, LONG)
    assert_same(found, rows.take(slots))
    assert found.sent_bytes == sum(tensor.nbytes for tensor in arrived.tensors)


def sent(message: Message) -> Message:
    """What the other end of a connection reads."""
    frame = FrameReader(KEY, 1 << 30).frame()
    stream = b"".join(bytes(piece) for piece in FrameWriter(KEY).frame(message))
    room = next(frame)
    while True:
        room[:] = stream[: len(room)]
        stream = stream[len(room) :]
        try:
            room = next(frame)
        except StopIteration as whole:
            assert not stream
            return whole.value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize("num_shares", [1, 3])
def test_trainers_fill_one_cache_together(tmp_path, dtype, ones, num_shares):
    matrix = scipy.sparse.random(40, 90, 0.2, "csr", np.float32, random_state=1).tolil()
    matrix[3] = 0
    matrix[4] = 1
    matrix = matrix.tocsr()
    if ones:
        matrix.data[:] = 1
    rows = rows_in(matrix, dtype)
    gids = np.random.default_rng(0).permutation(np.arange(3, 28))
    counts = np.diff(matrix.indptr)[gids].astype(np.int64)
    barrier = threading.Barrier(num_shares)
    filled = {}

    def fill(share):
        filled[share] = fill_cache(
            gids,
            rows.between(0, 0),
            counts,
            rows.take,
            tmp_path / "segment",
            share=share,
            num_shares=num_shares,
            barrier=lambda: barrier.wait(10),
            mark=lambda doing, state: None,
        )

    threads = [threading.Thread(target=fill, args=(share,)) for share in range(num_shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for share in range(num_shares):
        assert_same(filled[share], rows.take(gids))
    filled[0].columns[0] = 7
    assert filled[num_shares - 1].columns[0] == 7, "the trainers share one copy"
    assert list(tmp_path.iterdir()) == []


def test_an_empty_cache(tmp_path):
    rows = sparse_rows(scipy.sparse.csr_matrix(np.eye(3, dtype=np.float32)), "float32")
    nothing = np.empty(0, np.int64)
    cached = fill_cache(
        nothing,
        rows,
        nothing,
        rows.take,
        tmp_path / "segment",
        share=0,
        num_shares=1,
        barrier=lambda: None,
        mark=lambda doing, state: None,
    )
    assert cached.shape == (0, 3)
    assert_same(gather_sparse_rows((rows, cached), np.array([2, 0])), rows.take(np.array([2, 0])))
