"""What partitioning a graph will need, and what there is. Runs on the login host."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distsage.data.graph import Graph, Topology
from distsage.data.raw import Sizes
from distsage.errors import UserError
from distsage.limits import free_disk, free_memory, human_bytes, more_memory
from distsage.partitioning import kaminpar, metis
from distsage.partitioning.storage import storage_of

_PARTITIONERS = {"kaminpar": kaminpar.memory_needed, "metis": metis.memory_needed}
_LOADED_BYTES = 48 << 20  # what is still to be imported and compiled
_CHUNKS_BYTES = 32 << 20  # rows and edges on their way in one thread, at most
_WRITING_BYTES_PER_NODE = 80  # with one thread, which takes more of it for rankings than for graphs
_GRAPH_BYTES_PER_NODE = 40
_RANKING_BYTES_PER_NODE = 56
# Of what a process has read, and of the packages that it read it with.
_READING_LEAVES_BYTES = 100 << 20


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
    features, stock = dense, 0
    if not isinstance(graph.features, np.ndarray):
        storage = storage_of(graph)
        features = 4 * nodes + (8 if storage.has_values else 4) * graph.features.nnz
        stock = dense + (label + 3) * nodes if storage.for_stock_dgl else 0
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
    both_directions = 0
    if method in _PARTITIONERS:
        both_directions = int(edges * (2 - _symmetric_share(graph.topology)))
    num_trainers = num_parts * num_trainers_per_host
    passing = 30 * edges + rows + stock
    copied = _copied(graph, num_parts)
    return Needs(_memory(nodes, both_directions, passing, copied, method, num_trainers), disk)


def check_before_reading(sizes: Sizes, method: str, num_trainers: int) -> None:
    """See that there is memory for what comes after reading a graph, before it is read.

    A limit that is too small is then met once, and at once. Reading takes less than that, except
    for long names of nodes, and for many labels per node.

    Args:
        sizes: of the graph.
        method: of a `Choice`.
        num_trainers: that the graph is split for.

    Raises:
        UserError: there is too little, whatever the graph's edges are; the message names what is
            enough.
    """
    nodes = sizes.num_nodes
    rows = 4 * sizes.num_features * nodes
    # KaMinPar takes less again where it begins to compress.
    plain = kaminpar.MOST_PLAIN_EDGES
    possible = [sizes.least_edges, plain, plain + 1, sizes.most_edges]
    needs = [
        _memory(nodes, edges, 30 * edges + rows, 0, method, num_trainers)
        for edges in np.clip(possible, sizes.least_edges, sizes.most_edges).tolist()
    ]
    free, most = free_memory(), max(needs)
    if min(needs) > free:
        raise UserError(
            f"partitioning {nodes:,} nodes and up to {sizes.most_edges:,} edges expects to need "
            f"about {human_bytes(most)} of memory (free: {human_bytes(free)}): too little memory; "
            f"{more_memory(most + _READING_LEAVES_BYTES)}, or go on with --force"
        )


def _copied(graph: Graph, num_parts: int) -> int:
    """The bytes of a part's sparse rows."""
    if isinstance(graph.features, np.ndarray):
        return 0
    return (4 * graph.num_nodes + 8 * graph.features.nnz) // num_parts


def graph_writers(graph: Graph, num_parts: int) -> int:
    """Threads that may write parts' graphs and sparse rows within the memory that is left."""
    per_node = _GRAPH_BYTES_PER_NODE * graph.num_nodes
    return _that_fit(_CHUNKS_BYTES + per_node + _copied(graph, num_parts))


def row_writers() -> int:
    """Threads that may write dense rows."""
    return _that_fit(_CHUNKS_BYTES)


def rankers(num_nodes: int) -> int:
    """Threads that may rank remote nodes."""
    return _that_fit(_RANKING_BYTES_PER_NODE * num_nodes)


def _that_fit(bytes_each: int) -> int:
    return max(free_memory() // max(bytes_each, 1), 1)


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


def _memory(
    nodes: int, both_directions: int, passing: int, copied: int, method: str, num_trainers: int
) -> int:
    """The larger of what the partitioner's process takes and what writing does.

    Args:
        nodes: N.
        both_directions: edges, once each has its reverse.
        passing: bytes of edges and rows, which pass in chunks.
        copied: bytes of sparse rows, of which those of one part are in memory at a time.
        method: of a `Choice`.
        num_trainers: that the graph is split for.
    """
    # Numbers of nodes, slots, bounds and probabilities.
    own = _LOADED_BYTES + _WRITING_BYTES_PER_NODE * nodes
    writing = own + min(_CHUNKS_BYTES, passing) + copied
    if method not in _PARTITIONERS or num_trainers == 1:
        return writing
    return max(_PARTITIONERS[method](nodes, both_directions), writing)


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
