"""A server: gives its host's part to the trainers. Runs on even ranks."""

import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

import dgl

from distsage.launch.dgl import messages
from distsage.launch.dgl.messages import Answer, DGLJob
from distsage.launch.dgl.patches import (
    cast_loaded_features,
    install,
    mark_requests,
    unlink_segments,
)


def serve(job: DGLJob, mark: Callable[[bool], None], answers: Mapping[str, Answer]) -> NoReturn:
    """Serve this host's part until the trainers are done. Blocks.

    Args:
        job: of this rank.
        mark: called with True when the server has loaded its part or answered, and waits for the
            next request; with False when it has one.
        answers: to the questions of the trainers, by subject.

    Raises:
        SystemExit: the trainers said goodbye; status 0.
        UserError: a feature does not fit the type that it is to be kept in.
    """
    ip_config = install(job)
    messages.answers.update(answers)
    cast_loaded_features(job.feature_dtype)
    mark_requests(mark)
    try:
        dgl.distributed.initialize(ip_config)
    finally:
        unlink_segments(job)  # those of a part that could not be loaded
    sys.exit(0)
