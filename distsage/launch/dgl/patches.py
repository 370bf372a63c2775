"""Everything that touches DGL's distributed internals. Runs on server and trainer ranks.

DGL 1.1.3 is the last release that works beside a current torch, so its code does not move any more;
each seam below still says what it changes and why, so that replacing DGL is one module's work.

Seams:
    shared-memory names   DGL names segments by tensor and graph only. Two jobs on one host, or two
                          emulated hosts on one machine, would overwrite each other; every name
                          gets the job's and the host's prefix.
    list of servers       DGL reads it from a file. On a network's file system a host may see an
                          older one for a while; every rank has its own, in memory.
    own address           DGL looks for the first interface address that ip_config lists and falls
                          back to part 0 in silence; a rank is told its address instead.
    signed messages       DGL unpickles what arrives on an open port. Every message carries a keyed
                          hash under the job's secret, and a message without it is refused.
    listening first       DGL's clients retry a missing server every 3 s, and its servers sleep 3 s
                          before they connect back. Clients start when all servers listen, so the
                          first attempt succeeds.
    servers' progress     A server that handles requests is told from one that waits for the next.
    questions             A service of our own beside DGL's: a trainer asks a host's servers for
                          whatever they were started with an answer to, such as sampled neighbours.
    rows by questions     DGL's pull looks every id up several times, on both sides, and copies the
                          rows into the order of the ids; half of its cost. Trainers ask for rows
                          by their number in the part instead.
    feature type          DGL serves features in the type of the file. Servers cast them when they
                          load them, so that memory and network carry the type that is asked for:
                          as int16, since DGL has no shared memory of bfloat16.
    signals               DGL's C++ handler calls exit() in a process with live threads, which ends
                          in pages of traces; it is not installed.
    quiet                 DGL's progress messages on standard output go to the log.
"""

import hmac
import logging
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import dgl
import numpy as np
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
from distsage.launch.roles import Assignment
from distsage.limits import SHARED_MEMORY

log = logging.getLogger(__name__)

_SIGNATURE_BYTES = 32
_FEATURES = "_N/features"


@dataclass(frozen=True)
class DGLJob:
    """What DGL has to know of the job.

    Attributes:
        assignment: the place of this rank.
        ip: this rank's own address.
        servers: (ip, port) of every host's main server, in the order of the parts.
        part_config: the parts' DGL configuration.
        prefix: of the names of this host's shared-memory segments; no slash.
        secret: signs the job's messages.
        startup_timeout: seconds until a missing server counts as absent.
        feature_dtype: float32, float16 or bfloat16, in which features are kept and sent.
    """

    assignment: Assignment
    ip: str
    servers: Sequence[tuple[str, int]]
    part_config: Path
    prefix: str
    secret: bytes
    startup_timeout: float
    feature_dtype: str


class _SignedPickle:
    """Stands in for the module `pickle` inside dgl.distributed.rpc."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _sign(self, payload: bytes) -> bytes:
        return hmac.digest(self._secret, payload, "sha256")

    def dumps(self, value: Any) -> bytes:
        payload = pickle.dumps(value)
        return self._sign(payload) + payload

    def loads(self, data: bytes | bytearray) -> Any:
        data = bytes(data)
        signature, payload = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(payload)):
            raise PermissionError(
                "a message on this rank's DGL port is not signed by this job; refusing to read it"
            )
        return pickle.loads(payload)


Answer = Callable[..., Sequence[torch.Tensor]]
"""Called with a question's tensor and arguments in a server; what it gives goes back."""

_QUESTION_SERVICE = 730_001
_ROWS = "rows"
_answers: dict[str, Answer] = {}


