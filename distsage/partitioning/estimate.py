"""What partitioning a graph will need, and what there is. Runs on the login host."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distsage.data.graph import Graph, Topology
from distsage.errors import UserError
from distsage.limits import free_disk, free_memory, human_bytes, more_memory
from distsage.partitioning.kaminpar import context_for
from distsage.partitioning.storage import storage_of

# Measured with DGL 1.1.3 on graphs of 6, 17 and 125 million edges (Linux, x86-64): the METIS
# process peaked at 0.96, 1.13 and 5.79 GiB; these figures say 0.98, 1.20 and 5.88.
_DGL_BYTES = 450 << 20  # a process that has imported DGL and torch
_METIS_BYTES_PER_EDGE = 43  # per undirected edge and direction
_METIS_BYTES_PER_NODE = 200
# KaMinPar's process, pages of the graph's file not counted.
_KAMINPAR_BYTES = 64 << 20
_KAMINPAR_BYTES_PER_EDGE = {"jet": 12, "terapart": 7}
_KAMINPAR_BYTES_PER_NODE = 60
_CHUNKS_BYTES = 100 << 20  # rows and edges on their way, at most
_WRITING_BYTES_PER_NODE = 80


@dataclass(frozen=True)
class Needs:
    """What partitioning takes on top of the graph in memory.

    Attributes:
        memory: bytes at the peak.
        disk: bytes of the finished directory.
    """

    memory: int
    disk: int


def estimate(graph: Graph, num_parts: int, method: str, num_trainers_per_host: int = 1) -> Needs:
    """The expected needs. Memory from measurements; disk as if every node were every part's halo.

    The memory of the partitioner's process and that of writing are not needed at the same time, and
    its files take less of the disk than the parts that come after them.

    Args:
        graph: to be split.
        num_parts: into so many.
        method: of a `Choice`.
        num_trainers_per_host: see `distsage.partitioning.run.partition`.
    """
    nodes, edges = graph.num_nodes, graph.topology.num_edges
    index = graph.topology.indices.itemsize
    label = graph.labels.dtype.itemsize * (graph.labels.shape[1] if graph.labels.ndim == 2 else 1)
    dense = 4 * graph.num_features * nodes
    features, stock, copied = dense, 0, 0
    if not isinstance(graph.features, np.ndarray):
        storage = storage_of(graph)
        features = 4 * nodes + (8 if storage.has_values else 4) * graph.features.nnz
        stock = dense + (label + 3) * nodes if storage.for_stock_dgl else 0
        copied = features // num_parts
    rows = features + (label + 3) * nodes
    halo = min((num_parts - 1) * nodes, edges)

    disk = (
        8 * nodes + index * edges  # topology
        + 17 * edges + 25 * (nodes + halo)  # graph.dgl
        + rows + stock  # node_feat.dgl and what lies beside it
        + 4 * graph.num_features  # the peaks of columns
        + (8 if graph.original_ids is None else graph.original_ids.itemsize) * nodes
        + (index + 4) * halo  # cache ranking
    )  # fmt: skip
    # Numbers of nodes, slots, bounds and probabilities; edges and dense rows pass in chunks, and
    # sparse rows those of one part at a time.
    chunks = min(_CHUNKS_BYTES, 30 * edges + rows + stock)
    writing = _DGL_BYTES + chunks + copied + _WRITING_BYTES_PER_NODE * nodes
    memory = writing
    if method in ("kaminpar", "metis") and num_parts * num_trainers_per_host > 1:
        both_directions = int(edges * (2 - _symmetric_share(graph.topology)))
        base, per_edge, per_node = (
            (_DGL_BYTES, _METIS_BYTES_PER_EDGE, _METIS_BYTES_PER_NODE)
            if method == "metis"
            else (
                _KAMINPAR_BYTES,
                _KAMINPAR_BYTES_PER_EDGE[context_for(both_directions)],
                _KAMINPAR_BYTES_PER_NODE,
            )
        )
        memory = max(base + per_edge * both_directions + per_node * nodes, writing)
    return Needs(memory, disk)


def check(needs: Needs, output: Path, *, force: bool) -> str:
    """Compare the needs with what this job can still take.

    Args:
        needs: what `estimate` expects.
        output: the directory to be written; its nearest existing parent tells the disk.
        force: go on although there is too little.

    Returns:
        A sentence with the needs and what is free.

    Raises:
        UserError: there is too little memory or disk, unless `force`.
    """
    memory, disk = free_memory(), free_disk(output)
    sentence = (
        f"expects to need about {human_bytes(needs.memory)} of memory "
        f"(free: {human_bytes(memory)}) and {human_bytes(needs.disk)} of disk "
        f"(free: {human_bytes(disk)})"
    )
    short = [
        name
        for name, needed, free in (
            ("memory", needs.memory, memory),
            ("disk", needs.disk, disk),
        )
        if needed > free
    ]
    if short and not force:
        remedies = {"memory": more_memory(needs.memory), "disk": "use another directory"}
        remedy = ", ".join(remedies[name] for name in short)
        raise UserError(
            f"partitioning {sentence}: too little {' and '.join(short)}; "
            f"{remedy}, or go on with --force"
        )
    return sentence


def _symmetric_share(topology: Topology, sample: int = 2000) -> float:
    """The share of edges, of a sample, whose reverse exists too."""
    if topology.num_edges == 0:
        return 1.0
    edges = np.random.default_rng(0).integers(0, topology.num_edges, sample)
    targets = np.searchsorted(topology.indptr, edges, side="right") - 1
    sources = topology.indices[edges]
    found = 0
    for source, target in zip(sources, targets, strict=True):
        row = topology.indices[topology.indptr[source] : topology.indptr[source + 1]]
        place = np.searchsorted(row, target)
        found += place < len(row) and row[place] == target
    return found / sample
