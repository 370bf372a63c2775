"""The graph as every part of distsage sees it: plain arrays, in-edges as CSC.

Runs on the login host (partition) and in the local run. Needs numpy and scipy only.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse

from distsage.data.encoding import Encoding

Task = Literal["multiclass", "multilabel"]


@dataclass(frozen=True)
class Topology:
    """In-edges of every node, as compressed sparse columns.

    Attributes:
        indptr: int64 `[N + 1]`. The in-edges of node v are `indices[indptr[v]:indptr[v + 1]]`.
        indices: int32 (int64 where N does not fit) `[E]`, the source node of each edge, sorted
            within each node. Either array may be a read-only memory map.
    """

    indptr: np.ndarray
    indices: np.ndarray

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        """E, directed."""
        return len(self.indices)


@dataclass(frozen=True)
class Graph:
    """One node-classification graph.

    Attributes:
        name: used for file names; letters, digits, `.`, `_` and `-` only.
        topology: in-edges, ids in [0, N).
        features: float32 `[N, F]`, C-contiguous, or a scipy CSR matrix of the same shape.
        labels: int64 `[N]` with -1 for "not labelled" (multiclass), or float32 `[N, C]` of zeros
            and ones (multilabel).
        num_classes: C; 0 of a graph to predict for in which no node is labelled.
        train_mask, val_mask, test_mask: bool `[N]`, disjoint, none empty. Every node in a mask
            is labelled. A graph to predict for promises nothing of them.
        original_ids: int64 `[N]` or an array of strings `[N]`: the names of the nodes in the data
            they come from; None means 0..N-1.
        encoding: how columns became features, where there is something to say of it.
    """

    name: str
    topology: Topology
    features: "np.ndarray | scipy.sparse.csr_matrix"
    labels: np.ndarray
    num_classes: int
    train_mask: np.ndarray
    val_mask: np.ndarray
    test_mask: np.ndarray
    original_ids: np.ndarray | None = None
    encoding: Encoding | None = None

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.topology.num_nodes

    @property
    def num_features(self) -> int:
        """F."""
        return int(self.features.shape[1])

    @property
    def task(self) -> Task:
        """What the labels ask for."""
        return "multilabel" if self.labels.ndim == 2 else "multiclass"