class _Question(rpc.Request):
    """Ask a server `subject`; the arguments are plain numbers or strings."""

    def __init__(
        self, subject: str, arguments: tuple[int | str, ...], tensor: torch.Tensor
    ) -> None:
        self._state = subject, arguments, tensor

    def __getstate__(self) -> tuple[Any, ...]:
        return self._state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def process_request(self, server_state: Any) -> "_Tensors":
        subject, arguments, tensor = self._state
        if subject == _ROWS:
            (name,) = arguments
            return _Tensors((server_state.kv_store.data_store[name].index_select(0, tensor),))
        return _Tensors(tuple(_answers[subject](tensor, *arguments)))


class _Tensors(rpc.Response):
    """The answer; DGL unpacks a tuple of one."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self.tensors = tensors

    def __getstate__(self) -> tuple[torch.Tensor, ...]:
        return self.tensors

    def __setstate__(self, state: Any) -> None:
        self.tensors = state if isinstance(state, tuple) else (state,)


def _log_print(*words: Any, **_: Any) -> None:
    log.info(" ".join(map(str, words)))


def _install(job: DGLJob) -> str:
    """Put the seams into DGL's modules. Once per process, before `dgl.distributed.initialize`.

    Returns:
        The path of the list of servers, for `initialize`; it goes with this process.
    """

    def prefixed(name: str) -> str:
        return f"{job.prefix}{name.lstrip('/')}"

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

    rpc_client.local_ip4_addr_list = lambda: {job.ip}
    rpc_client.get_local_usable_addr = lambda _: f"{job.ip}:{_unused_port(job.ip)}"
    rpc.pickle = _SignedPickle(job.secret)
    rpc.register_sig_handler = lambda: None
    rpc_server.time = SimpleNamespace(sleep=lambda _: time.sleep(0.2))
    for module in (dist_context, dist_graph, rpc, rpc_client, rpc_server):
        module.print = _log_print
    rpc.register_service(_QUESTION_SERVICE, _Question, _Tensors)

    assignment = job.assignment
    ip_config = _file_in_memory("".join(f"{ip} {port}\n" for ip, port in job.servers))
    os.environ.update(
        DGL_DIST_MODE="distributed",
        DGL_ROLE="server" if assignment.role == "server" else "client",
        DGL_IP_CONFIG=ip_config,
        DGL_CONF_PATH=str(job.part_config),
        DGL_NUM_SERVER=str(assignment.pairs_per_host),
        DGL_NUM_CLIENT=str(assignment.num_trainers),
        DGL_NUM_SAMPLER="0",
        DGL_GRAPH_FORMAT="csc",
        DGL_DIST_MAX_TRY_TIMES=str(max(1, int(job.startup_timeout / 3))),
    )
    if assignment.role == "server":
        os.environ["DGL_SERVER_ID"] = str(assignment.server_id)
    return ip_config


def _file_in_memory(content: str) -> str:
    """Path of a file that this process can read as long as it lives, and leaves nowhere."""
    descriptor = os.memfd_create("ip_config")
    os.write(descriptor, content.encode())
    return f"/proc/self/fd/{descriptor}"


def _unused_port(ip: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((ip, 0))
        port: int = probe.getsockname()[1]
        return port


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
    ip_config = _install(job)
    _answers.update(answers)
    load = dist_graph.load_partition_feats

    def load_and_cast(*args: Any, **kwargs: Any) -> Any:
        node_rows, edge_rows = load(*args, **kwargs)
        if node_rows is not None:
            rows = cast_features(node_rows[_FEATURES], job.feature_dtype)
            node_rows[_FEATURES] = rows.view(torch.int16) if rows.itemsize == 2 else rows
        return node_rows, edge_rows

    dist_graph.load_partition_feats = load_and_cast
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
    try:
        dgl.distributed.initialize(ip_config)
    finally:
        _unlink_segments(job)  # those of a part that could not be loaded
    sys.exit(0)


def _unlink_segments(job: DGLJob) -> None:
    """Take the names from this host's segments."""
    for segment in SHARED_MEMORY.glob(f"{job.prefix}*"):
        segment.unlink(missing_ok=True)


