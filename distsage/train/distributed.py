"""The distributed run: even ranks serve their host's part, odd ranks train. Runs on every rank."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from distsage.config import TrainConfig
from distsage.launch.watch import State, Watched, run_watched

if TYPE_CHECKING:
    from distsage.launch.dgl_seam import GraphStore
    from distsage.launch.job import Job


def train(read_config: Callable[[], TrainConfig]) -> None:
    """Be one rank of a training job, watched by a process beside it.

    Args:
        read_config: reads the configuration; called on rank 0 only.

    Raises:
        SystemExit: with the rank's exit status.
    """
    run_watched(partial(_be_a_rank, read_config), TrainConfig.startup_timeout)


def _be_a_rank(read_config: Callable[[], TrainConfig], watched: Watched) -> None:
    # Imports MPI, which initialises it: only here, after the fork.
    from distsage.launch import job as bring_up

    job = bring_up.start(read_config, watched)
    if job.assignment.role == "server":
        from distsage.launch.dgl_seam import serve

        watched.mark("loading its part")
        serve(
            job.dgl,
            lambda idle: watched.mark("serving", State.IDLE if idle else State.WORKING),
        )
    watched.mark("connecting to the servers", State.WAITING)
    store = bring_up.connect(job)
    _train(job, store, watched)
    watched.mark("saying goodbye", State.WAITING)
    store.close()
    import torch.distributed

    torch.distributed.destroy_process_group()


def _train(job: "Job", store: "GraphStore", watched: Watched) -> None:
    import torch

    from distsage.launch.job import release_stage
    from distsage.train.batches import Batch, prepare_ahead
    from distsage.train.evaluation import score_masks
    from distsage.train.features import SlotMap, blocks_of, gathered_input
    from distsage.train.halo import HaloInference
    from distsage.train.loop import Scores, choose_device, fit
    from distsage.train.model import GraphSAGE
    from distsage.train.rng import Purpose, stream_key
    from distsage.train.run_directory import RunDirectory
    from distsage.train.sampler import Sampler
    from distsage.train.seeds import SeedPlan
    from distsage.train.trainers import Trainers

    config, assignment, manifest = job.config, job.assignment, job.parts.manifest
    trainers = Trainers(assignment.trainer_rank, assignment.num_trainers)
    device = choose_device(config.device)
    on_cpu = device.type == "cpu"
    run = RunDirectory.begin(config.run_dir, config) if trainers.rank == 0 else None

    watched.mark("opening the topology")
    topology = job.parts.topology()
    part = manifest.parts[assignment.host].nodes
    bounds = _trainer_bounds([p.nodes for p in manifest.parts], assignment.pairs_per_host)
    own = slice(*(int(b) - part[0] for b in bounds[trainers.rank : trainers.rank + 2]))
    features = store.own_rows("features")
    labels = store.own_rows("labels")
    masks = {name: store.own_rows(f"{name}_mask")[own].bool() for name in ("train", "val", "test")}
    train_nodes = np.flatnonzero(masks["train"].numpy()) + int(bounds[trainers.rank])
    counts = trainers.concatenate(torch.tensor([len(train_nodes)])).tolist()
    plan = SeedPlan(train_nodes, counts, config.batch_size, config.seed, trainers.rank)
    model = GraphSAGE(
        manifest.num_features,
        config.num_hidden,
        manifest.num_classes,
        len(config.fan_outs),
        config.dropout,
        config.seed,
    ).to(device)

    one_at_a_time = threading.Lock()  # DGL's client is not for several threads
    no_rows = features[:0]

    def pull(gids: torch.Tensor) -> torch.Tensor:
        with one_at_a_time:
            return store.pull("features", gids)

    class Worker(threading.local):
        """Each thread's sampler and slot map; they keep scratch space."""

        def __init__(self) -> None:
            self.sampler = Sampler(topology, config.fan_outs, number_inputs=not on_cpu)
            self.slots = SlotMap(topology.num_nodes, *part, np.empty(0, np.int64))

    worker = Worker()

    def prepare(task: "_Step") -> Batch:
        where = (config.seed, task.epoch, trainers.rank, task.step)
        started = time.perf_counter()
        sampled = worker.sampler.sample(
            task.seeds, stream_key(*where, Purpose.SAMPLE), stream_key(*where, Purpose.DROPOUT)
        )
        sampled_at = time.perf_counter()
        if on_cpu:
            split = worker.slots.split(sampled.input_edges.indices, sampled.dst_gid)
            missed = pull(torch.from_numpy(split.missed_gid))
            inputs = split.input(sampled.input_edges.indptr, (features, no_rows, missed))
            num_missed, num_own = len(missed), split.num_own
        else:
            assert sampled.input_gid is not None
            gids = torch.from_numpy(sampled.input_gid.astype(np.int64))
            is_own = (gids >= part[0]) & (gids < part[1])
            rows = torch.empty(len(gids), features.shape[1], dtype=features.dtype, pin_memory=True)
            rows[is_own] = features[gids[is_own] - part[0]]
            rows[~is_own] = pull(gids[~is_own])
            inputs = gathered_input(sampled, rows)
            num_own = int(is_own.sum())
            num_missed = len(gids) - num_own
        edges = len(sampled.input_edges.indices) + sum(len(b.indices) for b in sampled.blocks)
        return Batch(
            inputs,
            blocks_of(sampled),
            sampled.key,
            labels[torch.from_numpy(task.seeds - part[0])],
            plan.global_batch_size(task.step),
            {
                "edges": edges,
                "local_rows": num_own,
                "missed_rows": num_missed,
                "received_bytes": num_missed * features.shape[1] * features.element_size(),
                "sample_seconds": sampled_at - started,
                "fetch_seconds": time.perf_counter() - sampled_at,
            },
        )

    workers = ThreadPoolExecutor(config.num_workers, "prepare") if config.num_workers else None

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        tasks = (_Step(epoch, step, seeds) for step, seeds in enumerate(plan.batches(epoch)))
        return prepare_ahead(tasks, prepare, workers, config.num_workers, config.stall_timeout)

    watched.mark("planning the exchange of halo rows", State.WAITING)
    halo = HaloInference(topology, bounds, part, trainers)

    def evaluate() -> Scores:
        return score_masks(halo.run(model, features, pull), labels[own], masks, trainers)

    description = {
        "command": "train",
        "model": model.shape,
        "task": manifest.task,
        "graph": manifest.graph_name,
        "config": asdict(config),
    }
    release_stage(job)  # all trainers have opened what they read of their host's copy
    scores = fit(
        config,
        model,
        epoch_batches,
        evaluate,
        trainers,
        run,
        description,
        watched.mark,
    )
    if workers is not None:
        workers.shutdown()
    if run is not None:
        run.finish(
            {
                **scores,
                "hosts": assignment.num_hosts,
                "trainers": assignment.num_trainers,
                "edge_cut": manifest.edge_cut,
            }
        )


@dataclass(frozen=True)
class _Step:
    epoch: int
    step: int
    seeds: np.ndarray


def _trainer_bounds(parts: list[tuple[int, int]], trainers_per_host: int) -> np.ndarray:
    """int64 `[trainers + 1]`: every part's gids, shared evenly among its host's trainers."""
    bounds = [parts[0][0]]
    for low, high in parts:
        size = high - low
        bounds += [
            low + size * share // trainers_per_host for share in range(1, trainers_per_host + 1)
        ]
    return np.array(bounds, np.int64)
