"""What a loader read: arrays as the data have them, not yet checked.

Every loader returns a RawGraph, and `distsage.data.datasets.load_graph` alone checks it and makes
it a Graph.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class DenseRows:
    """Dense features that are not in memory.

    Attributes:
        shape: N and F.
        dtype: any numeric one.
        chunks: reads all rows once, in order, `[k, F]` at a time; raises UserError when their file
            turns out to be damaged.
        mapped: the same rows as a read-only memory map, if they lie in a file as they are.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Callable[[], Iterator[np.ndarray]]
    mapped: np.ndarray | None = None

    @property
    def ndim(self) -> int:
        """2 for a matrix."""
        return len(self.shape)


def rows_per_chunk(row_bytes: int) -> int:
    """How many rows of that size are handled together."""
    return max(1, _CHUNK_BYTES // max(row_bytes, 1))


@dataclass(frozen=True)
class CategoryColumn:
    """A column of a node table of which each value is to be a column of its own.

    Attributes:
        codes: int32 `[N]`, positions in `values`; -1 where the cell has no value.
        values: those that occur, each once; integers in ascending order, or else texts.
    """

    codes: np.ndarray
    values: tuple[str, ...]


@dataclass(frozen=True)
class RawGraph:
    """One graph as it was read.

    Attributes:
        origin: what messages call it: the dataset's name or the file's path.
        num_nodes: N.
        src, dst: `[E]`, any numeric dtype; edge e goes from src[e] to dst[e].
        features: `[N, F]`, dense, CSR, or dense rows yet to be read; any numeric dtype. Of a node
            table the dense columns, float32, NaN where a cell has no value.
        labels: `[N]` (classes; -1 or NaN for "not labelled") or `[N, C]` (zeros and ones).
            None where there are none, and nobody has asked for them.
        masks: `train_mask`, `val_mask` and `test_mask`, as far as the data have them: `[N]`, or
            `[N, S]` with one column for each of S splits; booleans, or zeros and ones.
        num_classes: C where the data state it; None takes it from the labels.
        original_ids: int64 or strings `[N]`; None means 0..N-1.
        one_way: each edge is stored in one direction and meant in both.
        feature_names: of the columns of `features` in a node table; None elsewhere.
        categories: further columns of a node table, by name, in order.
    """

    origin: str
    num_nodes: int
    src: np.ndarray
    dst: np.ndarray
    features: "np.ndarray | scipy.sparse.csr_matrix | DenseRows"
    labels: np.ndarray | None
    masks: Mapping[str, np.ndarray]
    num_classes: int | None = None
    original_ids: np.ndarray | None = None
    one_way: bool = False
    feature_names: tuple[str, ...] | None = None
    categories: Mapping[str, CategoryColumn] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """What can be told of a graph with dense features before it is read.

    Attributes:
        num_nodes: N.
        num_features: F.
        least_edges, most_edges: so many there are once each edge has its reverse.
    """

    num_nodes: int
    num_features: int
    least_edges: int
    most_edges: int
