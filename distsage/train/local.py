"""The single-node run: no servers, no MPI; a PyTorch DataLoader whose workers sample.

Runs on one machine. Imports DGL only where the data lie in DGL's files.
"""

import hashlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from distsage.config import IN_MEMORY, LocalConfig, ReadingOptions, job_name
from distsage.data.encoding import divides_rows
from distsage.data.graph import Graph, Topology
from distsage.errors import UserError
from distsage.features.choice import BatchCounts, InputChoice, choose_input_layer
from distsage.features.matrix import dense_table, feature_scales, sparse_rows
from distsage.features.resident import keep_on_gpu
from distsage.features.rows import LocalRows
from distsage.files import own_directory
from distsage.kernels import level
from distsage.launch.preflight import versions
from distsage.launch.watch import failure_note
from distsage.model.backend import by_kernels, choose_device, description, set_threads
from distsage.model.inference import infer
from distsage.partitioning.parts import Parts
from distsage.partitioning.verify import load_parts
from distsage.progress import progress
from distsage.sampling.batch import MiniBatch
from distsage.sampling.sampler import Sampler
from distsage.sampling.seeds import SeedPlan, Step
from distsage.train.about import about, own_host
from distsage.train.batches import Batch, Labels, prepare_ahead, put_together
from distsage.train.checkpoint import Origin
from distsage.train.collectives import Collectives
from distsage.train.evaluation import score_masks
from distsage.train.feeding import pinned
from distsage.train.loop import Trainer, new_model
from distsage.train.metrics import Scores
from distsage.train.records import Run, read_run
from distsage.train.resumption import StopWanted, begin_run, find_resumption, stopped_sentence
from distsage.train.run_directory import note_failure, plain
from distsage.train.saver import Saver
from distsage.train.status import Status
from distsage.train.tensorboard import Curves
from distsage.train.usage import Usage

# Seconds that the workers may take for one batch.
_BATCH_TIMEOUT = 300.0


class SampledBatches(Dataset[tuple[Step, MiniBatch]]):
    """A map-style dataset whose index is a step; each item is the step and its mini-batch."""

    def __init__(self, topology: Topology, config: LocalConfig, number_inputs: bool) -> None:
        self._sampler = Sampler(
            topology,
            config.fan_outs,
            method=config.sampling_method,
            number_inputs=number_inputs,
            in_line=config.num_workers == 0,
        )

    def __getitem__(self, step: Step) -> tuple[Step, MiniBatch]:
        return step, self._sampler.sample(step.seed_gid, step.sample_key, step.dropout_key)


class _EpochSteps:
    """The DataLoader's sampler: the steps that are left of the epoch that has begun."""

    def __init__(self, plan: SeedPlan) -> None:
        self._plan = plan
        self.begin(0, 0, 0)

    def begin(self, epoch: int, first: int, attempt: int) -> None:
        """From now on the steps of this epoch, from number `first` on."""
        self._steps = epoch, first, attempt

    def __len__(self) -> int:
        return self._plan.num_steps - self._steps[1]

    def __iter__(self) -> Iterator[Step]:
        return self._plan.steps(*self._steps)


def train_local(
    graph: Graph | str | Path,
    run_dir: str | Path,
    *,
    num_epochs: int = LocalConfig.num_epochs,
    fan_out: Sequence[int] = (10, 25),
    batch_size: int = LocalConfig.batch_size,
    num_hidden: int = LocalConfig.num_hidden,
    lr: float = LocalConfig.lr,
    seed: int = LocalConfig.seed,
    **options: Any,
) -> Run:
    """Train GraphSAGE on this machine, as `distsage local` does, and return what the run recorded.

    Prints its progress; blocks until the run is over. Runs in the main thread only, since it takes
    signals: SIGTERM, SIGUSR1 and SIGUSR2 have it stop at the next step, with a checkpoint.

    Args:
        graph: a graph in memory, or a dataset by name or path, as `distsage.load_graph` takes it.
        run_dir: the directory for records, checkpoints and the model. Files of an earlier run in it
            move aside.
        num_epochs: passes over the train nodes.
        fan_out: neighbours sampled per layer, input layer first; -1 takes all.
        batch_size: seed nodes per step, at most.
        num_hidden: width of the hidden layers, H.
        lr: learning rate of Adam.
        seed: everything drawn at random derives from it.
        options: any other option of `distsage local`, by its name with `_` for `-`. Those that say
            how a dataset is read go with a name or path only.

    Raises:
        UserError: the data or an option are not what they should be.
        TypeError: there is no such option.
        SystemExit: it was asked to stop, and has.
    """
    given = graph if isinstance(graph, Graph) else None
    reading = [field.name for field in fields(ReadingOptions) if field.name in options]
    if given is not None and reading:
        raise UserError(f"a graph in memory takes no {', '.join(reading)}: it has been read")
    config = LocalConfig(
        dataset=str(graph) if given is None else IN_MEMORY,
        run_dir=Path(run_dir),
        num_epochs=num_epochs,
        fan_out=",".join(map(str, fan_out)),
        batch_size=batch_size,
        num_hidden=num_hidden,
        lr=lr,
        seed=seed,
        **options,
    )
    train(config, given)
    return read_run(run_dir)