def wait_for_listener(ip: str, port: int) -> None:
    """Wait until some process of this host listens on `ip:port`. Blocks.

    However long its server has to load: the watcher of a server that is stuck, or ends, ends the
    job. Reads the kernel's table instead of connecting: DGL's server would count the probe as a
    client.
    """
    wanted = f"{socket.inet_aton(ip)[::-1].hex().upper()}:{port:04X}"
    while True:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == wanted and fields[3] == "0A":
                return
        time.sleep(0.1)  # reading the table takes milliseconds, which the servers could use


def _stored(name: str) -> str:
    """What DGL's KVStore calls a node's data."""
    return f"node~_N~{name}"


class GraphStore:
    """Data of all parts, as the trainer sees them. One per trainer.

    Several threads may use it: DGL's client is not made for that, so one waits for the other.
    """

    def __init__(self, job: DGLJob, graph_name: str, offsets: np.ndarray) -> None:
        """Connect to all servers. Collective over the trainers; blocks.

        Args:
            job: of this rank.
            graph_name: as the parts' configuration has it.
            offsets: int64 `[P + 1]`; part i owns the gids in [offsets[i], offsets[i + 1]).
        """
        dgl.distributed.initialize(_install(job))
        self._graph = dist_graph.DistGraph(graph_name)
        self._feature_dtype: torch.dtype = getattr(torch, job.feature_dtype)
        self._client = kvstore.get_kvstore()
        self._part = job.assignment.host
        self._offsets = offsets
        self._one_at_a_time = threading.Lock()
        # All ranks of the host have mapped the segments (DistGraph ends with a barrier). Without
        # their names they vanish with the last process, whatever ends it.
        _unlink_segments(job)

    def own_rows(self, name: str) -> torch.Tensor:
        """The rows of this host's part, in place in the server's shared memory."""
        return self._typed(name, self._client._data_store[_stored(name)])

    def pull(self, name: str, gids: np.ndarray) -> torch.Tensor:
        """Rows of nodes of any parts. Blocks; releases the GIL while it waits.

        Args:
            name: features, labels, or a mask.
            gids: int64 `[n]`, those of each part together, parts in ascending order.
        """
        owner = np.searchsorted(self._offsets, gids, side="right") - 1
        assert (np.diff(owner) >= 0).all(), "gids of one part stand together"
        begins = np.searchsorted(owner, np.arange(len(self._offsets)))
        rows_of = {
            part: torch.from_numpy(gids[begin:end] - self._offsets[part])
            for part, (begin, end) in enumerate(pairwise(begins))
            if begin < end
        }
        own = rows_of.pop(self._part, None)
        pieces = self.ask(_ROWS, rows_of, _stored(name)) if rows_of else {}
        if own is not None:
            pieces[self._part] = (self._client._data_store[_stored(name)].index_select(0, own),)
        if not pieces:
            return self.own_rows(name)[:0]
        in_order = [pieces[part][0] for part in sorted(pieces)]
        return self._typed(name, in_order[0] if len(in_order) == 1 else torch.cat(in_order))

    def ask(
        self, subject: str, tensors: Mapping[int, torch.Tensor], *arguments: int | str
    ) -> dict[int, tuple[torch.Tensor, ...]]:
        """Ask the servers of several parts at once. Blocks; releases the GIL while it waits.

        Args:
            subject: which of the servers' `answers`.
            tensors: for each part that is asked, what it is asked about; not empty.
            arguments: further ones, the same for all parts.

        Returns:
            What each part's server answers.
        """
        questions = [(part, _Question(subject, arguments, t)) for part, t in tensors.items()]
        with self._one_at_a_time:
            answers = rpc.remote_call(questions)
        return {part: answer.tensors for part, answer in zip(tensors, answers, strict=True)}

    def _typed(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(self._feature_dtype) if name == "features" else rows

    def close(self) -> None:
        """Say goodbye; the servers end when all trainers have. Collective; blocks."""
        del self._graph
        dist_context.exit_client()
