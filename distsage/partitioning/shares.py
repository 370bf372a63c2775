"""What each host writes of the parts: a run of consecutive ones. Runs on all that partition.

One host reads the graph and assigns its nodes. Then every host writes its share, from what that
one has left on the file system that all share. No two hosts write to one file: file systems such as
NFS write whole pages, with what a host remembers of its neighbour's bytes.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np

from distsage.data.graph import Graph, Topology
from distsage.data.npy import save_array
from distsage.data.raw import rows_per_chunk
from distsage.files import sync_tree
from distsage.kernels.threads import each_in_threads
from distsage.partitioning.dgl_format import NodeData, write_at, write_graph
from distsage.partitioning.estimate import graph_writers, rankers, row_writers
from distsage.partitioning.manifest import (
    CACHE_PROBABILITY,
    CACHE_RANKING,
    INDICES,
    INDPTR,
    NODE_DATA,
    FeatureStorage,
    File,
    Part,
    part_file_names,
)
from distsage.partitioning.parts import sha256
from distsage.partitioning.ranking import rank_remote
from distsage.partitioning.reorder import Order, part_topology
from distsage.partitioning.stages import Stages
from distsage.partitioning.storage import write_numbers
from distsage.progress import elapsed, progress

T = TypeVar("T")

logger = logging.getLogger(__name__)

ASSIGNMENT = "assignment.npy"
"""Among the stages: int `[N]`, the trainer of each node, in the order of the graph."""
_COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class Share:
    """The parts that one host writes, and what it needs for it.

    Attributes:
        graph: what is split.
        order: of its nodes.
        storage: of its features.
        directory: of all parts; no share writes to what another one does.
        edges: where this share's sources go: on the first host the topology's own file, on the
            others a file whose content is to follow there.
        first, end: the share has parts first to end - 1.
    """

    graph: Graph
    order: Order
    storage: FeatureStorage
    directory: Path
    edges: Path
    first: int
    end: int

    def write_parts(self) -> list[Part]:
        """Write this share's parts, without rankings; memory holds sparse rows of a few parts only.

        Raises:
            OSError: the disk is full.
        """
        graph, order = self.graph, self.order
        indptr = gid_indptr(graph.topology, order)
        low_edge, high_edge = map(int, indptr[order.offsets[[self.first, self.end]]])
        parts = range(self.first, self.end)
        what = "writing the parts' graphs"
        with (
            timed(what),
            progress(what, high_edge - low_edge, "edges", shown=self._leads) as advance,
            open(self.edges, "wb", buffering=0) as stream,
        ):
            if self._leads:
                np.lib.format.write_array_header_1_0(
                    stream,
                    {
                        "descr": np.lib.format.dtype_to_descr(order.gid.dtype),
                        "fortran_order": False,
                        "shape": (graph.topology.num_edges,),
                    },
                )
            starts = stream.tell() + order.gid.itemsize * (
                indptr[order.offsets[self.first : self.end]] - low_edge
            )
            written = each_in_threads(
                lambda index: self._write_part(
                    index, indptr, stream, int(starts[index - self.first]), advance
                ),
                parts,
                graph_writers(graph, self.order.num_parts),
            )
            os.fsync(stream.fileno())
        what = "writing labels, masks and dense features"
        with timed(what), progress(what, graph.num_nodes, "rows", shown=self._leads) as advance:
            self._write_rows(advance)
        self._sync()
        return written

    def _write_part(
        self,
        index: int,
        indptr: np.ndarray,
        edges: IO[bytes],
        start: int,
        advance: Callable[[float], object],
    ) -> Part:
        """Write a part's edges, graph and sparse rows.

        Args:
            index: of the part.
            indptr: the bounds of the nodes' in-edges, in gid order.
            edges: the file of this share's sources.
            start: where in it those of this part go.
            advance: told how many edges more are written, each of them in two halves.
        """
        graph, order = self.graph, self.order
        low, high = int(order.offsets[index]), int(order.offsets[index + 1])
        first_edge, end_edge = int(indptr[low]), int(indptr[high])
        place, inner = start, 0
        for piece in part_topology(graph.topology, order, index):
            sources = piece.indices
            inner += int(np.count_nonzero((sources >= low) & (sources < high)))
            place = write_at(edges.fileno(), place, sources)
            advance(len(sources) / 2)
        folder = self.directory / f"part{index}"
        folder.mkdir()
        halo_nodes = write_graph(
            folder,
            part=index,
            indptr=indptr[low : high + 1] - first_edge,
            sources=_mapped(self.edges, order.gid.dtype, start, end_edge - first_edge),
            offsets=order.offsets,
            first_edge=first_edge,
            advance=lambda count: advance(count / 2),
        )
        positions = order.positions_of(index)
        numbers = len(positions) * graph.num_features
        if not isinstance(graph.features, np.ndarray):
            features = graph.features[positions]
            write_numbers(folder, features, self.storage)
            numbers = features.nnz
        return Part(
            nodes=(low, high),
            edges=(first_edge, end_edge),
            halo_nodes=halo_nodes,
            cut_edges=end_edge - first_edge - inner,
            train_nodes=int(np.count_nonzero(graph.train_mask[positions])),
            val_nodes=int(np.count_nonzero(graph.val_mask[positions])),
            test_nodes=int(np.count_nonzero(graph.test_mask[positions])),
            feature_numbers=int(numbers),
            bytes=0,  # its ranking is still to come
        )

    def _write_rows(self, advance: Callable[[int], object]) -> None:
        """Write each part's rows as DGL reads them; the graph's are read once, as they lie."""
        graph, order, storage = self.graph, self.order, self.storage
        one = _rows(graph, storage, 0, 1)
        columns = {name: (rows.dtype, rows.shape[1:]) for name, rows in one.items()}
        # One file, but two where dense rows are for stock DGL alone.
        held = {NODE_DATA: columns.keys() - {"features"}, storage.dgl_node_data: columns.keys()}
        files = {
            part: [
                NodeData.create(
                    self.directory / f"part{part}" / file,
                    len(order.positions_of(part)),
                    {name: columns[name] for name in columns if name in names},
                )
                for file, names in held.items()
            ]
            for part in range(self.first, self.end)
        }
        own = order.offsets[self.first], order.offsets[self.end]
        step = rows_per_chunk(sum(rows.nbytes for rows in one.values()))

        def write_some(start: int) -> None:
            rows = _rows(graph, storage, start, start + step)
            gid = order.gid[start : start + step]
            place = np.argsort(gid)
            mine = slice(*np.searchsorted(gid, own, sorter=place))
            place = place[mine]
            gid = gid[place]
            owner = np.searchsorted(order.offsets, gid, side="right") - 1
            # The nodes of one trainer are numbered in the order in which they lie: long runs.
            new_run = (np.diff(gid) != 1) | (np.diff(owner) != 0)
            bounds = np.flatnonzero(np.concatenate([[len(gid) > 0], new_run, [len(gid) > 0]]))
            for first, last in pairwise(bounds):
                part = int(owner[first])
                row = int(gid[first] - order.offsets[part])
                for file in files[part]:
                    for name in file.columns:
                        file.write(name, row, rows[name][place[first:last]])
            advance(len(rows["labels"]))

        each_in_threads(write_some, range(0, graph.num_nodes, step), row_writers())

    def write_rankings(self, fan_out: Sequence[int], batch_size: int) -> list[float]:
        """Write the rankings of this share's parts; the topology is there.

        Returns:
            The remote rows that a batch of each part is expected to need.

        Raises:
            OSError: the disk is full.
        """
        topology = Topology(
            np.load(self.directory / INDPTR), np.load(self.directory / INDICES, mmap_mode="r")
        )
        with progress(
            "ranking remote nodes", self.end - self.first, "parts", shown=self._leads
        ) as advance:

            def rank(index: int) -> float:
                low, high = int(self.order.offsets[index]), int(self.order.offsets[index + 1])
                ranking, probability = rank_remote(
                    topology,
                    low,
                    high,
                    low + np.flatnonzero(self.graph.train_mask[self.order.positions_of(index)]),
                    fan_out=fan_out,
                    batch_size=batch_size,
                )
                part = self.directory / f"part{index}"
                save_array(part / CACHE_RANKING, ranking)
                save_array(part / CACHE_PROBABILITY, probability)
                advance(1)
                return float(probability.sum(dtype=np.float64))

            parts = range(self.first, self.end)
            remote_rows = each_in_threads(rank, parts, rankers(self.graph.num_nodes))
        self._sync()
        return remote_rows

    def checksums(self) -> dict[str, File]:
        """Of the files of this share's parts, by their names in the parts directory."""
        parts = range(self.first, self.end)
        names = [name for part in parts for name in part_file_names(part, self.storage)]
        return checksums(self.directory, names, shown=self._leads)

    def _sync(self) -> None:
        """Have what this host wrote seen by the others, and safe."""
        with elapsed("waiting for the disk", shown=self._leads):
            for part in range(self.first, self.end):
                sync_tree(self.directory / f"part{part}")

    @property
    def _leads(self) -> bool:
        """Whether this is the share of the first host, which shows how far it is."""
        return self.edges == self.directory / INDICES


