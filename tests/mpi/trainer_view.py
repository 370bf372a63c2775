"""What every trainer sees of the graph, through the job's own ways. Started by the tests.

Brings a job up like `distsage train`, with its options and `--run-dir`, and leaves one file per
trainer in the run directory: what it reads and pulls of every node, what layer 1 gets for its
part's nodes, and the logits of its nodes by layer-wise inference under a model drawn from the seed.
"""

import sys

import numpy as np

from distsage.cli import parse
from distsage.config import TrainConfig
from distsage.launch.watch.progress import State, Watched
from distsage.launch.watch.watcher import run_watched


def be_a_rank(watched: Watched) -> None:
    from distsage.launch import job as bring_up
    from distsage.launch.agreement import join_mpi

    world, config = join_mpi(lambda: parse(TrainConfig, "train", sys.argv[1:]), watched)
    directory = bring_up.JobDirectory(config.run_dir, "--run-dir")
    job = bring_up.start(world, config, watched, directory)
    if job.assignment.role == "server":
        from distsage.launch.dgl.server import serve

        serve(job.dgl, lambda idle: watched.mark("serving", State.IDLE), {})
    store = bring_up.connect(job, watched)

    import torch

    from distsage.features.slots import SlotMap
    from distsage.model.graphsage import GraphSAGE
    from distsage.model.layers import input_self_and_mean
    from distsage.model.workspace import Workspace
    from distsage.sampling.sampler import Sampler
    from distsage.train import collectives
    from distsage.train.collectives import Collectives
    from distsage.train.halo_inference import HaloInference

    collectives._PIECE_BYTES = 200  # an exchange goes in many pieces
    config, assignment, manifest = job.config, job.assignment, job.parts.manifest
    trainers = Collectives(assignment.trainer_rank, assignment.num_trainers)
    low, high = manifest.parts[assignment.host].nodes
    topology = job.parts.parts.topology()

    # Every node from everywhere, part by part, mixed inside each part.
    rng = np.random.default_rng(trainers.rank)
    mixed = np.concatenate([rng.permutation(np.arange(*part.nodes)) for part in manifest.parts])
    pulled = {name: store.pull(name, mixed) for name in ("features", "labels")}
    any_order = rng.permutation(mixed)
    through_dgl = store._graph.ndata["features"][torch.from_numpy(any_order)]

    # Layer 1 of this part's nodes: own rows in place, the others pulled.
    seeds = np.arange(low, high)
    batch = Sampler(topology, [-1]).sample(seeds, np.uint64(1), np.uint64(2))
    no_cache = np.empty(0, np.int64)
    slots = SlotMap(job.parts.offsets, assignment.host, no_cache)
    split = slots.find(batch.input_edges.indices, batch.dst_gid)
    own = store.own_rows("features")
    missed = store.pull("features", split.missed_gid)
    layer_1 = input_self_and_mean(
        split.input(batch.input_edges.indptr, (own, own[:0], missed)), Workspace()
    )

    # Bounds of the trainers' nodes, uneven on purpose: the first trainer of a host has a fifth.
    bounds = [0]
    pairs = assignment.pairs_per_host
    for part in manifest.parts:
        cuts = np.arange(1, pairs + 1) / pairs
        bounds += (part.nodes[0] + (part.num_nodes * cuts**2).astype(int)).tolist()
    model = GraphSAGE(manifest.num_features, 8, manifest.num_classes, 3, 0.0, config.seed).eval()
    halo = HaloInference(topology, np.array(bounds), (low, high), trainers, watched.mark)
    logits = halo.run(model, own, lambda gids: store.pull("features", gids.numpy()))

    np.savez(
        config.run_dir / f"trainer-{trainers.rank}.npz",
        part=[low, high],
        own_features=own.numpy(),
        own_labels=store.own_rows("labels").numpy(),
        mixed=mixed,
        pulled_features=pulled["features"].numpy(),
        pulled_labels=pulled["labels"].numpy(),
        any_order=any_order,
        through_dgl=through_dgl.numpy(),
        layer_1=layer_1.numpy(),
        inferred=bounds[trainers.rank : trainers.rank + 2],
        logits=logits.numpy(),
    )
    store.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_watched(be_a_rank, TrainConfig.startup_timeout)
