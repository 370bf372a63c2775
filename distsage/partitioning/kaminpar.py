"""KaMinPar. Runs on the login host, in a process of its own: `python -m` this module.

It takes one thread: with several, the same seed gives other parts every time.
"""

import sys
from pathlib import Path

import numpy as np

from distsage.partitioning.own_process import num_directed_edges, run_partitioner

# No part may have more than this share of nodes above the mean.
IMBALANCE = 0.03
MOST_PLAIN_EDGES = 1 << 26
"""The graph is held as it is up to so many edges in both directions, and compressed above."""
# What its process takes, pages of the graph's file not counted.
_BYTES = 64 << 20
_BYTES_PER_EDGE = {"jet": 12, "terapart": 7}  # per undirected edge and direction
_BYTES_PER_NODE = 60


def context_for(num_edges: int) -> str:
    """KaMinPar's name for the settings that fit a graph of so many edges in both directions."""
    return "jet" if num_edges <= MOST_PLAIN_EDGES else "terapart"


def memory_needed(num_nodes: int, num_edges: int) -> int:
    """Bytes that KaMinPar's process takes at its peak, about; edges count in both directions."""
    per_edge = _BYTES_PER_EDGE[context_for(num_edges)]
    return _BYTES + per_edge * num_edges + _BYTES_PER_NODE * num_nodes


def run_kaminpar(
    undirected: Path, num_nodes: int, num_parts: int, seed: int, scratch: Path
) -> np.ndarray:
    """Have KaMinPar split a graph. Blocks until it is done; the same arguments give the same parts.

    Args:
        undirected: the graph, as `undirected_file` writes it.
        num_nodes: N.
        num_parts: in [1, N].
        seed: of all that KaMinPar draws.
        scratch: an existing directory for a small file, removed again.

    Returns:
        int32 `[N]`, in [0, num_parts). Parts may be empty.

    Raises:
        OSError: the disk is full.
        UserError: KaMinPar was killed, most likely for its memory.
        RuntimeError: KaMinPar failed.
    """
    return run_partitioner(
        "KaMinPar",
        "distsage.partitioning.kaminpar",
        undirected,
        [str(num_parts), str(seed)],
        num_nodes=num_nodes,
        memory_needed=memory_needed,
        otherwise="let --part-method be random, which takes none",
        scratch=scratch,
        environment={},
    )


def main(result: Path, undirected: Path, num_parts: int, seed: int) -> None:
    """The KaMinPar process: fills the file `result`."""
    import kaminpar

    context = context_for(num_directed_edges(undirected))
    kaminpar.reseed(seed % (1 << 31))  # a C int
    # Before the graph is loaded, since it bounds the threads of that, too.
    solver = kaminpar.KaMinPar(1, kaminpar.context_by_name(context))
    graph = kaminpar.load_graph(
        str(undirected), kaminpar.GraphFileFormat.PARHIP, compress=context == "terapart"
    )
    np.memmap(result, np.int32, "r+")[:] = solver.compute_partition(graph, num_parts, IMBALANCE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