@dataclass(frozen=True)
class Plan:
    """Who writes what; a host makes its share of it from what lies among the stages.

    Attributes:
        folder: of the stages, on a file system that all hosts share.
        num_parts: P.
        num_trainers_per_host: see `Order.of`.
        storage: of the features.
        num_hosts: H.
    """

    folder: Path
    num_parts: int
    num_trainers_per_host: int
    storage: FeatureStorage
    num_hosts: int

    def share(self, host: int, graph: Graph | None = None, order: Order | None = None) -> Share:
        """That of one host: a run of consecutive parts.

        Args:
            host: its number; the first one's edges are those that the others' follow.
            graph: None reads what the stages have.
            order: of its nodes; None takes it from the assignment that the stages have.
        """
        stages = Stages(self.folder)
        if graph is None:
            graph = stages.saved_graph()
        if order is None:
            order = read_order(self.folder, self.num_parts, graph, self.num_trainers_per_host)
        return Share(
            graph,
            order,
            self.storage,
            stages.parts,
            self._edges(host),
            self.num_parts * host // self.num_hosts,
            self.num_parts * (host + 1) // self.num_hosts,
        )

    def prepare(self) -> None:
        """Make the directories that the shares write to. On the first host, before all."""
        stages = Stages(self.folder)
        stages.fresh(stages.parts.name)
        self._edges(0).parent.mkdir()
        stages.fresh(self._edges(1).parent.name)

    def join_edges(self) -> None:
        """Put the sources of all shares into one file. On the first host, after all.

        Raises:
            OSError: the disk is full.
        """
        with open(self._edges(0), "ab") as whole:
            for host in range(1, self.num_hosts):
                with open(self._edges(host), "rb") as piece:
                    shutil.copyfileobj(piece, whole, _COPY_BYTES)
                self._edges(host).unlink()

    def _edges(self, host: int) -> Path:
        if host == 0:
            return Stages(self.folder).parts / INDICES
        return self.folder / "edges" / str(host)


