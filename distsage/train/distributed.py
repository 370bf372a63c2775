"""The distributed run: even ranks serve their host's part, odd ranks train. Runs on every rank."""

from collections.abc import Callable
from functools import partial

from distsage.config import TrainConfig
from distsage.launch.watch.progress import Watched
from distsage.launch.watch.watcher import run_watched


def train(read_config: Callable[[], TrainConfig]) -> None:
    """Be one rank of a training job, watched by a process beside it.

    Args:
        read_config: reads the configuration; called on rank 0 only.

    Raises:
        SystemExit: with the rank's exit status.
    """
    run_watched(partial(_be_a_rank, read_config), TrainConfig.startup_timeout)


def _be_a_rank(read_config: Callable[[], TrainConfig], watched: Watched) -> None:
    # Imports come after the fork, because MPI comes up with its own; and those of torch and numba
    # after the job has agreed on threads and on the level of kernels.
    from distsage.launch import job as bring_up
    from distsage.launch.agreement import join_mpi

    job = bring_up.start(*join_mpi(read_config, watched), watched)
    if job.assignment.role == "server":
        from distsage.train import server_rank

        server_rank.run(job, watched)
    else:
        from distsage.train import trainer_rank

        trainer_rank.run(job, watched)
