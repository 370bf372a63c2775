"""In which floating-point type feature rows are kept. Runs on server ranks and in the local run."""

import torch
from torch import Tensor

from distsage.errors import UserError


def cast_features(features: Tensor, dtype: str) -> Tensor:
    """Features `[n, F]` in float32, float16 or bfloat16, rounded to nearest; no copy if they are.

    Raises:
        UserError: a value is too large for the type.
    """
    cast = features.to(getattr(torch, dtype))
    # float16 ends at 65504; what float32 holds, bfloat16 holds, too.
    if dtype == "float16" and not bool(torch.isfinite(cast).all()):
        largest = float(features.abs().max())
        raise UserError(
            f"a feature of {largest:g} is too large for --feat-dtype float16; use bfloat16"
        )
    return cast
