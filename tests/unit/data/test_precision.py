"""Feature rows in half precision."""

import pytest
import torch

from distsage.data.precision import cast_features
from distsage.errors import UserError


@pytest.mark.parametrize(("dtype", "eps"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_rounds_to_nearest(dtype, eps):
    x = torch.linspace(-60000, 60000, 999)[:, None]
    cast = cast_features(x, dtype)
    assert cast.dtype == getattr(torch, dtype)
    torch.testing.assert_close(cast.float(), x, rtol=eps, atol=0)


def test_float32_is_not_copied():
    x = torch.ones(2, 3)
    assert cast_features(x, "float32").data_ptr() == x.data_ptr()


def test_float16_has_an_end():
    x = torch.tensor([[1.0, -70000.0]])
    with pytest.raises(UserError, match="feature of 70000 is too large for --feat-dtype float16"):
        cast_features(x, "float16")
    cast_features(x, "bfloat16")
