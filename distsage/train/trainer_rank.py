"""What a trainer rank does: train on its host's nodes, together with the other trainers."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np
import torch
import torch.distributed

from distsage.config import TrainConfig
from distsage.data.graph import Topology
from distsage.errors import UserError
from distsage.features.cache import fill_cache, ranking_note
from distsage.features.choice import BatchCounts, InputChoice, choose_input_layer
from distsage.features.resident import keep_on_gpu
from distsage.features.rows import PartRows
from distsage.kernels import level
from distsage.launch import job as bring_up
from distsage.launch.dgl.client import GraphStore
from distsage.launch.job import Job
from distsage.launch.preflight import memory_need, versions
from distsage.launch.watch import failure_note
from distsage.launch.watch.progress import Mark, State, Watched
from distsage.limits import SHARED_MEMORY, free_memory
from distsage.model.backend import by_kernels, description, set_threads
from distsage.partitioning.kept_plans import Expectation, find
from distsage.partitioning.kept_rows import cached_gids
from distsage.partitioning.parts import Parts
from distsage.progress import progress
from distsage.sampling.partitioned import PartitionedNeighbours, choose_topology
from distsage.sampling.sampler import Neighbours, Sampler
from distsage.sampling.seeds import SeedPlan
from distsage.train.about import about
from distsage.train.batches import Labels
from distsage.train.checkpoint import Origin
from distsage.train.collectives import Collectives
from distsage.train.evaluation import score_masks
from distsage.train.halo_inference import HaloInference
from distsage.train.loop import Trainer, new_model
from distsage.train.metrics import Scores
from distsage.train.remote_batches import BatchSource
from distsage.train.resumption import Resumption, StopWanted, begin_run, stopped_sentence
from distsage.train.run_directory import plain
from distsage.train.saver import Saver
from distsage.train.status import Status
from distsage.train.tensorboard import Curves
from distsage.train.usage import Usage


def run(job: Job[TrainConfig], resumption: Resumption | None, watched: Watched) -> None:
    """Connect, train, say goodbye. Collective over the trainers."""
    store = bring_up.connect(job, watched)
    _train(job, store, resumption, watched)
    watched.mark("saying goodbye", State.WAITING)
    store.close()
    torch.distributed.destroy_process_group()


def _train(
    job: Job[TrainConfig], store: GraphStore, resumption: Resumption | None, watched: Watched
) -> None:
    config, assignment, manifest = job.config, job.assignment, job.parts.manifest
    trainers = Collectives(assignment.trainer_rank, assignment.num_trainers)
    device = torch.device(job.device)
    set_threads(device)
    run = saver = status = None
    mark: Mark = watched.mark
    if trainers.rank == 0:
        run = begin_run(config, resumption)
        curves = Curves(run.path, config.lr) if config.tensorboard else None
        saver = Saver(run, resumption.position if resumption else (0, 0), curves)
        print(f"run directory {run.path}", flush=True)
        print(description(device), flush=True)

    watched.mark("opening the topology", State.LOADING)
    topology = job.parts.parts.topology()
    part = job.parts.nodes(assignment.host)
    bounds = job.parts.trainer_bounds(assignment.pairs_per_host)
    own = slice(*(int(b) - part[0] for b in bounds[trainers.rank : trainers.rank + 2]))

    labels = store.own_rows("labels")
    masks = {name: store.own_rows(f"{name}_mask")[own].bool() for name in ("train", "val", "test")}
    train_nodes = np.flatnonzero(masks["train"].numpy()) + int(bounds[trainers.rank])
    counts = trainers.concatenate(torch.tensor([len(train_nodes)])).tolist()
    plan = SeedPlan(train_nodes, counts, config.batch_size, config.seed, trainers.rank)
    model = new_model(config, manifest.num_features, manifest.num_classes).to(device)
    if job.dgl.feature_scale is not None:
        model.scale_inputs(torch.from_numpy(job.dgl.feature_scale).to(device))
    new_sampler = _sampler_maker(job, store, trainers, topology)
    watched.mark("sampling a batch, to choose how layer 1 computes", State.WORKING)
    choice = _choose_input_layer(job, trainers, plan, new_sampler, len(model.layers[0].weight))
    if trainers.rank == 0:
        print(choice.why, flush=True)
    if choice.way == "sparse":
        model.lay_out_for_sparse_rows()
    rows = replace(
        feature_rows(job, store, trainers, watched),
        multiplies=choice.way != "gather",
        in_place=by_kernels(device),
    )
    source = BatchSource(
        config,
        plan,
        [new_sampler(rows.numbers_inputs) for _ in range(max(1, config.num_workers))],
        rows,
        Labels(part[0], labels),
        device,
    )
    expected = _expectation(job, trainers)
    if run is not None:
        run.describe(about(origin_of(job), job.hosts, plan.num_steps, manifest, expected))
        status = Status(run.path, config.num_epochs, plan.num_steps, watched.mark)
        mark = status.mark
    halo = HaloInference(topology, bounds, part, trainers, mark)

    def compute_scores() -> Scores:
        count = (own.stop - own.start) * len(model.layers)
        with progress("evaluating", count, "rows", shown=trainers.rank == 0) as advance:
            logits = halo.run(model, rows.own, source.fetch, on_rows=advance)
        mark("adding up the scores of all trainers", State.WAITING)
        return score_masks(logits, labels[own], masks, trainers)

    bring_up.release_stage(job)  # all trainers have opened what they read of their host's copy
    stop_wanted = StopWanted(watched.stop_requested)
    trainer = Trainer(
        config,
        model,
        trainers,
        saver,
        origin_of(job),
        plan.num_steps,
        mark,
        stop_wanted,
        status,
        Usage(
            trainers,
            [t // assignment.pairs_per_host for t in range(trainers.size)],
            job.server_process,
            store,
        ),
    )
    with status or nullcontext():  # a failure becomes an event by the rank's watcher
        if resumption is not None:
            trainer.go_on(resumption.load(), next_step=resumption.next_step)
        scores = trainer.fit(source.epoch, compute_scores)
    source.close()
    if run is not None:
        assert saver is not None
        saver.close()
        if scores is None:
            run.event("stopped", why=stop_wanted.why)
            failure_note.say_stopped(stop_wanted.why)
            print(stopped_sentence(saver, stop_wanted.why), flush=True)
            return
        run.finish(
            {
                **scores,
                "kernels": str(level.chosen()),
                "input_layer": choice.way,
                "device": device.type,
                "hosts": assignment.num_hosts,
                "parts": job.parts.parts.num_parts,
                "trainers": assignment.num_trainers,
                "edge_cut": manifest.edge_cut,
            }
        )


def _expectation(job: Job[TrainConfig], trainers: Collectives) -> Expectation:
    """What this job is expected to take: by a plan of its kind, or by its preflight. Collective."""
    config, pairs = job.config, job.assignment.pairs_per_host
    need = memory_need(job.parts, job.assignment.host, config, 2 * pairs)
    needs = trainers.concatenate(torch.tensor([need]))[::pairs].tolist()
    own = Expectation("the preflight of the run, which knows its memory alone", needs)
    if trainers.rank != 0:
        return own
    try:
        # Not in a staged copy, which has no plans.
        planned = find(Parts.open(config.parts_dir), config, job.assignment.num_hosts, pairs)
    except UserError as error:
        print(f"distsage: {error}; the run goes on without it", flush=True)
        return own
    return planned or own


def origin_of(job: Job[TrainConfig]) -> Origin:
    """Which run this job is."""
    config, manifest = job.config, job.parts.manifest
    read = ("undirected", "split", "split_index", "feature_norm")
    drawn = manifest.configuration.get("split") is not None
    return Origin(
        command="train",
        kernels=str(level.chosen()),
        device=torch.device(job.device).type,
        model=new_model(config, manifest.num_features, manifest.num_classes).shape,
        task=manifest.task,
        graph=manifest.graph_name,
        content={
            "nodes": manifest.num_nodes,
            "edges": manifest.num_edges,
            **{f"{name} nodes": count for name, count in manifest.mask_sizes.items()},
            **{name: manifest.configuration.get(name) for name in read},
            **({"split_seed": manifest.configuration["seed"]} if drawn else {}),
        },
        checksum=manifest.checksum,
        trainers=job.assignment.num_trainers,
        versions=versions(),
        config=plain(asdict(config)),
        encoding=None if manifest.encoding is None else manifest.encoding.to_json(),
        rows_divided=manifest.rows_divided,
    )


def _sampler_maker(
    job: Job[TrainConfig], store: GraphStore, trainers: Collectives, topology: Topology
) -> Callable[[bool], Sampler]:
    """What makes samplers, which number their inputs or do not.

    They sample from the whole topology or from this part's. Collective.
    """
    config, host, method = job.config, job.assignment.host, job.config.sampling_method
    available = trainers.concatenate(torch.tensor([free_memory()]))
    choice, why = choose_topology(config.topology, topology, int(available.min()))
    if trainers.rank == 0:
        print(why, flush=True)

    def new_sampler(number_inputs: bool) -> Sampler:
        pick = None
        if choice == "partitioned":
            own = Neighbours(topology, method, *job.parts.nodes(host))
            pick = PartitionedNeighbours(own, host, job.parts.offsets, store).pick
        return Sampler(
            topology,
            config.fan_outs,
            method=method,
            number_inputs=number_inputs,
            in_line=config.num_workers == 0,
            pick=pick,
        )

    return new_sampler


def _choose_input_layer(
    job: Job[TrainConfig],
    trainers: Collectives,
    plan: SeedPlan,
    new_sampler: Callable[[bool], Sampler],
    out_width: int,
) -> InputChoice:
    """By the counts of all trainers' first batches, so that all choose the same. Collective."""
    manifest = job.parts.manifest
    step = next(plan.steps(0))
    sampler = new_sampler(True)
    batch = sampler.sample(step.seed_gid, step.sample_key, step.dropout_key)
    counts = trainers.sum(torch.tensor(BatchCounts.of(batch))) / trainers.size
    numbers = sum(part.feature_numbers for part in manifest.parts)
    return choose_input_layer(
        job.config.input_layer,
        manifest.num_features,
        numbers / manifest.num_nodes if manifest.features.is_sparse else None,
        out_width,
        BatchCounts(*(round(count) for count in counts.tolist())),
    )


