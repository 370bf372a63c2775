"""The vector type of the kernels, against numpy and torch, for rows of any width."""

import numpy as np
import pytest
import torch

from distsage.kernels.compiled import compiled
from distsage.kernels.level import Level, chosen
from distsage.kernels.simd import (
    add16,
    load16,
    positive16,
    row,
    scale16,
    slot_row,
    store16,
)

pytestmark = pytest.mark.levels


@compiled
def copy(source, target, factor):
    for i in range(len(source)):
        for c in range(0, source.shape[1], 16):
            a = load16(source, row(source, i), c)
            a = add16(scale16(a, np.float32(factor)), positive16(a, a))
            store16(target, row(target, i), c, a)


@compiled
def gather(first, second, third, slots, target):
    for i in range(len(slots)):
        for c in range(0, target.shape[1], 16):
            a = load16(first, slot_row(first, second, third, slots[i]), c)
            store16(target, row(target, i), c, a)


@pytest.mark.parametrize("width", [1, 7, 15, 16, 17, 31, 32, 100, 130])
def test_rows_of_any_width_and_nothing_beyond_them(width):
    x = np.random.default_rng(0).standard_normal((9, width)).astype("f4")
    room = np.full((9, width + 40), 5.0, np.float32)
    copy(x, room[:, 20 : 20 + width], 3.0)
    np.testing.assert_allclose(room[:, 20 : 20 + width], 3 * x + np.maximum(x, 0), rtol=1e-6)
    assert (room[:, :20] == 5).all()
    assert (room[:, 20 + width :] == 5).all()


@pytest.mark.skipif(chosen() == Level.TORCH, reason="level torch has no kernels on rows")
@pytest.mark.parametrize("width", [5, 40])
@pytest.mark.parametrize(("dtype", "view"), [("bfloat16", "u2"), ("float16", "i2")])
def test_half_precision_rounds_as_torch_does(width, dtype, view):
    x = torch.randn(50, width) * torch.logspace(-6, 4, 50)[:, None]
    x[0, :4] = torch.tensor([0.0, -0.0, float("inf"), -float("inf")])
    x[1] = torch.tensor([1 + 2**-8])  # halfway between two bfloat16
    x[2] = torch.tensor([1 + 3 * 2**-8])
    x[3] = torch.tensor([1 + 2**-11])  # halfway between two float16
    x[4] = float("nan")
    # A NaN that differs from infinity in its last bit.
    x[5] = torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32)
    x = -x.abs()  # `copy` then only scales
    half = torch.empty(50, width, dtype=getattr(torch, dtype))
    as_integers = half.view(torch.int16).numpy().view(view)
    copy(x.numpy(), as_integers, 1.0)
    assert torch.equal(half.isnan(), x.isnan())
    assert torch.equal(half.nan_to_num(7), x.to(half.dtype).nan_to_num(7))
    back = np.zeros((50, width), np.float32)
    copy(as_integers, back, 1.0)
    assert np.array_equal(back, half.float().numpy(), equal_nan=True)


@pytest.mark.parametrize("width", [1, 5, 16, 40, 100])
def test_whole_numbers_of_a_byte_are_read_and_written(width):
    whole = np.random.default_rng(0).integers(-128, 128, (50, width), np.int8)
    whole = np.minimum(whole, 0)  # `copy` then only scales
    room = np.full((50, width + 40), 7, np.int8)
    copy(whole, room[:, 20 : 20 + width], 1.0)
    np.testing.assert_array_equal(room[:, 20 : 20 + width], whole)
    assert (room[:, :20] == 7).all()
    assert (room[:, 20 + width :] == 7).all()
    numbers = np.empty((50, width), np.float32)
    copy(whole, numbers, 0.5)
    np.testing.assert_array_equal(numbers, whole / 2)


def test_slots_count_through_three_tables():

    for sizes in ((50, 30, 10), (0, 80, 10), (90, 0, 0), (0, 0, 90)):
        tables = np.split(np.arange(360, dtype=np.float32).reshape(90, 4), np.cumsum(sizes)[:2])
        slots = np.random.default_rng(0).permutation(90)
        target = np.zeros((90, 4), np.float32)
        gather(*tables, slots, target)
        assert (target[:, 0] == 4 * slots).all()
