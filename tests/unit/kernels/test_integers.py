"""The vectors of whole numbers that LABOR picks with, against numpy."""

import numpy as np
import pytest

from distsage.kernels.compiled import compiled
from distsage.kernels.integers import (
    at_most16,
    compress16,
    count_bits,
    fill16,
    hash16,
    items16,
    ranks16,
)

pytestmark = pytest.mark.levels

ALL = np.uint64(0xFFFF)


@compiled
def read(values, at, count, target):
    compress16(target, 1, items16(values, at, count), ALL)


@compiled
def keep_small(numbers, bound, target):
    count = 0
    for i in range(0, len(numbers), 16):
        sixteen = items16(numbers, i, 16)
        bits = at_most16(sixteen, bound)
        compress16(target, count, sixteen, bits)
        count += count_bits(bits)
    return count


@compiled
def keep_chosen(values, bits, target):
    compress16(target, 1, items16(values, 2, 16), bits)


@compiled
def hashes(values, key, target):
    compress16(target, 1, hash16(items16(values, 2, 16), key), ALL)


@compiled
def fill(array, at, number):
    fill16(array, at, number)


@compiled
def ranks(others, count, values, target):
    compress16(target, 0, ranks16(others, 3, count, items16(values, 0, 16)), ALL)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("count", [0, 1, 7, 16, 40])
def test_no_more_is_read_than_there_is(dtype, count):
    values = np.random.default_rng(0).integers(1, np.iinfo(dtype).max, 18).astype(dtype)
    target = np.full(18, -1, dtype)
    read(values, 2, count, target)
    count = min(count, 16)
    np.testing.assert_array_equal(target[1 : 1 + count], values[2 : 2 + count])
    assert (target[1 + count : 17] == 0).all()
    assert target[0] == target[17] == -1


def test_compressed_numbers_are_those_at_most_the_bound_in_order():
    numbers = np.random.default_rng(1).integers(-(2**31), 2**31, 160).astype(np.int32)
    for bound in (-(2**31), 0, numbers[5], 2**31 - 1):
        target = np.zeros(200, np.int32)
        count = keep_small(numbers, np.int32(bound), target)
        np.testing.assert_array_equal(target[:count], numbers[numbers <= bound])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_any_sixteen_bits_compress(dtype):
    """All sets of eight lanes, and of four, in either half."""
    values = np.random.default_rng(2).integers(0, np.iinfo(dtype).max, 18).astype(dtype)
    few = np.arange(256)
    for bits in {*few, *(few << 8), *few * 0x0101, *(few << 8 | 0xFF), *(few[::-1] << 8 | few)}:
        chosen = [2 + i for i in range(16) if bits >> i & 1]
        target = np.full(20, -1, dtype)
        keep_chosen(values, np.uint64(bits), target)
        assert target[0] == -1
        np.testing.assert_array_equal(target[1 : 1 + len(chosen)], values[chosen])
        assert (target[17:] == -1).all()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_hash_is_lowbias32_with_the_key_mixed_in(dtype):
    key = np.uint64(0x0123456789ABCDEF)
    values = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, 18).astype(dtype)
    target = np.zeros(20, np.int32)
    hashes(values, key, target)
    for got, value in zip(target[1:17], values[2:].tolist(), strict=True):
        x = ((value & 0xFFFFFFFF) * 0x9E3779B9 + 0x89ABCDEF) & 0xFFFFFFFF
        x = ((x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF) ^ 0x01234567
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        assert got == (x ^ x >> 16) - 2**31


@pytest.mark.parametrize("count", [0, 1, 8, 9, 31])
def test_ranks_count_what_is_smaller(count):
    rng = np.random.default_rng(4)
    values = rng.integers(-(2**31), 2**31, 16).astype(np.int32)
    others = rng.choice(np.r_[values, -(2**31), 0, 2**31 - 1], 3 + count + 16).astype(np.int32)
    fill(others, 3 + count, np.int32(2**31 - 1))
    target = np.zeros(16, np.int32)
    ranks(others, count, values, target)
    np.testing.assert_array_equal(target, (others[3 : 3 + count, None] < values).sum(0))
