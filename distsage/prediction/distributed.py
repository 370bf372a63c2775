"""A model applied by many hosts: even ranks serve their parts, odd ranks compute.

Runs on every rank. As in an evaluation while training, each trainer computes its own nodes layer by
layer, and every halo row crosses the network once per layer. Of predictions, a part's file is
written by the trainer that has the part's first node; the others of the host send it theirs.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from distsage.config import EvaluateConfig, ModelJobConfig, PredictConfig
from distsage.errors import UserError
from distsage.launch.watch.progress import Watched
from distsage.launch.watch.watcher import run_watched
from distsage.prediction import trained
from distsage.prediction.output import JOB, OutputDirectory

if TYPE_CHECKING:
    from distsage.launch.job import JobDirectory

Asked = PredictConfig | EvaluateConfig


def be_a_rank(read_config: Callable[[], Asked]) -> None:
    """Be one rank of a job that predicts or evaluates, watched by a process beside it.

    Args:
        read_config: reads the configuration; called on rank 0 only.

    Raises:
        SystemExit: with the rank's exit status.
    """
    run_watched(partial(_run, read_config), PredictConfig.startup_timeout)


def _run(read_config: Callable[[], Asked], watched: Watched) -> None:
    # Imports come after the fork, because MPI comes up with its own; and those of torch and numba
    # after the job has agreed on threads and on the level of kernels.
    from distsage.launch import job as bring_up
    from distsage.launch.agreement import join_mpi

    world, config = join_mpi(lambda: _job_config(read_config()), watched)
    job = bring_up.start(world, config, watched, _job_directory(config.asked))
    if job.assignment.role == "server":
        from distsage.train import server_rank
        from distsage.train.allocator import return_freed_memory

        return_freed_memory()
        server_rank.serve_rows(job, watched)
    else:
        from distsage.prediction import trainer_rank

        trainer_rank.run(job, watched)


def _job_directory(asked: Asked) -> "JobDirectory":
    """Where the job's logs lie."""
    from distsage.launch.job import JobDirectory

    if isinstance(asked, PredictConfig):
        return JobDirectory(asked.output / JOB, "--output")
    return JobDirectory(asked.run_dir / trained.EVALUATION, "--run-dir")


def _job_config(asked: Asked) -> ModelJobConfig:
    """Look at what was asked for, before anything is started. On rank 0.

    Raises:
        UserError: the user got something wrong.
        SystemExit: the predictions are there already (status 0).
    """
    if isinstance(asked, PredictConfig) and asked.is_file:
        raise UserError(
            f"--output {asked.output} is a file, but several ranks write one for each part; name "
            "a directory, or predict on one machine without MPI"
        )
    description = trained.describe(asked.run_dir)
    path = trained.parts_of(asked.run_dir, asked.parts, asked.dataset, description)
    if path is None:
        raise UserError(
            "several ranks work on the parts of a graph; make them with `distsage partition` and "
            "name them with --parts, or run on one machine without MPI"
        )
    parts = trained.open_parts(asked.run_dir, description, path)
    manifest = parts.manifest
    about = {}
    if isinstance(asked, PredictConfig):
        graph = {
            "name": manifest.graph_name,
            "nodes": manifest.num_nodes,
            "edges": manifest.num_edges,
            "checksum": manifest.checksum,
        }
        about = trained.about_predictions(asked, description, graph)
        if OutputDirectory(asked.output, about).is_whole():
            print(f"{asked.output} is whole already", flush=True)
            raise SystemExit(0)
    return ModelJobConfig(
        **asked.where,
        parts=parts.path,
        feat_dtype=description["config"].get("feat_dtype", "float32"),
        cache_ratio=0.0,  # every halo row is asked for once
        device="cpu",
        asked=asked,
        about=about,
    )