def feature_rows(
    job: Job[TrainConfig], store: GraphStore, trainers: Collectives, watched: Watched
) -> PartRows:
    """This host's rows, and the cache of others', filled. Collective over the trainers."""

    def barrier() -> None:
        watched.mark("waiting for the caches of all trainers", State.WAITING)
        trainers.barrier()

    manifest, assignment = job.parts.manifest, job.assignment
    own = store.own_features()
    pull = store.pull_features
    cached_gid = cached_gids(job.parts, assignment.host, job.config).astype(np.int64)
    counts = None
    if manifest.features.is_sparse:
        counts = job.parts.parts.feature_counts()[cached_gid].astype(np.int64)
    note = ranking_note(manifest, job.config)
    if trainers.rank == 0 and len(cached_gid) > 0 and note is not None:
        print(note, flush=True)
    cached = fill_cache(
        cached_gid,
        own,
        counts,
        pull,
        SHARED_MEMORY / f"{job.dgl.prefix}cache",
        share=assignment.pair_on_host,
        num_shares=assignment.pairs_per_host,
        barrier=barrier,
        mark=watched.mark,
    )
    resident = keep_on_gpu(own, cached, torch.device(job.device))
    return PartRows(job.parts.offsets, assignment.host, own, cached_gid, cached, pull, resident)
