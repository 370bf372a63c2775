"""The distributed run: even ranks serve their host's part, odd ranks train. Runs on every rank."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from distsage.config import TrainConfig
from distsage.errors import UserError
from distsage.launch.watch.progress import Watched
from distsage.launch.watch.watcher import run_watched

if TYPE_CHECKING:
    from distsage.launch.job import Job
    from distsage.launch.world import World
    from distsage.train.resumption import Resumption


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

    world, config = join_mpi(read_config, watched)
    directory = bring_up.JobDirectory(config.run_dir, "--run-dir")
    job = bring_up.start(world, config, watched, directory)
    resumption = _agree_on_resumption(world, job)
    if job.assignment.role == "server":
        from distsage.train import server_rank

        server_rank.run(job, watched)
    else:
        from distsage.train import trainer_rank

        trainer_rank.run(job, resumption, watched)


def _agree_on_resumption(world: "World", job: "Job[TrainConfig]") -> "Resumption | None":
    """Where the run goes on, which trainer 0 finds out. Collective over all ranks.

    Raises:
        SystemExit: the run is finished (status 0), or it cannot go on (status 2); rank 0 has said
            so.
    """
    from distsage.launch.job import release_stage
    from distsage.train.resumption import find_resumption
    from distsage.train.trainer_rank import origin_of

    assignment = job.assignment
    own: Resumption | str | None = None
    if assignment.role == "trainer" and assignment.trainer_rank == 0:
        try:
            own = find_resumption(job.config, origin_of(job))
        except UserError as error:
            own = str(error)  # which all ranks end with
    found = next((one for one in world.gather_all("resume", own) if one is not None), None)
    if isinstance(found, str):
        world.leave(f"preflight, resume: {found}")
    if found is not None and world.rank == 0:
        print(found, flush=True)
    if found is not None and found.finished:
        if assignment.role == "trainer":
            release_stage(job)
        world.leave_quietly(0)
    return found
