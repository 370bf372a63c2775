"""How layer 1 computes: gather first, multiply first, or sparse. Decided once per run.

Runs on trainer ranks and in the local run.

The mean is linear, so a layer may multiply rows before it averages them. Whether that is less work
depends on counts: a batch whose picks lead to the same rows again and again multiplies each of them
once, and averages products, which are as wide as the hidden layer; one whose picks all lead
elsewhere multiplies more rows than it has destinations.
"""

from typing import Literal, NamedTuple

from distsage.sampling.batch import MiniBatch

Way = Literal["gather", "multiply", "sparse"]
"""Dense rows are averaged first; dense rows are multiplied first; sparse ones are."""

# In multiply-adds of the forward product, as a core with AVX-512 does them: those of a weight's
# gradient, which leave out what ReLU and dropout have set to zero, or do not;
_BACKWARD_OF_MEANS, _BACKWARD_OF_ROWS = 0.6, 1.1
# a float32 that is read from memory, and one from the cache that holds the weight or products.
_READ, _CACHED = 20.0, 20.0


class BatchCounts(NamedTuple):
    """What the work of layer 1 depends on.

    Attributes:
        num_dst: nodes whose layer 1 is computed.
        num_src: distinct rows that it needs.
        picks: edges to them.
    """

    num_dst: int
    num_src: int
    picks: int

    @classmethod
    def of(cls, batch: MiniBatch) -> "BatchCounts":
        """Of a batch with numbered inputs."""
        assert batch.input_gid is not None
        return cls(len(batch.dst_gid), len(batch.input_gid), len(batch.input_edges.indices))


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
    width: int,
    per_row: float | None,
    out_width: int,
    batch: BatchCounts,
) -> InputChoice:
    """Choose from counts; a pure function of its arguments, so that a run that goes on agrees.

    Args:
        wanted: `--input-layer`.
        width: F.
        per_row: numbers that a sparse row has in the mean; None for dense features.
        out_width: H, of layer 1.
        batch: of the run.
    """
    num_dst, num_src, picks = batch
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
    if per_row is not None:
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
