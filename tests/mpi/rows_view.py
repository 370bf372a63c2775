"""The feature rows that every trainer finds, by cache and network. Started by the tests.

Brings a job up like `distsage train`, with its options and `--run-dir`, and leaves one file per
trainer in the run directory: for every node, in a mixed order, its row by `BatchSource.fetch`, and
which rows its host keeps.
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

    from distsage.data.sparse_rows import SparseRows
    from distsage.sampling.sampler import Sampler
    from distsage.sampling.seeds import SeedPlan
    from distsage.train.batches import Labels
    from distsage.train.collectives import Collectives
    from distsage.train.remote_batches import BatchSource
    from distsage.train.trainer_rank import feature_rows

    config, assignment = job.config, job.assignment
    trainers = Collectives(assignment.trainer_rank, assignment.num_trainers)
    rows = feature_rows(job, store, trainers, watched)
    source = BatchSource(
        config,
        SeedPlan(np.empty(0, np.int64), [0], 1, 0, trainers.rank),
        [
            Sampler(job.parts.parts.topology(), config.fan_outs)
            for _ in range(max(1, config.num_workers))
        ],
        rows,
        Labels(0, store.own_rows("labels")),
        torch.device("cpu"),
    )
    mixed = np.random.default_rng(trainers.rank).permutation(rows.offsets[-1])
    fetched, cached = (
        some.filled_in() if isinstance(some, SparseRows) else some
        for some in (source.fetch(torch.from_numpy(mixed)), rows.cached)
    )
    source.close()
    np.savez(
        config.run_dir / f"rows-{trainers.rank}.npz",
        mixed=mixed,
        fetched=fetched.float().numpy(),
        dtype=str(fetched.dtype),
        part=rows.offsets[rows.part : rows.part + 2],
        cached_gid=rows.cached_gid,
        cached=cached.float().numpy(),
    )
    store.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_watched(be_a_rank, TrainConfig.startup_timeout)
