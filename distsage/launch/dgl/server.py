"""A server: gives its host's rows to the trainers. Runs on even ranks."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import dgl
from dgl.distributed import dist_graph, rpc

from distsage.launch.dgl import messages
from distsage.launch.dgl.handshake import Reception
from distsage.launch.dgl.messages import Answer, DGLJob
from distsage.launch.dgl.patches import (
    carry_messages,
    install,
    join_rpc,
    load_rows,
    share_sparse_features,
    unlink_segments,
)
from distsage.launch.dgl.transport import Transport


def serve(job: DGLJob, mark: Callable[[bool], None], answers: Mapping[str, Answer]) -> NoReturn:
    """Serve this host's parts until the trainers are done. Blocks.

    Args:
        job: of this rank.
        mark: called with True when the server has loaded its parts or answered, and waits for the
            next request; with False when it has one.
        answers: to the questions of the trainers, by subject.

    Raises:
        SystemExit: the trainers said goodbye; status 0.
        UserError: a feature does not fit the type that it is to be kept in.
        PermissionError: what came over a trainer's connection is not what the trainer has sent.
    """
    assert job.listener is not None
    reception = Reception(job.listener, job.secret, job.assignment.server_id, job.trainer_names)
    servers = install(job)
    messages.answers.update(answers)
    load_rows(job)

    def answer_requests(*_: Any, server_state: Any, **__: Any) -> None:
        _answer_requests(job, reception, server_state, mark)

    dist_graph.start_server = answer_requests
    try:
        dgl.distributed.initialize(servers)
    finally:
        unlink_segments(job)  # those of a part that could not be loaded
    sys.exit(0)


def _answer_requests(
    job: DGLJob, reception: Reception, server_state: Any, mark: Callable[[bool], None]
) -> None:
    """Answer the trainers' requests until one of them says that all are done; `serve` says more.

    Stands in for DGL's `start_server`, which counts whoever connects as a trainer, and connects
    back to each after a pause of 3 s.
    """
    trainers = range(job.assignment.num_trainers)
    join_rpc(job, job.assignment.server_id)
    store = server_state.kv_store
    if job.parts.manifest.features.is_sparse and not store.is_backup_server():
        share_sparse_features(job, store)
    mark(True)
    transport = Transport(
        reception.sessions(), job.trainer_names, job.max_message_bytes, peers="trainer"
    )
    carry_messages(transport)
    for trainer in trainers:  # the part is loaded
        rpc.send_response(trainer, rpc.ClientRegisterResponse(trainer), 0)
    while True:
        # A mark is a sign of progress: there is none as long as nothing comes.
        mark(True)
        request, trainer, group = rpc.recv_request()
        mark(False)
        answer = request.process_request(server_state)
        if answer == rpc.SERVER_EXIT:
            return
        if isinstance(answer, list):
            for each, its_answer in answer:
                rpc.send_response(each, its_answer, group)
        elif answer is not None:
            rpc.send_response(trainer, answer, group)