def train(config: LocalConfig, graph: Graph | None = None) -> dict[str, Any] | None:
    """Train on this machine and write the run directory.

    SIGTERM, SIGUSR1 and SIGUSR2 have it stop at the next step, with a checkpoint.

    Args:
        config: every option.
        graph: to train on; left out, the one that the options name.

    Returns:
        The summary; None if the run was finished before.

    Raises:
        UserError: the data or an option are not what they should be.
        SystemExit: it has stopped early; status 143, as of a process that SIGTERM ends.
    """
    device = choose_device(config.device)
    set_threads(device)
    with _stop_signals() as asked:
        graph, edge_cut = load(config) if graph is None else (graph, 0)
        with own_directory(config.run_dir, f"job {job_name()}", "--run-dir"):
            return _train(config, device, graph, edge_cut, StopWanted(asked))


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, signals to stop are remembered; yields whether one has come."""
    came: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {
        number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers
    }
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(
    config: LocalConfig,
    device: torch.device,
    graph: Graph,
    edge_cut: int,
    stop_wanted: StopWanted,
) -> dict[str, Any] | None:
    origin = _origin_of(config, device, graph)
    resumption = find_resumption(config, origin)
    if resumption is not None:
        print(resumption, flush=True)
        if resumption.finished:
            return None
    run = begin_run(config, resumption)
    curves = Curves(run.path, config.lr) if config.tensorboard else None
    saver = Saver(run, resumption.position if resumption else (0, 0), curves)
    print(f"run directory {run.path}", flush=True)
    print(description(device), flush=True)
    topology = without_edges(graph.topology) if config.ignore_edges else graph.topology
    labels = Labels(0, torch.from_numpy(graph.labels))
    masks = {
        "train": torch.from_numpy(graph.train_mask),
        "val": torch.from_numpy(graph.val_mask),
        "test": torch.from_numpy(graph.test_mask),
    }
    model = new_model(config, graph.num_features, graph.num_classes).to(device)
    train_nodes = np.flatnonzero(graph.train_mask).astype(np.int64)
    plan = SeedPlan(train_nodes, [len(train_nodes)], config.batch_size, config.seed, 0)
    steps = _EpochSteps(plan)
    choice = _choose_input_layer(config, graph, topology, plan, len(model.layers[0].weight))
    print(choice.why, flush=True)
    scale = feature_scales(graph.features) if config.feat_dtype == "int8" else None
    if scale is not None:
        model.scale_inputs(torch.from_numpy(scale).to(device))
    rows = _feature_rows(graph, config.feat_dtype, scale, choice, device)
    if choice.way == "sparse":
        model.lay_out_for_sparse_rows()
    loader = DataLoader(
        SampledBatches(topology, config, rows.numbers_inputs),
        batch_size=None,
        sampler=steps,
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0,
        timeout=_BATCH_TIMEOUT if config.num_workers > 0 else 0,
        collate_fn=_as_it_is,
    )

    def prepare(item: tuple[Step, MiniBatch]) -> Batch:
        batch = put_together(*item, rows, labels)
        return pinned(batch) if device.type == "cuda" else batch

    # A thread fills pinned memory, which the loader's workers cannot share.
    gatherer = ThreadPoolExecutor(1, "gather") if device.type == "cuda" else None

    def epoch_batches(epoch: int, first_step: int, attempts: Mapping[int, int]) -> Iterator[Batch]:
        steps.begin(epoch, first_step, attempts.get(epoch, 0))
        return prepare_ahead(loader, prepare, gatherer, 1)

    def compute_scores() -> Scores:
        count = topology.num_nodes * len(model.layers)
        with progress("evaluating", count, "rows") as advance:
            logits = infer(model, topology, rows.rows, on_rows=advance)
        return score_masks(logits, labels.values, masks, Collectives())

    manifest = None if config.parts is None else Parts.open(config.parts).manifest
    run.describe(about(origin, own_host(), plan.num_steps, manifest))
    status = Status(run.path, config.num_epochs, plan.num_steps)
    trainer = Trainer(
        config,
        model,
        Collectives(),
        saver,
        origin,
        plan.num_steps,
        status.mark,
        stop_wanted,
        status,
        Usage(Collectives()),
    )
    with note_failure(run), status:
        if resumption is not None:
            trainer.go_on(resumption.load(), next_step=resumption.next_step)
        scores = trainer.fit(epoch_batches, compute_scores)
    saver.close()
    if gatherer is not None:
        gatherer.shutdown()
    if scores is None:
        run.event("stopped", why=stop_wanted.why)
        failure_note.say_stopped(stop_wanted.why)
        print(stopped_sentence(saver, stop_wanted.why), flush=True)
        raise SystemExit(143)
    summary = {
        **scores,
        "kernels": str(level.chosen()),
        "input_layer": choice.way,
        "device": device.type,
        "hosts": 1,
        "trainers": 1,
        "edge_cut": edge_cut,
    }
    run.finish(summary)
    return summary


def _choose_input_layer(
    config: LocalConfig, graph: Graph, topology: Topology, plan: SeedPlan, out_width: int
) -> InputChoice:
    """By the counts of the first batch."""
    sampler = Sampler(
        topology, config.fan_outs, method=config.sampling_method, number_inputs=True, in_line=True
    )
    step = next(plan.steps(0))
    batch = sampler.sample(step.seed_gid, step.sample_key, step.dropout_key)
    features = graph.features
    per_row = None if isinstance(features, np.ndarray) else features.nnz / graph.num_nodes
    return choose_input_layer(
        config.input_layer, graph.num_features, per_row, out_width, BatchCounts.of(batch)
    )


def _feature_rows(
    graph: Graph, dtype: str, scale: np.ndarray | None, choice: InputChoice, device: torch.device
) -> LocalRows:
    if choice.way == "sparse":
        assert not isinstance(graph.features, np.ndarray)
        return LocalRows(sparse_rows(graph.features, dtype, scale), multiplies=True)
    table = dense_table(graph.features, dtype, scale)
    return LocalRows(
        table,
        keep_on_gpu(table, table[:0], device),
        multiplies=choice.way == "multiply",
        in_place=by_kernels(device),
    )


def _origin_of(config: LocalConfig, device: torch.device, graph: Graph) -> Origin:
    """Which run this is."""
    reading = () if config.parts is not None else ("undirected", "split", "split_index")
    masks = {"train": graph.train_mask, "val": graph.val_mask, "test": graph.test_mask}
    return Origin(
        command="local",
        kernels=str(level.chosen()),
        device=device.type,
        model=new_model(config, graph.num_features, graph.num_classes).shape,
        task=graph.task,
        graph=graph.name,
        content={
            "nodes": graph.num_nodes,
            "edges": graph.topology.num_edges,
            **{f"{name} nodes": int(mask.sum()) for name, mask in masks.items()},
            **{name: getattr(config, name) for name in reading},
            "ignore_edges": config.ignore_edges,
        },
        checksum=checksum_of(graph),
        trainers=1,
        versions=versions(),
        config=plain(asdict(config)),
        encoding=None if graph.encoding is None else graph.encoding.to_json(),
        rows_divided=_rows_divided(config, graph),
    )


def _rows_divided(config: LocalConfig, graph: Graph) -> bool | None:
    """Whether each row of features was divided by its sum; None for a graph in memory."""
    if config.parts is not None:
        return Parts.open(config.parts).manifest.rows_divided
    if config.dataset == IN_MEMORY:
        return None
    is_sparse = not isinstance(graph.features, np.ndarray) and graph.encoding is None
    return divides_rows(config.feature_norm, is_sparse=is_sparse)


def checksum_of(graph: Graph) -> str:
    """Checksum of all that is trained on, in hexadecimal digits."""
    digest = hashlib.sha256()
    features = graph.features
    rows = (
        (features,)
        if isinstance(features, np.ndarray)
        else (features.indptr, features.indices, features.data)
    )
    for array in (
        graph.topology.indptr,
        graph.topology.indices,
        *rows,
        graph.labels,
        graph.train_mask,
        graph.val_mask,
        graph.test_mask,
    ):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def load(config: LocalConfig) -> tuple[Graph, int]:
    """Load the graph that the options name, and its edge cut (0 for a graph in one piece)."""
    if config.parts is not None:
        return load_parts(config.parts)
    from distsage.data.datasets import load_graph

    assert config.dataset is not None
    return load_graph(config.dataset, **config.reading, seed=config.seed), 0


def without_edges(topology: Topology) -> Topology:
    """The same nodes, no edges."""
    return Topology(np.zeros_like(topology.indptr), topology.indices[:0])


def _as_it_is(batch: Any) -> Any:
    return batch
