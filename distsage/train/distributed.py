"""The distributed run: even ranks serve their host's part, odd ranks train. Runs on every rank."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from distsage.config import TrainConfig
from distsage.launch.watch.watcher import State, Watched, run_watched

if TYPE_CHECKING:
    from distsage.data.graph import Topology
    from distsage.launch.dgl.seam import Answer, GraphStore
    from distsage.launch.job import Job
    from distsage.sampling.partitioned import PartAnswer
    from distsage.sampling.sampler import Sampler
    from distsage.train.remote_batches import FeatureRows
    from distsage.train.trainers import Trainers


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
        from distsage.launch.dgl.seam import serve

        watched.mark("loading its part", State.LOADING)
        try:
            serve(
                job.dgl,
                lambda idle: watched.mark("serving", State.IDLE if idle else State.WORKING),
                _answers(job),
            )
        finally:
            watched.mark("leaving", State.WAITING)  # MPI_Finalize waits for all ranks
    store = bring_up.connect(job, watched)
    _train(job, store, watched)
    watched.mark("saying goodbye", State.WAITING)
    store.close()
    import torch.distributed

    torch.distributed.destroy_process_group()


def _train(job: "Job", store: "GraphStore", watched: Watched) -> None:
    import torch

    from distsage.kernels import level
    from distsage.launch.job import release_stage
    from distsage.model.backend import by_kernels, description, set_threads
    from distsage.model.graphsage import GraphSAGE
    from distsage.sampling.seeds import SeedPlan
    from distsage.train.evaluation import score_masks
    from distsage.train.halo_inference import HaloInference
    from distsage.train.loop import PRECISIONS, Scores, fit
    from distsage.train.remote_batches import BatchSource
    from distsage.train.run_directory import RunDirectory
    from distsage.train.trainers import Trainers

    config, assignment, manifest = job.config, job.assignment, job.parts.manifest
    trainers = Trainers(assignment.trainer_rank, assignment.num_trainers)
    device = torch.device(job.device)
    set_threads(device)
    run = None
    if trainers.rank == 0:
        run = RunDirectory.begin(config.run_dir, config)
        print(f"run directory {run.path}", flush=True)
        print(description(device), flush=True)

    watched.mark("opening the topology", State.LOADING)
    topology = job.parts.topology()
    part = manifest.parts[assignment.host].nodes
    bounds = _trainer_bounds([p.nodes for p in manifest.parts], assignment.pairs_per_host)
    own = slice(*(int(b) - part[0] for b in bounds[trainers.rank : trainers.rank + 2]))

    rows = feature_rows(job, store, trainers, watched)
    labels = store.own_rows("labels")
    masks = {name: store.own_rows(f"{name}_mask")[own].bool() for name in ("train", "val", "test")}
    train_nodes = np.flatnonzero(masks["train"].numpy()) + int(bounds[trainers.rank])
    counts = trainers.concatenate(torch.tensor([len(train_nodes)])).tolist()
    plan = SeedPlan(train_nodes, counts, config.batch_size, config.seed, trainers.rank)
    gather = not by_kernels(device)
    source = BatchSource(
        config,
        plan,
        _new_sampler(job, store, trainers, topology, number_inputs=gather),
        rows,
        labels,
        device,
    )
    model = GraphSAGE(
        manifest.num_features,
        config.num_hidden,
        manifest.num_classes,
        len(config.fan_outs),
        config.dropout,
        config.seed,
        PRECISIONS[config.precision],
    ).to(device)

    halo = HaloInference(topology, bounds, part, trainers, watched.mark)

    def evaluate() -> Scores:
        logits = halo.run(model, rows.own, source.fetch)
        watched.mark("adding up the scores of all trainers", State.WAITING)
        return score_masks(logits, labels[own], masks, trainers)

    about = {
        "command": "train",
        "kernels": str(level.chosen()),
        "model": model.shape,
        "task": manifest.task,
        "graph": manifest.graph_name,
        "config": asdict(config),
    }
    release_stage(job)  # all trainers have opened what they read of their host's copy
    scores = fit(
        config,
        model,
        source.epoch,
        evaluate,
        trainers,
        run,
        about,
        watched.mark,
    )
    source.close()
    if run is not None:
        run.finish(
            {
                **scores,
                "kernels": str(level.chosen()),
                "device": device.type,
                "hosts": assignment.num_hosts,
                "trainers": assignment.num_trainers,
                "edge_cut": manifest.edge_cut,
            }
        )


def _answers(job: "Job") -> "dict[str, Answer]":
    """What this host's server answers beside what DGL's servers do."""
    topology = job.parts.topology()  # opened now: a staged copy loses its name before the first ask
    part = job.parts.manifest.parts[job.assignment.host].nodes

    @cache
    def neighbours() -> "PartAnswer":
        # Compiled code is loaded when somebody asks: most jobs sample from the whole topology.
        from distsage.sampling.partitioned import PartAnswer

        return PartAnswer(topology, job.config.sampling_method, *part)

    return {"neighbours": lambda dst_gid, *layer: neighbours().pick(dst_gid, *layer)}


def _new_sampler(
    job: "Job",
    store: "GraphStore",
    trainers: "Trainers",
    topology: "Topology",
    *,
    number_inputs: bool,
) -> "Callable[[], Sampler]":
    """What makes a sampler, on the whole topology or on this part's. Collective over trainers."""
    import torch

    from distsage.limits import free_memory
    from distsage.sampling.partitioned import PartitionedNeighbours, choose_topology
    from distsage.sampling.sampler import Neighbours, Sampler

    config, host, method = job.config, job.assignment.host, job.config.sampling_method
    available = trainers.concatenate(torch.tensor([free_memory()]))
    choice, why = choose_topology(config.topology, topology, int(available.min()))
    if trainers.rank == 0:
        print(why, flush=True)

    def new_sampler() -> Sampler:
        pick = None
        if choice == "partitioned":
            own = Neighbours(topology, method, *job.parts.manifest.parts[host].nodes)
            ask = partial(store.ask, "neighbours")
            pick = PartitionedNeighbours(own, host, job.parts.offsets, ask).pick
        return Sampler(
            topology,
            config.fan_outs,
            method=method,
            number_inputs=number_inputs,
            in_line=config.num_workers == 0,
            pick=pick,
        )

    return new_sampler


