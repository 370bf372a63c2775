"""The single-node run: no servers, no MPI; a PyTorch DataLoader whose workers sample.

Runs on one machine. Imports DGL only where the data lie in DGL's files.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distsage.config import LocalConfig, job_name
from distsage.data.graph import Graph, Topology
from distsage.data.precision import cast_features
from distsage.features.resident import keep_on_gpu
from distsage.features.rows import LocalRows
from distsage.files import own_directory
from distsage.kernels import level
from distsage.model.backend import by_kernels, choose_device, description, set_threads
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import infer
from distsage.partition.parts import load_parts
from distsage.sampling.batch import MiniBatch
from distsage.sampling.sampler import Sampler
from distsage.sampling.seeds import SeedPlan, Step
from distsage.train.batches import Batch, Labels, prepare_ahead, put_together
from distsage.train.collectives import Collectives
from distsage.train.evaluation import score_masks
from distsage.train.feeding import pinned
from distsage.train.loop import PRECISIONS, Scores, Trainer
from distsage.train.run_directory import RunDirectory

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
    """The DataLoader's sampler: the steps of the epoch that is set."""

    def __init__(self, plan: SeedPlan) -> None:
        self.plan = plan
        self.epoch = 0

    def __len__(self) -> int:
        return self.plan.num_steps

    def __iter__(self) -> Iterator[Step]:
        return self.plan.steps(self.epoch)


def train(config: LocalConfig) -> dict[str, Any]:
    """Train on this machine and write the run directory; return the summary.

    Raises:
        UserError: the data or an option are not what they should be.
    """
    device = choose_device(config.device)
    set_threads(device)
    graph, edge_cut = load(config)
    with own_directory(config.run_dir, f"job {job_name()}", "--run-dir"):
        return _train(config, device, graph, edge_cut)


def _train(
    config: LocalConfig, device: torch.device, graph: Graph, edge_cut: int
) -> dict[str, Any]:
    run = RunDirectory.begin(config.run_dir, config)
    print(f"run directory {run.path}", flush=True)
    print(description(device), flush=True)
    topology = without_edges(graph.topology) if config.ignore_edges else graph.topology
    features = cast_features(dense_features(graph), config.feat_dtype)
    labels = Labels(0, torch.from_numpy(graph.labels))
    masks = {
        "train": torch.from_numpy(graph.train_mask),
        "val": torch.from_numpy(graph.val_mask),
        "test": torch.from_numpy(graph.test_mask),
    }
    model = GraphSAGE(
        graph.num_features,
        config.num_hidden,
        graph.num_classes,
        len(config.fan_outs),
        config.dropout,
        config.seed,
        PRECISIONS[config.precision],
    ).to(device)
    train_nodes = np.flatnonzero(graph.train_mask).astype(np.int64)
    plan = SeedPlan(train_nodes, [len(train_nodes)], config.batch_size, config.seed, 0)
    steps = _EpochSteps(plan)
    rows = LocalRows(features, keep_on_gpu(features, features[:0], device))
    loader = DataLoader(
        SampledBatches(topology, config, number_inputs=not by_kernels(device)),
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

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        steps.epoch = epoch
        return prepare_ahead(loader, prepare, gatherer, 1)

    def compute_scores() -> Scores:
        return score_masks(infer(model, topology, features), labels.values, masks, Collectives())

    about = {
        "command": "local",
        "kernels": str(level.chosen()),
        "model": model.shape,
        "task": graph.task,
        "graph": graph.name,
        "config": asdict(config),
    }
    trainer = Trainer(config, model, Collectives(), run, about, lambda *_: None)
    scores = trainer.fit(epoch_batches, compute_scores)
    if gatherer is not None:
        gatherer.shutdown()
    summary = {
        **scores,
        "kernels": str(level.chosen()),
        "device": device.type,
        "hosts": 1,
        "trainers": 1,
        "edge_cut": edge_cut,
    }
    run.finish(summary)
    return summary


def load(config: LocalConfig) -> tuple[Graph, int]:
    """Load the graph that the options name, and its edge cut (0 for a graph in one piece)."""
    if config.parts is not None:
        return load_parts(config.parts)
    from distsage.data.datasets import load_graph

    assert config.dataset is not None
    return load_graph(config.dataset, **config.reading, seed=config.seed), 0


def dense_features(graph: Graph) -> Tensor:
    """Features as a float32 tensor `[N, F]`; sparse ones are filled in."""
    if isinstance(graph.features, np.ndarray):
        return torch.from_numpy(graph.features)
    return torch.from_numpy(graph.features.toarray())


def without_edges(topology: Topology) -> Topology:
    """The same nodes, no edges."""
    return Topology(np.zeros_like(topology.indptr), topology.indices[:0])


def _as_it_is(batch: Any) -> Any:
    return batch
