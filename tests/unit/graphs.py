"""Small graphs for the tests of sampling and of the model."""

import numpy as np
import scipy.sparse

from distsage.data.graph import Topology
from distsage.kernels.rng import Purpose, stream_key


def key_of(step: int, seed: int = 7) -> np.uint64:
    return stream_key(seed, 0, 0, step, Purpose.SAMPLE)


def ring(num_nodes: int) -> Topology:
    """Edges v -> v+1 and v -> v+2: the in-neighbours of v are v-1 and v-2."""
    v = np.arange(num_nodes)
    indices = np.sort(np.stack(((v - 2) % num_nodes, (v - 1) % num_nodes), 1), 1)
    return Topology(
        np.arange(0, 2 * num_nodes + 1, 2, dtype=np.int64), indices.ravel().astype("i4")
    )


def random_topology(num_nodes: int, num_edges: int, seed: int = 0) -> Topology:
    """Skewed in-degrees, no double edges; the last twentieth of the nodes have no in-edges."""
    rng = np.random.default_rng(seed)
    dst = (0.95 * num_nodes * rng.random(num_edges) ** 3).astype(int)
    src = rng.integers(0, num_nodes, num_edges)
    csr = scipy.sparse.coo_matrix((np.ones(num_edges), (dst, src)), (num_nodes,) * 2).tocsr()
    return Topology(csr.indptr.astype(np.int64), csr.indices.astype(np.int32))


def in_neighbours(topology: Topology, v: int) -> np.ndarray:
    return topology.indices[topology.indptr[v] : topology.indptr[v + 1]]
