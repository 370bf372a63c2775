"""From a graph to a parts directory. Runs on the login host, or on the first of several hosts."""

import logging
import os
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from distsage import __version__
from distsage.config import PartMethod
from distsage.data.column_scales import column_peaks
from distsage.data.graph import Graph
from distsage.data.npy import save_array
from distsage.errors import UserError
from distsage.files import explain_write_errors, remove_half_written, write_json
from distsage.limits import human_bytes
from distsage.partitioning import estimate
from distsage.partitioning.assignment import Choice, assigner, choose
from distsage.partitioning.attempts import Attempt, best_of, judged
from distsage.partitioning.dgl_format import write_config
from distsage.partitioning.manifest import (
    COUNTS,
    INDPTR,
    MANIFEST,
    ORIGINAL_IDS,
    PEAKS,
    QUALITY,
    FeatureStorage,
    File,
    Manifest,
    Part,
    file_names,
    part_file_names,
)
from distsage.partitioning.part_order import order_parts
from distsage.partitioning.quality import QualityReport
from distsage.partitioning.reorder import Order
from distsage.partitioning.shares import (
    ASSIGNMENT,
    Hosts,
    OneHost,
    Plan,
    Share,
    checksums,
    gid_indptr,
    read_order,
    timed,
)
from distsage.partitioning.stages import SCRATCH, Stages, unfinished
from distsage.partitioning.storage import storage_of
from distsage.progress import elapsed

logger = logging.getLogger(__name__)


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
    hosts: Hosts | None = None,
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
        hosts: that write the parts, this one first; None: it alone. Several need `stages` that have
            the graph.

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
    hosts = hosts or OneHost()
    with explain_write_errors(output, "--output"), ExitStack() as own:
        if stages is None:
            stages = own.enter_context(unfinished(output, None))
        if not stages.is_done("assignment"):
            with (
                timed(f"assigning nodes to {num_trainers} parts ({choice.reason})"),
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
                with timed("ordering the parts"), elapsed("ordering the parts"):
                    part = trainer // num_trainers_per_host
                    number = order_parts(graph.topology, part, num_parts)
                    trainer = trainer + (number[part] - part) * num_trainers_per_host
            save_array(stages.folder / ASSIGNMENT, trainer)
            stages.finish("assignment", {"attempts": [asdict(each) for each in made]})
        made = [Attempt(**entries) for entries in stages.result("assignment")["attempts"]]
        order = read_order(stages.folder, num_parts, graph, num_trainers_per_host)
        storage = storage_of(graph)
        logger.info(_description(graph, storage))
        plan = Plan(stages.folder, num_parts, num_trainers_per_host, storage, hosts.num_hosts)
        if not stages.is_done("parts"):
            plan.prepare()
        hosts.begin(plan, plan.share(0, graph, order))
        if not stages.is_done("parts"):
            parts = list(chain.from_iterable(hosts.each(Share.write_parts)))
            with elapsed("writing what all parts share"):
                plan.join_edges()
                _write_whole(graph, order, parts, choice, storage, stages.parts)
                stages.finish("parts", {"parts": [asdict(part) for part in parts]})
        parts = [
            Part(**entries | {key: tuple(entries[key]) for key in ("nodes", "edges")})
            for entries in stages.result("parts")["parts"]
        ]
        if not stages.is_done("rankings"):
            with timed("ranking remote nodes"):
                rank = partial(Share.write_rankings, fan_out=fan_out, batch_size=batch_size)
                remote_rows = list(chain.from_iterable(hosts.each(rank)))
            stages.finish("rankings", {"remote_rows": remote_rows})
        remote_rows = stages.result("rankings")["remote_rows"]
        remove_half_written(stages.parts / "*")
        with timed("checksums"):
            report = _finish(
                graph,
                parts,
                dict(ChainMap(*hosts.each(Share.checksums))),
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


def _write_whole(
    graph: Graph,
    order: Order,
    parts: Sequence[Part],
    choice: Choice,
    storage: FeatureStorage,
    directory: Path,
) -> None:
    """Write what is of all parts, but for the sources of the edges."""
    save_array(directory / INDPTR, gid_indptr(graph.topology, order))
    if storage.has_values:
        save_array(directory / PEAKS, column_peaks(graph.features))
    if not isinstance(graph.features, np.ndarray):
        counts = np.diff(graph.features.indptr)[order.position].astype(np.int32)
        save_array(directory / COUNTS, counts)
    if graph.original_ids is None:
        save_array(directory / ORIGINAL_IDS, order.position)
    else:
        names = np.asarray(graph.original_ids)
        if names.dtype.kind not in "iu":
            names = names.astype(np.str_, copy=False)
        save_array(directory / ORIGINAL_IDS, names, order.position)
    write_config(
        directory / f"{graph.name}.json",
        graph_name=graph.name,
        # DGL has two words. This one is for parts that somebody has thought about.
        part_method="random" if choice.method == "random" else "metis",
        node_offsets=order.offsets,
        edge_offsets=np.array([0, *(part.edges[1] for part in parts)], np.int64),
        node_data=storage.dgl_node_data,
    )


def _description(graph: Graph, storage: FeatureStorage) -> str:
    """For people: how the features will lie in the parts."""
    if isinstance(graph.features, np.ndarray):
        return "features: dense rows"
    stock = "there, too" if storage.for_stock_dgl else "not there, so that it reads no features"
    return (
        f"features: sparse rows, {graph.features.nnz / graph.num_nodes:.1f} numbers each; dense "
        f"rows for stock DGL are {stock} (bound: {human_bytes(storage.dense_bound_bytes)})"
    )


def _finish(
    graph: Graph,
    parts: Sequence[Part],
    of_parts: Mapping[str, File],
    storage: FeatureStorage,
    num_trainers_per_host: int,
    configuration: Mapping[str, Any],
    report_on: Callable[[Manifest], QualityReport],
    directory: Path,
) -> QualityReport:
    """Write the quality report and, last, the manifest with the checksums of all other files.

    `of_parts` are the checksums of the parts' files.
    """
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
            replace(
                part,
                bytes=sum(of_parts[name].bytes for name in part_file_names(index, storage)),
            )
            for index, part in enumerate(parts)
        ),
        configuration=configuration,
        versions={"distsage": __version__} | {package: version(package) for package in packages},
        files={},
    )
    report = report_on(manifest)
    write_json(directory / QUALITY, report.to_json())
    names = file_names(graph.name, len(parts), storage)
    others = checksums(directory, [name for name in names if name not in of_parts])
    files = {name: of_parts[name] if name in of_parts else others[name] for name in names}
    write_json(directory / MANIFEST, replace(manifest, files=files).to_json())
    return report
