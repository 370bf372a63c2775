"""Damaged parts directories: what opens and reads them ends well, or with one sentence."""

import contextlib
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsage.data.npy import ArrayError, map_array
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from distsage.partitioning.verify import verify
from tests.unit.fuzzing import (
    altered_json,
    damaged,
    examples,
    nested,
    success_or_one_sentence,
    try_all,
)
from tests.unit.partition_graphs import random_directed


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzzed") / "parts"
    partition(random_directed(60, 400), 2, path, method="random")
    return path


def use(parts) -> None:
    """What the commands do before they train."""
    opened = Parts.open(parts)
    opened.check_sizes()
    topology = opened.topology()
    assert len(topology.indptr) == opened.manifest.num_nodes + 1
    opened.original_ids()
    for part in range(opened.num_parts):
        opened.cache_ranking(part)
    verify(opened)


@pytest.mark.parametrize("name", ["manifest.json", "small.json"])
def test_json_of_parts(parts, name):
    path = parts / name
    good = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        use(parts)

    @examples(250)
    @given(content=altered_json(good.decode()) | damaged(good) | st.binary(max_size=30))
    def fuzz(content):
        with success_or_one_sentence():
            read(content)

    try:
        fuzz()
        try_all(read, [*nested(200_000), good[:-3], b"1e400", b'"\\ud800"'])
    finally:
        path.write_bytes(good)
    use(parts)


@pytest.mark.parametrize(
    "name", ["topology/indptr.npy", "topology/indices.npy", "original_ids.npy", "quality.json"]
)
def test_files_of_parts(parts, name):
    path = parts / name
    good = path.read_bytes()

    @examples(60)
    @given(content=damaged(good) | damaged(good[:200]).map(lambda start: start + good[200:]))
    def fuzz(content):
        path.write_bytes(content)
        with success_or_one_sentence():
            use(parts)

    try:
        fuzz()
    finally:
        path.write_bytes(good)


HEADERS = [
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (61,), }",
    b"{'descr': '<i8', 'fortran_order': True, 'shape': (6, 10), }",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    b"{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (3,), }",
    b"{'descr': '<U5', 'fortran_order': False, 'shape': (3,), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 999999999999999999), }",
    b"{'descr': '<U999999999', 'fortran_order': False, 'shape': (999999999,), }",
    b"(" * 9000,
    b"-" * 9000 + b"1",
    b"{" + b"'shape': (1,), " * 500 + b"}",
]


@examples(600)
@given(
    header=st.sampled_from(HEADERS).flatmap(lambda good: st.just(good) | damaged(good)),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
    shift=st.sampled_from([0, 0, 0, -1, 1, 60000, 2**31]),
    values=st.binary(max_size=600),
)
def test_headers_of_arrays(header, version, shift, values, tmp_path_factory):
    """Every header is taken apart or refused; none is evaluated, none allocates what it says."""
    path = tmp_path_factory.getbasetemp() / "header.npy"
    width = 2 if version == (1, 0) else 4
    length = (len(header) + shift) % 256**width
    path.write_bytes(
        b"\x93NUMPY" + bytes(version) + length.to_bytes(width, "little") + header + values
    )
    with contextlib.suppress(ArrayError):
        assert map_array(path).nbytes <= len(values) + len(header)


@examples(100)
@given(
    array=st.sampled_from(["<f4", ">i8", "|b1", "<U7", "|S3", "<c8"]).flatmap(
        lambda dtype: st.tuples(st.integers(0, 5), st.integers(1, 3)).map(
            lambda shape: np.zeros(shape, dtype)
        )
    ),
    fortran=st.booleans(),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_what_numpy_writes_is_read(array, fortran, version, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "good.npy"
    array = np.asfortranarray(array) if fortran else array
    with open(path, "wb") as stream:
        np.lib.format.write_array(stream, array, version)
    found = map_array(path)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


def test_the_fixture_is_left_whole(parts, tmp_path):
    """So that the tests above damage what is good."""
    use(shutil.copytree(parts, tmp_path / "copy"))
