"""Which part each node goes to: METIS, as DGL ships it, or at random. Runs on the login host.

METIS runs in a process of its own, `python -m distsage.partition.metis`. There its memory goes back
to the machine as soon as it is done, a crash in its C code becomes an exception here, and the
result repeats: DGL's build reads memory that it never set, so the same call gives other parts later
in the same process. `_REPEATABLE` makes all fresh memory zero, which ends that.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np

from distsage.data.csc import symmetrise
from distsage.data.graph import Graph, Topology
from distsage.errors import UserError
from distsage.kernels.compiled import compiled

PartMethod = Literal["metis", "random"]

_REPEATABLE = {
    # The complement of `perturb` fills what malloc returns, unless it comes from a thread's cache.
    "GLIBC_TUNABLES": "glibc.malloc.perturb=255:glibc.malloc.tcache_count=0",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "DGLBACKEND": "pytorch",
}


def assign(
    graph: Graph,
    num_parts: int,
    *,
    scratch: Path,
    method: PartMethod = "metis",
    balance_train: bool = False,
    balance_edges: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Give each node a part. No part stays empty; the same arguments give the same parts.

    Args:
        graph: what to split; its topology sorted within each node.
        num_parts: in [1, N].
        scratch: an existing directory for files of about the topology's size, removed again.
        method: `metis` keeps neighbours together; `random` gives equal sizes.
        balance_train: METIS also gives each part its share of the train, val and test nodes (DGL's
            `balance_ntypes`).
        balance_edges: METIS also gives each part its share of the in-edges.
        seed: of `random`. METIS has no seed here, since DGL does not pass one on.

    Returns:
        int32 `[N]`, in [0, num_parts).

    Raises:
        UserError: fewer train nodes than parts with `balance_train`.
        RuntimeError: METIS failed.
    """
    num_nodes = graph.num_nodes
    assert 1 <= num_parts <= num_nodes
    if num_parts == 1:  # METIS divides by zero
        return np.zeros(num_nodes, np.int32)
    if method == "random":
        place = np.random.default_rng(seed).permutation(num_nodes)
        return (place * num_parts // num_nodes).astype(np.int32)
    weights = _weights(graph, num_parts, balance_train, balance_edges)
    return _fill_empty(_metis(graph.topology, num_parts, weights, scratch), num_parts)


def _weights(
    graph: Graph, num_parts: int, balance_train: bool, balance_edges: bool
) -> np.ndarray | None:
    """What METIS balances: int64 `[N, W]`, one column per quantity; None for the node count.

    As DGL does: a column of ones per node type, then a column of in-degrees per node type. METIS
    cannot spread fewer nodes than parts (it then puts everything into one), so val or test nodes
    that are fewer count as "all others".
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


def _fill_empty(assignment: np.ndarray, num_parts: int) -> np.ndarray:
    """Move one node of the part that is largest at the time into each empty part."""
    sizes = np.bincount(assignment, minlength=num_parts)
    empty = np.flatnonzero(sizes == 0)
    if len(empty) == 0:
        return assignment
    filled = assignment.copy()
    order = np.argsort(assignment, kind="stable")
    ends = np.cumsum(sizes)
    for part in empty:
        largest = int(np.argmax(sizes))
        ends[largest] -= 1
        sizes[largest] -= 1
        filled[order[ends[largest]]] = part
    return filled


def _metis(
    topology: Topology, num_parts: int, weights: np.ndarray | None, scratch: Path
) -> np.ndarray:
    """Run METIS in a process of its own. Blocks until it is done."""
    files = {"indptr": topology.indptr, "indices": topology.indices}
    if weights is not None:
        files["weights"] = weights
    result = scratch / "metis-assignment.npy"
    paths = {name: scratch / f"metis-{name}.npy" for name in files}
    try:
        for name, array in files.items():
            np.save(paths[name], array, allow_pickle=False)
        run = subprocess.run(
            [sys.executable, "-m", "distsage.partition.metis", str(scratch), str(num_parts)],
            env=os.environ | _REPEATABLE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if run.returncode != 0:
            cause = (
                f"was ended by {signal.Signals(-run.returncode).name}"
                + (" (out of memory?)" if run.returncode == -signal.SIGKILL else "")
                if run.returncode < 0
                else f"failed with status {run.returncode}"
            )
            raise RuntimeError(f"METIS {cause}\n{run.stdout[-2000:]}".strip())
        return np.load(result, allow_pickle=False)
    finally:
        for path in [*paths.values(), result]:
            path.unlink(missing_ok=True)


@compiled
def _without_loops(indptr: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy without self-loops, both arrays int64, as METIS wants them."""
    kept_indptr = np.zeros_like(indptr)
    for node in range(len(indptr) - 1):
        kept = 0
        for edge in range(indptr[node], indptr[node + 1]):
            kept += indices[edge] != node
        kept_indptr[node + 1] = kept_indptr[node] + kept
    kept_indices = np.empty(kept_indptr[-1], np.int64)
    place = 0
    for node in range(len(indptr) - 1):
        for edge in range(indptr[node], indptr[node + 1]):
            if indices[edge] != node:
                kept_indices[place] = indices[edge]
                place += 1
    return kept_indptr, kept_indices


def main(scratch: Path, num_parts: int) -> None:
    """The METIS process: `metis-{indptr,indices[,weights]}.npy` to `metis-assignment.npy`."""
    import dgl
    import torch
    from dgl import backend, partition, utils

    undirected = symmetrise(
        Topology(
            np.load(scratch / "metis-indptr.npy"),
            np.load(scratch / "metis-indices.npy", mmap_mode="r"),
        )
    )
    indptr, indices = _without_loops(undirected.indptr, undirected.indices)
    del undirected
    none = torch.empty(0, dtype=torch.int64)
    weights = none
    if (scratch / "metis-weights.npy").exists():
        weights = torch.from_numpy(np.load(scratch / "metis-weights.npy").reshape(-1))
    # dgl.metis_partition_assignment would first make the graph symmetric again, with 16 bytes per
    # edge and direction. This is the call in it that runs METIS.
    symmetric = dgl.graph(("csc", (torch.from_numpy(indptr), torch.from_numpy(indices), none)))
    parts = partition._CAPI_DGLMetisPartition_Hetero(
        symmetric._graph, num_parts, backend.to_dgl_nd(weights), "k-way", True
    )
    assert len(parts) == len(indptr) - 1, "METIS returned no assignment"
    np.save(
        scratch / "metis-assignment.npy",
        utils.toindex(parts).tonumpy().astype(np.int32),
        allow_pickle=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
