"""From a graph to a parts directory. Runs on the login host."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from distsage import __version__
from distsage.config import PartMethod
from distsage.data.column_scales import column_peaks
from distsage.data.graph import Graph, Topology
from distsage.data.raw import rows_per_chunk
from distsage.errors import UserError
from distsage.files import explain_write_errors, remove_half_written, write_json
from distsage.limits import human_bytes
from distsage.partitioning import estimate
from distsage.partitioning.assignment import Choice, assigner, choose
from distsage.partitioning.attempts import Attempt, best_of, judged
from distsage.partitioning.manifest import (
    CACHE_PROBABILITY,
    CACHE_RANKING,
    COUNTS,
    INDICES,
    INDPTR,
    MANIFEST,
    NODE_DATA,
    ORIGINAL_IDS,
    PEAKS,
    QUALITY,
    FeatureStorage,
    File,
    Manifest,
    Part,
    file_names,
)
from distsage.partitioning.part_order import order_parts
from distsage.partitioning.parts import sha256
from distsage.partitioning.quality import QualityReport
from distsage.partitioning.ranking import rank_remote
from distsage.partitioning.reorder import Order, part_topology
from distsage.partitioning.stages import SCRATCH, Stages, unfinished
from distsage.partitioning.storage import storage_of, write_numbers

logger = logging.getLogger(__name__)

_ASSIGNMENT = "assignment.npy"


def partition(
    graph: Graph,
    num_parts: int,
    output: Path,
    *,
    method: PartMethod | Path = "auto",
    attempts: int = 1,
    balance_train: bool = False,
    balance_edges: bool = False,
    num_trainers_per_host: int = 1,
    seed: int = 0,
    fan_out: Sequence[int] = (10, 25),
    batch_size: int = 1000,
    force: bool = False,
    configuration: Mapping[str, Any] | None = None,
    stages: Stages | None = None,
) -> QualityReport:
    """Split a graph into parts and write them; `output` appears only when it is whole.

    Logs its progress.

    Args:
        graph: what to split. It stays as it is.
        num_parts: a host may hold several.
        output: the directory to create.
        method: see `choose`. A file counts trainers instead of parts, where a host has several.
        attempts: assignments to choose from; kept is the one whose batches are expected to need the
            fewest rows of other parts.
        balance_train: see `assigner`.
        balance_edges: see `assigner`.
        num_trainers_per_host: above 1, the graph is first split for all trainers of all hosts, and
            the parts of a host's trainers are put together, one after the other, so that batches
            of a trainer that takes its share of the part have more nodes in common.
        seed: of the first attempt; the others count on from it.
        fan_out: the fan-outs that the cache ranking expects, input layer first.
        batch_size: the seed nodes per mini-batch that it expects.
        force: go on although there seems to be too little memory or disk.
        configuration: further options to record in the manifest, such as the data set's.
        stages: of `output`, with what an earlier run of the same arguments has done.

    Raises:
        UserError: fewer than one part or trainer, more parts than nodes, `output` exists or cannot
            be written, the graph's name is taken, too little memory or disk, or see `choose` and
            `assigner`.
    """
    num_trainers = num_parts * num_trainers_per_host
    _check_arguments(graph, num_parts, num_trainers_per_host, output)
    logger.info(
        f"partitioning {graph.name} ({graph.num_nodes:,} nodes, {graph.topology.num_edges:,} "
        f"directed edges, {graph.num_features:,} features) into {num_parts} parts"
    )
    choice = choose(
        method, balance_train=balance_train, balance_edges=balance_edges, attempts=attempts
    )
    needs = estimate.estimate(graph, num_parts, choice.method, num_trainers_per_host)
    logger.info(estimate.check(needs, output, force=force))
    options = {
        "method": choice.method,
        "method_reason": choice.reason,
        "balance_train": balance_train,
        "balance_edges": balance_edges,
        "num_trainers_per_host": num_trainers_per_host,
        "seed": seed,
        "fan_out": list(fan_out),
        "batch_size": batch_size,
        "encoding": None if graph.encoding is None else graph.encoding.to_json(),
    }
    with explain_write_errors(output, "--output"), ExitStack() as own:
        if stages is None:
            stages = own.enter_context(unfinished(output, None))
        if not stages.is_done("assignment"):
            with (
                _timed(f"assigning nodes to {num_trainers} parts ({choice.reason})"),
                assigner(
                    graph,
                    num_trainers,
                    choice,
                    # Not the name that the partitioner of a run that was killed may still write to.
                    scratch=stages.fresh(f"{SCRATCH}{os.getpid()}"),
                    balance_train=balance_train,
                    balance_edges=balance_edges,
                ) as assign,
            ):
                made: list[Attempt] = []
                if attempts == 1:  # the report judges it
                    trainer = assign(seed)
                else:
                    trainer, made = best_of(
                        assign,
                        range(seed, seed + attempts),
                        lambda trainer, seed: judged(
                            graph,
                            trainer // num_trainers_per_host,
                            num_parts,
                            seed=seed,
                            fan_out=fan_out,
                            batch_size=batch_size,
                        ),
                    )
            if choice.method in ("kaminpar", "metis"):
                with _timed("ordering the parts"):
                    part = trainer // num_trainers_per_host
                    number = order_parts(graph.topology, part, num_parts)
                    trainer = trainer + (number[part] - part) * num_trainers_per_host
            with open(stages.folder / _ASSIGNMENT, "wb") as stream:
                np.save(stream, trainer, allow_pickle=False)
            stages.finish("assignment", {"attempts": [asdict(each) for each in made]})
        made = [Attempt(**entries) for entries in stages.result("assignment")["attempts"]]
        trainer = np.load(stages.folder / _ASSIGNMENT)
        order = Order.of(trainer, num_parts, graph.topology.indices.dtype, num_trainers_per_host)
        storage = storage_of(graph)
        logger.info(_description(graph, storage))
        if not stages.is_done("parts"):
            stages.fresh(stages.parts.name)
            parts = _write_parts(graph, order, choice, storage, stages.parts)
            stages.finish("parts", {"parts": [asdict(part) for part in parts]})
        parts = [
            Part(**entries | {key: tuple(entries[key]) for key in ("nodes", "edges")})
            for entries in stages.result("parts")["parts"]
        ]
        if not stages.is_done("rankings"):
            with _timed("ranking remote nodes"):
                remote_rows = _write_rankings(graph, order, fan_out, batch_size, stages.parts)
            stages.finish("rankings", {"remote_rows": remote_rows})
        remote_rows = stages.result("rankings")["remote_rows"]
        remove_half_written(stages.parts / "*")
        with _timed("checksums"):
            report = _finish(
                graph,
                parts,
                storage,
                num_trainers_per_host,
                options | {"attempts": [asdict(each) for each in made]} | dict(configuration or {}),
                lambda manifest: QualityReport.of(manifest, remote_rows, choice.reason, made),
                stages.parts,
            )
        stages.publish(output)
    return report


def _check_arguments(
    graph: Graph, num_parts: int, num_trainers_per_host: int, output: Path
) -> None:
    if num_parts < 1:
        raise UserError(f"cannot split a graph into {num_parts} parts; give 1 or more")
    if num_trainers_per_host < 1:
        raise UserError(f"{num_trainers_per_host} trainers per host cannot train; give 1 or more")
    num_trainers = num_parts * num_trainers_per_host
    if num_trainers > graph.num_nodes:
        raise UserError(
            f"{graph.name} has {graph.num_nodes} nodes, too few for {num_trainers} parts "
            f"({num_parts} hosts, {num_trainers_per_host} trainers each); ask for fewer"
        )
    if f"{graph.name}.json" in (MANIFEST, QUALITY):
        raise UserError(
            f"a graph cannot be named {graph.name!r}: the parts directory has a file "
            f"{graph.name}.json of its own; rename the data"
        )
    if output.exists():
        raise UserError(f"{output} exists already; name another directory or remove it first")


def _write_parts(
    graph: Graph,
    order: Order,
    choice: Choice,
    storage: FeatureStorage,
    directory: Path,
) -> list[Part]:
    """Write topology, original ids and parts; of a part, memory holds sparse rows only."""
    from distsage.partitioning.dgl_format import write_config, write_graph

    (directory / INDPTR).parent.mkdir()
    num_edges = graph.topology.num_edges
    indptr = np.zeros(graph.num_nodes + 1, np.int64)
    edge_offsets = np.zeros(order.num_parts + 1, np.int64)
    parts = []
    with open(directory / INDICES, "wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream,
            {
                "descr": np.lib.format.dtype_to_descr(order.gid.dtype),
                "fortran_order": False,
                "shape": (num_edges,),
            },
        )
        for index in range(order.num_parts):
            with _timed(f"writing the graph of part {index}"):
                low, high = int(order.offsets[index]), int(order.offsets[index + 1])
                first_edge, start = int(edge_offsets[index]), stream.tell()
                node, edge, inner = low, first_edge, 0
                for piece in part_topology(graph.topology, order, index):
                    indptr[node + 1 : node + len(piece.indptr)] = edge + piece.indptr[1:]
                    node, edge = node + piece.num_nodes, edge + piece.num_edges
                    inner += int(np.count_nonzero((piece.indices >= low) & (piece.indices < high)))
                    stream.write(piece.indices.data)
                stream.flush()
                edge_offsets[index + 1] = edge
                folder = directory / f"part{index}"
                folder.mkdir()
                halo_nodes = write_graph(
                    folder,
                    part=index,
                    indptr=indptr[low : high + 1] - first_edge,
                    sources=_mapped(directory / INDICES, order.gid.dtype, start, edge - first_edge),
                    offsets=order.offsets,
                    first_edge=first_edge,
                )
                positions = order.positions_of(index)
                numbers = len(positions) * graph.num_features
                if not isinstance(graph.features, np.ndarray):
                    features = graph.features[positions]
                    write_numbers(folder, features, storage)
                    numbers = features.nnz
                parts.append(
                    Part(
                        nodes=(low, high),
                        edges=(first_edge, edge),
                        halo_nodes=halo_nodes,
                        cut_edges=edge - first_edge - inner,
                        train_nodes=int(np.count_nonzero(graph.train_mask[positions])),
                        val_nodes=int(np.count_nonzero(graph.val_mask[positions])),
                        test_nodes=int(np.count_nonzero(graph.test_mask[positions])),
                        feature_numbers=int(numbers),
                        bytes=0,  # its ranking is still to come
                    )
                )
    np.save(directory / INDPTR, indptr, allow_pickle=False)
    if storage.has_values:
        np.save(directory / PEAKS, column_peaks(graph.features), allow_pickle=False)
    if not isinstance(graph.features, np.ndarray):
        counts = np.diff(graph.features.indptr)[order.position].astype(np.int32)
        np.save(directory / COUNTS, counts, allow_pickle=False)
    with _timed("writing labels, masks and dense features"):
        _write_rows(graph, order, storage, directory)
    original_ids = order.position
    if graph.original_ids is not None:
        names = np.asarray(graph.original_ids)
        if names.dtype.kind not in "iu":
            names = names.astype(np.str_)
        original_ids = names[order.position]
    np.save(directory / ORIGINAL_IDS, original_ids, allow_pickle=False)
    write_config(
        directory / f"{graph.name}.json",
        graph_name=graph.name,
        # DGL has two words. This one is for parts that somebody has thought about.
        part_method="random" if choice.method == "random" else "metis",
        node_offsets=order.offsets,
        edge_offsets=edge_offsets,
        node_data=storage.dgl_node_data,
    )
    return parts


def _description(graph: Graph, storage: FeatureStorage) -> str:
    """For people: how the features will lie in the parts."""
    if isinstance(graph.features, np.ndarray):
        return "features: dense rows"
    stock = "there, too" if storage.for_stock_dgl else "not there, so that it reads no features"
    return (
        f"features: sparse rows, {graph.features.nnz / graph.num_nodes:.1f} numbers each; dense "
        f"rows for stock DGL are {stock} (bound: {human_bytes(storage.dense_bound_bytes)})"
    )


def _mapped(path: Path, dtype: np.dtype, start: int, length: int) -> np.ndarray:
    """`length` values from a file; nothing cannot be mapped."""
    return np.memmap(path, dtype, "r", start, (length,)) if length else np.empty(0, dtype)


def _write_rows(graph: Graph, order: Order, storage: FeatureStorage, directory: Path) -> None:
    """Write each part's rows as DGL reads them; the graph's are read once, as they lie."""
    from distsage.partitioning.dgl_format import NodeData

    one = _rows(graph, storage, 0, 1)
    columns = {name: (rows.dtype, rows.shape[1:]) for name, rows in one.items()}
    # One file, but two where dense rows are for stock DGL alone.
    held = {NODE_DATA: columns.keys() - {"features"}, storage.dgl_node_data: columns.keys()}
    files = [
        [
            NodeData.create(
                directory / f"part{part}" / file,
                int(num_nodes),
                {name: columns[name] for name in columns if name in names},
            )
            for file, names in held.items()
        ]
        for part, num_nodes in enumerate(np.diff(order.offsets))
    ]
    step = rows_per_chunk(sum(rows.nbytes for rows in one.values()))
    for start in range(0, graph.num_nodes, step):
        rows = _rows(graph, storage, start, start + step)
        gid = order.gid[start : start + step]
        place = np.argsort(gid)
        gid = gid[place]
        owner = np.searchsorted(order.offsets, gid, side="right") - 1
        # The nodes of one trainer are numbered in the order in which they lie: long runs.
        new_run = (np.diff(gid) != 1) | (np.diff(owner) != 0)
        bounds = [0, *(np.flatnonzero(new_run) + 1), len(gid)]
        for first, last in pairwise(bounds):
            part = int(owner[first])
            row = int(gid[first] - order.offsets[part])
            for file in files[part]:
                for name in file.columns:
                    file.write(name, row, rows[name][place[first:last]])


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


def _write_rankings(
    graph: Graph, order: Order, fan_out: Sequence[int], batch_size: int, directory: Path
) -> list[float]:
    """Return the remote rows that a batch of each part is expected to need."""
    remote_rows = []
    topology = Topology(np.load(directory / INDPTR), np.load(directory / INDICES, mmap_mode="r"))
    train_mask = graph.train_mask[order.position]
    for index in range(order.num_parts):
        low, high = int(order.offsets[index]), int(order.offsets[index + 1])
        ranking, probability = rank_remote(
            topology,
            low,
            high,
            low + np.flatnonzero(train_mask[low:high]),
            fan_out=fan_out,
            batch_size=batch_size,
        )
        part = directory / f"part{index}"
        np.save(part / CACHE_RANKING, ranking, allow_pickle=False)
        np.save(part / CACHE_PROBABILITY, probability, allow_pickle=False)
        remote_rows.append(float(probability.sum(dtype=np.float64)))
    return remote_rows


def _finish(
    graph: Graph,
    parts: Sequence[Part],
    storage: FeatureStorage,
    num_trainers_per_host: int,
    configuration: Mapping[str, Any],
    report_on: Callable[[Manifest], QualityReport],
    directory: Path,
) -> QualityReport:
    """Write the quality report and, last, the manifest with the checksums of all other files."""
    packages = ["dgl", "torch", "numpy"]
    if configuration["method"] == "kaminpar":
        packages.append("kaminpar")
    manifest = Manifest(
        graph_name=graph.name,
        num_nodes=graph.num_nodes,
        num_edges=graph.topology.num_edges,
        num_features=graph.num_features,
        num_classes=graph.num_classes,
        task=graph.task,
        features=storage,
        num_trainers_per_host=num_trainers_per_host,
        parts=tuple(
            replace(part, bytes=sum(file.stat().st_size for file in folder.iterdir()))
            for part, folder in ((part, directory / f"part{i}") for i, part in enumerate(parts))
        ),
        configuration=configuration,
        versions={"distsage": __version__} | {package: version(package) for package in packages},
        files={},
    )
    report = report_on(manifest)
    write_json(directory / QUALITY, report.to_json())
    files = {
        name: File((directory / name).stat().st_size, sha256(directory / name))
        for name in file_names(graph.name, len(parts), storage)
    }
    write_json(directory / MANIFEST, replace(manifest, files=files).to_json())
    return report


@contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    logger.info(f"{what}: {time.monotonic() - start:.1f} s")
