"""METIS, as DGL ships it. Runs on the login host, in a process of its own.

`python -m distsage.partitioning.metis` is that process. It is needed for the result to repeat, too:
DGL's build reads memory that it never set, so the same call gives other parts later in the same
process. `_REPEATABLE` makes all fresh memory zero, which ends that.
"""

import sys
from pathlib import Path

import numpy as np

from distsage.data.graph import Graph
from distsage.data.npy import save_array
from distsage.errors import UserError
from distsage.partitioning.own_process import run_partitioner
from distsage.partitioning.undirected import read_undirected

_DGL_BYTES = 450 << 20
"""Memory of a process that has imported DGL and torch; about."""
# Measured with DGL 1.1.3 on graphs of 6, 17 and 125 million edges (Linux, x86-64): the METIS
# process peaked at 0.96, 1.13 and 5.79 GiB; these figures say 0.98, 1.20 and 5.88.
_BYTES_PER_EDGE = 43  # per undirected edge and direction
_BYTES_PER_NODE = 200

_REPEATABLE = {
    # The complement of `perturb` fills what malloc returns, unless it comes from a thread's cache.
    "GLIBC_TUNABLES": "glibc.malloc.perturb=255:glibc.malloc.tcache_count=0",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "DGLBACKEND": "pytorch",
}


def balanced_quantities(
    graph: Graph, num_parts: int, balance_train: bool, balance_edges: bool
) -> np.ndarray | None:
    """What METIS balances: int64 `[N, W]`, one column per quantity; None for the node count.

    As DGL does: a column of ones per node type, then a column of in-degrees per node type. METIS
    cannot spread fewer nodes than parts (it then puts everything into one), so val or test nodes
    that are fewer count as "all others".

    Raises:
        UserError: fewer train nodes than parts with `balance_train`.
    """
    if not balance_train and not balance_edges:
        return None
    types = [np.ones(graph.num_nodes, bool)]
    if balance_train:
        num_train = int(np.count_nonzero(graph.train_mask))
        if num_train < num_parts:
            raise UserError(
                f"{graph.name} has {num_train} train nodes, too few to balance over {num_parts} "
                "parts; leave out --balance-train or ask for fewer parts"
            )
        types += [
            mask
            for mask in (graph.train_mask, graph.val_mask, graph.test_mask)
            if np.count_nonzero(mask) >= num_parts
        ]
        types[0] = ~np.logical_or.reduce(types[1:])
        if np.count_nonzero(types[0]) < num_parts:
            types.pop(0)
    columns = list(types)
    if balance_edges:
        degrees = np.diff(graph.topology.indptr)
        edge_columns = [np.where(mask, degrees, 0) for mask in types]
        # Without node types DGL balances the edges instead of the nodes, not both.
        columns = (columns if balance_train else []) + [
            column for column in edge_columns if column.any()
        ]
    return np.stack(columns, axis=1).astype(np.int64) if columns else None


def memory_needed(num_nodes: int, num_edges: int) -> int:
    """Bytes that METIS's process takes at its peak, about; edges count in both directions."""
    return _DGL_BYTES + _BYTES_PER_EDGE * num_edges + _BYTES_PER_NODE * num_nodes


def run_metis(
    undirected: Path, num_nodes: int, num_parts: int, weights: np.ndarray | None, scratch: Path
) -> np.ndarray:
    """Have METIS split a graph. Blocks until it is done; the same arguments give the same parts.

    Args:
        undirected: the graph, as `undirected_file` writes it.
        num_nodes: N.
        num_parts: at least 2; METIS divides by zero for 1.
        weights: see `balanced_quantities`.
        scratch: an existing directory for small files, removed again.

    Returns:
        int32 `[N]`, in [0, num_parts). Parts may be empty.

    Raises:
        OSError: the disk is full.
        UserError: METIS was killed, most likely for its memory.
        RuntimeError: METIS failed.
    """
    weights_path = scratch / "weights.npy"
    try:
        arguments = [str(num_parts)]
        if weights is not None:
            save_array(weights_path, weights)
            arguments.append(str(weights_path))
        return run_partitioner(
            "METIS",
            "distsage.partitioning.metis",
            undirected,
            arguments,
            num_nodes=num_nodes,
            memory_needed=memory_needed,
            otherwise="let KaMinPar assign, which takes less: --part-method kaminpar, without "
            "--balance-train and --balance-edges",
            scratch=scratch,
            environment=_REPEATABLE,
        )
    finally:
        weights_path.unlink(missing_ok=True)


def main(result: Path, undirected: Path, num_parts: int, weights_path: Path | None) -> None:
    """The METIS process: fills the file `result`."""
    import dgl
    import torch
    from dgl import backend, partition, utils

    topology = read_undirected(undirected)
    none = torch.empty(0, dtype=torch.int64)
    weights = none
    if weights_path is not None:
        weights = torch.from_numpy(np.load(weights_path).reshape(-1))
    # dgl.metis_partition_assignment would first make the graph symmetric again, with 16 bytes per
    # edge and direction. This is the call in it that runs METIS.
    ends = (torch.from_numpy(topology.indptr), torch.from_numpy(topology.indices), none)
    symmetric = dgl.graph(("csc", ends))
    parts = partition._CAPI_DGLMetisPartition_Hetero(
        symmetric._graph, num_parts, backend.to_dgl_nd(weights), "k-way", True
    )
    assert len(parts) == topology.num_nodes, "METIS returned no assignment"
    np.memmap(result, np.int32, "r+")[:] = utils.toindex(parts).tonumpy()


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        int(sys.argv[3]),
        Path(sys.argv[4]) if len(sys.argv) > 4 else None,
    )
