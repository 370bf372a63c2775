"""What a loader read: arrays as the data have them, not yet checked.

Every loader returns a RawGraph, and `distsage.data.datasets.load_graph` alone checks it and makes
it a Graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse


@dataclass(frozen=True)
class RawGraph:
    """One graph as it was read.

    Attributes:
        origin: what messages call it: the dataset's name or the file's path.
        num_nodes: N.
        src, dst: `[E]`, any numeric dtype; edge e goes from src[e] to dst[e].
        features: `[N, F]`, dense or CSR, any numeric dtype.
        labels: `[N]` (classes; -1 or NaN for "not labelled") or `[N, C]` (zeros and ones).
        masks: `train_mask`, `val_mask` and `test_mask`, as far as the data have them: `[N]`, or
            `[N, S]` with one column for each of S splits; booleans, or zeros and ones.
        num_classes: C where the data state it; None takes it from the labels.
        original_ids: int64 or strings `[N]`; None means 0..N-1.
        one_way: each edge is stored in one direction and meant in both.
    """

    origin: str
    num_nodes: int
    src: np.ndarray
    dst: np.ndarray
    features: "np.ndarray | scipy.sparse.csr_matrix"
    labels: np.ndarray
    masks: Mapping[str, np.ndarray]
    num_classes: int | None = None
    original_ids: np.ndarray | None = None
    one_way: bool = False