def feature_rows(
    job: "Job", store: "GraphStore", trainers: "Trainers", watched: Watched
) -> "FeatureRows":
    """This host's rows, and the cache of others', filled. Collective over the trainers."""
    from distsage.features.cache import fill_cache, ranking_note
    from distsage.limits import SHARED_MEMORY
    from distsage.train.remote_batches import FeatureRows

    def barrier() -> None:
        watched.mark("waiting for the caches of all trainers", State.WAITING)
        trainers.barrier()

    manifest, assignment = job.parts.manifest, job.assignment
    own = store.own_rows("features")
    pull = partial(store.pull, "features")
    row_bytes = own.shape[1] * own.element_size()
    num_cached = job.config.cache_rows(manifest.num_nodes - len(own), row_bytes)
    cached_gid = job.parts.cache_ranking(assignment.host)[:num_cached].astype(np.int64)
    note = ranking_note(manifest, job.config)
    if trainers.rank == 0 and len(cached_gid) > 0 and note is not None:
        print(note, flush=True)
    cached = fill_cache(
        cached_gid,
        own,
        pull,
        SHARED_MEMORY / f"{job.dgl.prefix}cache",
        share=assignment.pair_on_host,
        num_shares=assignment.pairs_per_host,
        barrier=barrier,
        mark=watched.mark,
    )
    return FeatureRows(job.parts.offsets, assignment.host, own, cached_gid, cached, pull)


def _trainer_bounds(parts: list[tuple[int, int]], trainers_per_host: int) -> np.ndarray:
    """int64 `[trainers + 1]`: every part's gids, shared evenly among its host's trainers."""
    bounds = [parts[0][0]]
    for low, high in parts:
        size = high - low
        bounds += [
            low + size * share // trainers_per_host for share in range(1, trainers_per_host + 1)
        ]
    return np.array(bounds, np.int64)
