"""What a server rank does: serve its host's parts until the trainers are done."""

from collections.abc import Mapping
from typing import Any, NoReturn

from distsage.config import TrainConfig
from distsage.launch.dgl.messages import Answer
from distsage.launch.dgl.server import serve
from distsage.launch.job import Job
from distsage.launch.watch.progress import State, Watched
from distsage.sampling.partitioned import NEIGHBOURS, PartAnswer


def run(job: Job[TrainConfig], watched: Watched) -> NoReturn:
    """Serve trainers that sample. Blocks; ends the process."""
    watched.mark("loading its parts", State.LOADING)
    nodes = job.parts.nodes(job.assignment.host)
    # Opened now: a staged copy loses its name before the first question.
    picks = PartAnswer(job.parts.parts.topology(), job.config.sampling_method, *nodes)
    serve_rows(job, watched, {NEIGHBOURS: picks.pick})


def serve_rows(
    job: Job[Any], watched: Watched, answers: Mapping[str, Answer] | None = None
) -> NoReturn:
    """Serve rows, and what else there are answers to, by subject. Blocks; ends the process."""
    watched.mark("loading its parts", State.LOADING)
    try:
        serve(
            job.dgl,
            lambda idle: watched.mark("serving", State.IDLE if idle else State.WORKING),
            answers or {},
        )
    finally:
        watched.mark("leaving", State.WAITING)  # MPI_Finalize waits for all ranks
