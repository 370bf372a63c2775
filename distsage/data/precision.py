"""In which type feature rows are kept. Runs on server ranks and in the local run."""

import numpy as np
import torch
from torch import Tensor

from distsage.data.raw import rows_per_chunk
from distsage.errors import UserError


def cast_features(features: Tensor, dtype: str, scale: np.ndarray | None = None) -> Tensor:
    """Features in float32, float16, bfloat16 or int8, rounded to nearest; no copy if they are.

    Args:
        features: float32 `[n, F]`, or `[nnz]`, the numbers of sparse rows.
        dtype: which type.
        scale: float32 `[F]` or `[nnz]`, for int8: how much one counts (`column_scales`); None where
            all numbers are 0 or 1.

    Raises:
        UserError: a value is too large for the type.
    """
    if dtype == "int8":
        return features.to(torch.int8) if scale is None else _divided(features, scale)
    cast = features.to(getattr(torch, dtype))
    # float16 ends at 65504; what float32 holds, bfloat16 holds, too.
    if dtype == "float16" and not bool(torch.isfinite(cast).all()):
        largest = float(features.abs().max())
        raise UserError(
            f"a feature of {largest:g} is too large for --feat-dtype float16; use bfloat16"
        )
    return cast


def _divided(features: Tensor, scale: np.ndarray) -> Tensor:
    """`features / scale` in int8, some rows at a time."""
    divisor = torch.from_numpy(scale)
    out = torch.empty(features.shape, dtype=torch.int8)
    step = rows_per_chunk(4 * features[:1].numel())
    for begin in range(0, len(features), step):
        some = slice(begin, begin + step)
        out[some] = (features[some] / (divisor if features.ndim == 2 else divisor[some])).round_()
    return out
