"""What a server rank does: serve its host's parts until the trainers are done."""

from typing import NoReturn

from distsage.launch.dgl.server import serve
from distsage.launch.job import Job
from distsage.launch.watch.progress import State, Watched
from distsage.sampling.partitioned import NEIGHBOURS, PartAnswer


def run(job: Job, watched: Watched) -> NoReturn:
    """Serve. Blocks; ends the process."""
    watched.mark("loading its parts", State.LOADING)
    nodes = job.parts.nodes(job.assignment.host)
    # Opened now: a staged copy loses its name before the first question.
    picks = PartAnswer(job.parts.parts.topology(), job.config.sampling_method, *nodes)
    try:
        serve(
            job.dgl,
            lambda idle: watched.mark("serving", State.IDLE if idle else State.WORKING),
            {NEIGHBOURS: picks.pick},
        )
    finally:
        watched.mark("leaving", State.WAITING)  # MPI_Finalize waits for all ranks
