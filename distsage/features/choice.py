"""How layer 1 computes: gather first, multiply first, or sparse. Local run; decided once per run.

The mean is linear, so a layer may multiply rows before it averages them. Whether that is less work
depends on counts: a batch whose picks lead to the same rows again and again multiplies each of them
once, and averages products, which are as wide as the hidden layer; one whose picks all lead
elsewhere multiplies more rows than it has destinations.
"""

from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse

from distsage.sampling.batch import MiniBatch

Way = Literal["gather", "multiply", "sparse"]
"""Dense rows are averaged first; dense rows are multiplied first; sparse ones are."""

# In multiply-adds of the forward product, as a core with AVX-512 does them: those of a weight's
# gradient, which leave out what ReLU and dropout have set to zero, or do not;
_BACKWARD_OF_MEANS, _BACKWARD_OF_ROWS = 0.6, 1.1
# a float32 that is read from memory, and one from the cache that holds the weight or products.
_READ, _CACHED = 20.0, 20.0


class InputChoice(NamedTuple):
    """How layer 1 computes.

    Attributes:
        way: which way it is.
        why: the counts that decided, for people.
    """

    way: Way
    why: str


def choose_input_layer(
    wanted: Literal["auto", "gather", "multiply"],
    features: "np.ndarray | scipy.sparse.csr_matrix",
    out_width: int,
    batch: MiniBatch,
) -> InputChoice:
    """Choose from counts; a pure function of its arguments, so that a run that goes on agrees.

    Args:
        wanted: `--input-layer`.
        features: `[N, F]`.
        out_width: H, of layer 1.
        batch: of the run, with numbered inputs.
    """
    assert batch.input_gid is not None
    width = int(features.shape[1])
    num_dst, num_src = len(batch.dst_gid), len(batch.input_gid)
    picks = len(batch.input_edges.indices)
    counts = (
        f"{width:,} columns, {out_width:,} units; {num_src:,} distinct rows for {picks:,} picks of "
        f"{num_dst:,} nodes in a batch"
    )
    averaging = 2 * picks * out_width * _CACHED  # of products, and the same way back
    work: dict[Way, float] = {
        "gather": 2 * num_dst * width * out_width * (1 + _BACKWARD_OF_MEANS)
        + picks * width * _READ,
        "multiply": (num_src + num_dst) * width * out_width * (1 + _BACKWARD_OF_ROWS)
        + num_src * width * _READ
        + averaging,
    }
    if not isinstance(features, np.ndarray):
        per_row = features.nnz / features.shape[0]
        counts = f"{per_row:.1f} of {counts}"
        work["sparse"] = 2 * (num_src + num_dst) * per_row * out_width * _CACHED + averaging
    way = min(work, key=lambda name: work[name])
    if wanted == "gather":
        way = "gather"
    elif wanted == "multiply":
        way = "sparse" if "sparse" in work else "multiply"
    text = {
        "gather": "averages rows, then multiplies",
        "multiply": "multiplies each distinct row, then averages",
        "sparse": "multiplies sparse rows, then averages",
    }[way]
    return InputChoice(way, f"layer 1 {text} ({counts})")