class Hosts(Protocol):
    """The hosts that write parts together. Used on the first one, which leads."""

    @property
    def num_hosts(self) -> int:
        """H."""

    def begin(self, plan: Plan, own: Share) -> None:
        """Have every host take its share; `own` is the first host's."""

    def each(self, work: Callable[[Share], T]) -> list[T]:
        """Do some work on every host's share at the same time; blocks until all have.

        Args:
            work: a function that has a name in its module, or a partial of one.

        Returns:
            What it gave, in the order of the hosts.
        """


class OneHost:
    """Writes all parts."""

    num_hosts = 1

    def begin(self, plan: Plan, own: Share) -> None:
        """See `Hosts`."""
        self._own = own

    def each(self, work: Callable[[Share], T]) -> list[T]:
        """See `Hosts`."""
        return [work(self._own)]


def read_order(folder: Path, num_parts: int, graph: Graph, num_trainers_per_host: int) -> Order:
    """The order of a graph's nodes by the assignment among the stages in `folder`."""
    trainer = np.load(folder / ASSIGNMENT)
    return Order.of(trainer, num_parts, graph.topology.indices.dtype, num_trainers_per_host)


def gid_indptr(topology: Topology, order: Order) -> np.ndarray:
    """int64 `[N + 1]`: the bounds of the nodes' in-edges, in gid order."""
    indptr = np.zeros(len(order.position) + 1, np.int64)
    np.take(np.diff(topology.indptr), order.position, out=indptr[1:], mode="clip")
    return np.cumsum(indptr, out=indptr)


def checksums(directory: Path, names: Iterable[str], *, shown: bool = True) -> dict[str, File]:
    """Sizes and checksums of files in a directory, by their names there; shows how far it is."""
    sizes = {name: (directory / name).stat().st_size for name in names}
    with progress("checksums", sum(sizes.values()), "bytes", shown=shown) as advance:
        # The largest first, so that no thread begins one when the others are done.
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)
        digests = each_in_threads(lambda name: sha256(directory / name, advance), largest)
    return {name: File(sizes[name], digest) for name, digest in zip(largest, digests, strict=True)}


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long the work in this context has taken."""
    start = time.monotonic()
    yield
    logger.info(f"{what}: {time.monotonic() - start:.1f} s")


def _mapped(path: Path, dtype: np.dtype, start: int, length: int) -> np.ndarray:
    """`length` values from a file; nothing cannot be mapped."""
    return np.memmap(path, dtype, "r", start, (length,)) if length else np.empty(0, dtype)


def _rows(graph: Graph, storage: FeatureStorage, start: int, end: int) -> dict[str, np.ndarray]:
    """Some rows of the graph's nodes, as DGL's servers will hold them."""
    rows = {}
    if storage.for_stock_dgl:
        features = graph.features[start:end]
        if not isinstance(features, np.ndarray):
            features = features.toarray()
        rows["features"] = np.ascontiguousarray(features, np.float32)
    return rows | {
        "labels": graph.labels[start:end],
        "train_mask": graph.train_mask[start:end].astype(np.uint8),
        "val_mask": graph.val_mask[start:end].astype(np.uint8),
        "test_mask": graph.test_mask[start:end].astype(np.uint8),
    }
