"""How the features of a graph lie in its parts, and writing sparse ones. Runs on the login host.

Sparse rows lie as three arrays: how many numbers each row has, once for the whole graph, and the
columns and values of a part's rows, one row after the other. Stock DGL reads dense rows only, which
are written as well where they are few.
"""

from pathlib import Path

import numpy as np
import scipy.sparse

from distsage.data.graph import Graph
from distsage.data.npy import save_array
from distsage.partitioning.manifest import (
    COLUMNS,
    DENSE_BOUND_BYTES,
    VALUES,
    FeatureStorage,
)


def storage_of(graph: Graph) -> FeatureStorage:
    """How the features of a graph are to lie in its parts."""
    features = graph.features
    if isinstance(features, np.ndarray):
        return FeatureStorage("dense", True, True, DENSE_BOUND_BYTES)
    return FeatureStorage(
        "sparse",
        bool((features.data != 1).any()),
        4 * graph.num_nodes * graph.num_features <= DENSE_BOUND_BYTES,
        DENSE_BOUND_BYTES,
    )


def write_numbers(
    directory: Path, features: scipy.sparse.csr_matrix, storage: FeatureStorage
) -> None:
    """Write the columns and values of a part's rows.

    Raises:
        OSError: the disk is full.
    """
    columns = features.indices.astype(np.int32, copy=False)
    save_array(directory / COLUMNS, columns)
    if storage.has_values:
        values = features.data.astype(np.float32, copy=False)
        save_array(directory / VALUES, values)
