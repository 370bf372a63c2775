"""What is changed inside DGL before it comes up. Runs on server and trainer ranks.

DGL 1.1.3 is the last release that works beside a current torch, so its code does not move any more.
Each function below changes one thing, and its docstring says what DGL does by itself and why that
will not do. `distsage.launch.dgl.messages` has what is added to DGL rather than changed.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from dgl import DGLGraph, heterograph_index
from dgl.distributed import (
    dist_context,
    dist_graph,
    graph_partition_book,
    kvstore,
    rpc,
    rpc_client,
    rpc_server,
    shared_mem_utils,
)

from distsage.data.precision import cast_features
from distsage.launch.dgl.messages import DGLJob, SignedPickle, register_questions
from distsage.limits import SHARED_MEMORY

log = logging.getLogger(__name__)

_FEATURES = "_N/features"


def install(job: DGLJob) -> str:
    """Make the changes that servers and trainers share, and tell DGL of the job.

    Once per process, before `dgl.distributed.initialize`.

    Returns:
        The path of the list of servers, for `initialize`; it goes with this process.
    """
    _prefix_shared_memory(job.prefix)
    _tell_own_address(job.ip)
    _sign_messages(job.secret)
    _leave_signals_alone()
    _connect_back_soon()
    _log_what_is_printed()
    register_questions()

    assignment = job.assignment
    servers = _servers_in_memory(job)
    os.environ.update(
        DGL_DIST_MODE="distributed",
        DGL_ROLE="server" if assignment.role == "server" else "client",
        DGL_IP_CONFIG=servers,
        DGL_CONF_PATH=str(job.part_config),
        DGL_NUM_SERVER=str(assignment.pairs_per_host),
        DGL_NUM_CLIENT=str(assignment.num_trainers),
        DGL_NUM_SAMPLER="0",
        DGL_GRAPH_FORMAT="csc",
        DGL_DIST_MAX_TRY_TIMES=str(max(1, int(job.startup_timeout / 3))),
    )
    if assignment.role == "server":
        os.environ["DGL_SERVER_ID"] = str(assignment.server_id)
    return servers


def _prefix_shared_memory(prefix: str) -> None:
    """Begin the names of shared-memory segments with the job's and the host's `prefix`.

    DGL names segments by tensor and graph only. Two jobs on one host, or two emulated hosts on one
    machine, would overwrite each other's.
    """

    def prefixed(name: str) -> str:
        return f"{prefix}{name.lstrip('/')}"

    empty = kvstore.empty_shared_mem
    exists = dist_graph.exist_shared_mem_array
    for module in (dist_graph, graph_partition_book, kvstore, shared_mem_utils):
        module.empty_shared_mem = lambda name, *rest: empty(prefixed(name), *rest)
    for module in (dist_graph, graph_partition_book):
        module.exist_shared_mem_array = lambda name: exists(prefixed(name))

    attach = heterograph_index.create_heterograph_from_shared_memory
    heterograph_index.create_heterograph_from_shared_memory = lambda name: attach(prefixed(name))
    share = DGLGraph.shared_memory
    DGLGraph.shared_memory = lambda graph, name, *args, **kwargs: share(
        graph, prefixed(name), *args, **kwargs
    )


def unlink_segments(job: DGLJob) -> None:
    """Take the names from this host's segments; who has them mapped keeps them."""
    for segment in SHARED_MEMORY.glob(f"{job.prefix}*"):
        segment.unlink(missing_ok=True)


def _tell_own_address(ip: str) -> None:
    """Tell DGL that this rank's address is `ip`.

    DGL looks for the first address of an interface that its list of servers names, and takes part 0
    without a word where it finds none.
    """
    rpc_client.local_ip4_addr_list = lambda: {ip}
    rpc_client.get_local_usable_addr = lambda _: f"{ip}:{_unused_port(ip)}"


def _unused_port(ip: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((ip, 0))
        port: int = probe.getsockname()[1]
        return port


def _sign_messages(secret: bytes) -> None:
    """Refuse messages that this job has not signed: DGL unpickles what arrives on an open port."""
    rpc.pickle = SignedPickle(secret)


def _leave_signals_alone() -> None:
    """Do not install DGL's C++ handler of signals.

    It calls exit() in a process whose threads live on, which ends in pages of traces.
    """
    rpc.register_sig_handler = lambda: None


def _connect_back_soon() -> None:
    """Have servers sleep 0.2 s before they connect back to a trainer, instead of DGL's 3 s.

    A trainer that finds no server tries again after 3 s. That one stays: trainers start when all
    servers listen, and succeed at once.
    """
    rpc_server.time = SimpleNamespace(sleep=lambda _: time.sleep(0.2))


def _log_what_is_printed() -> None:
    """Send DGL's messages on standard output, which say how far it is, to the log."""

    def log_words(*words: Any, **_: Any) -> None:
        log.info(" ".join(map(str, words)))

    for module in (dist_context, dist_graph, rpc, rpc_client, rpc_server):
        module.print = log_words


def _servers_in_memory(job: DGLJob) -> str:
    """Path of DGL's list of servers, in a file that lives as long as this process.

    DGL reads the list from a file. On a network's file system a host may see an older one for a
    while, so every rank has its own.
    """
    descriptor = os.memfd_create("ip_config")
    os.write(descriptor, "".join(f"{ip} {port}\n" for ip, port in job.servers).encode())
    return f"/proc/self/fd/{descriptor}"


def cast_loaded_features(dtype: str) -> None:
    """Have this server keep and send features as float32, float16 or bfloat16, whatever `dtype` is.

    DGL serves features in the type of the file. Types of two bytes are kept as int16: DGL has no
    shared memory of bfloat16.
    """
    load = dist_graph.load_partition_feats

    def load_and_cast(*args: Any, **kwargs: Any) -> Any:
        node_rows, edge_rows = load(*args, **kwargs)
        if node_rows is not None:
            rows = cast_features(node_rows[_FEATURES], dtype)
            node_rows[_FEATURES] = rows.view(torch.int16) if rows.itemsize == 2 else rows
        return node_rows, edge_rows

    dist_graph.load_partition_feats = load_and_cast


def mark_requests(mark: Callable[[bool], None]) -> None:
    """Tell a server that handles a request from one that waits for the next.

    Args:
        mark: called with True when this server begins to wait, with False when a request has come.
    """
    receive, wait_for_senders = rpc.recv_request, rpc.wait_for_senders

    def receive_and_mark(timeout: int) -> Any:
        mark(True)
        # A mark is a sign of progress: there is none as long as nothing comes.
        while (request := receive(timeout))[0] is None:
            pass
        mark(False)
        return request

    def mark_and_wait_for_senders(*args: Any, **kwargs: Any) -> None:
        mark(True)
        wait_for_senders(*args, **kwargs)

    rpc.recv_request = receive_and_mark
    rpc.wait_for_senders = mark_and_wait_for_senders
