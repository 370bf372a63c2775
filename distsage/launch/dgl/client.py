"""A trainer's side: connects to all servers, then reads data of all hosts. Runs on odd ranks."""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import dgl
import numpy as np
import torch
from dgl.distributed import dist_context, dist_graph, kvstore, rpc

from distsage.data.sparse_rows import SparseRows
from distsage.launch.dgl.handshake import call_server
from distsage.launch.dgl.messages import (
    ROWS,
    SPARSE_ROWS,
    DGLJob,
    Question,
    stored,
    stored_sparse_rows,
)
from distsage.launch.dgl.patches import carry_messages, install, join_rpc, unlink_segments
from distsage.launch.dgl.transport import Transport


def _connect(job: DGLJob) -> Transport:
    """Connect to all servers, and wait until each has loaded its part. Blocks.

    Stands in for DGL's `connect_to_server`, which listens itself for whoever connects back.

    Raises:
        TimeoutError, ConnectionError: a server does not answer; the message names it. How long it
            loads is bounded by the watchers.
        PermissionError: whoever listens in a server's place is not of this job.
    """
    trainer = job.assignment.trainer_rank
    join_rpc(job, trainer)
    sessions = [
        call_server(address, job.secret, server, trainer, job.startup_timeout, name)
        for server, (address, name) in enumerate(zip(job.servers, job.server_names, strict=True))
    ]
    transport = Transport(sessions, job.server_names, job.max_message_bytes, peers="server")
    carry_messages(transport)
    for _ in sessions:
        rpc.recv_response()
    dist_context.set_initialized(True)
    return transport


class GraphStore:
    """Data of all hosts, as the trainer sees them. One per trainer.

    Several threads may use it. DGL's client is not made for that, so they take turns.

    Attributes:
        received_bytes, sent_bytes: float64 `[H]`, of the tensors in answers from each host's
            servers and in questions to them, so far.
        wait_seconds: float64 `[H]`, for answers: the whole of each wait is put down to the host
            that answered last.
    """

    def __init__(self, job: DGLJob) -> None:
        """Connect to all servers. Collective over the trainers; blocks while the servers load."""

        self.received_bytes, self.sent_bytes, self.wait_seconds = np.zeros((3, job.parts.num_hosts))

        def connect(*_: Any, **__: Any) -> None:
            self._transport = _connect(job)

        servers = install(job)
        dist_context.connect_to_server = connect
        dgl.distributed.initialize(servers)
        manifest = job.parts.manifest
        self._graph = dist_graph.DistGraph(manifest.graph_name)
        self._feature_dtype: torch.dtype = getattr(torch, job.feature_dtype)
        self._sparse_width = manifest.num_features if manifest.features.is_sparse else None
        self._client = kvstore.get_kvstore()
        self._host = job.assignment.host
        self._pairs_per_host = job.assignment.pairs_per_host
        self._offsets = job.parts.offsets
        self._one_at_a_time = threading.Lock()
        # All ranks of the host have mapped the segments (DistGraph ends with a barrier). Without
        # their names they vanish with the last process, whatever ends it.
        unlink_segments(job)

    def own_rows(self, name: str) -> torch.Tensor:
        """The rows of this host's parts, in place in the server's shared memory."""
        return self._typed(name, self._client._data_store[stored(name)])

    def own_features(self) -> torch.Tensor | SparseRows:
        """The features of this host's parts, in place in the server's shared memory."""
        if self._sparse_width is None:
            return self.own_rows("features")
        rows = stored_sparse_rows(self._client._data_store, self._sparse_width)
        return replace(rows, values=self._typed_values(rows.values))

    def pull_features(self, gids: np.ndarray) -> torch.Tensor | SparseRows:
        """Features of nodes of any hosts, as `pull` does."""
        if self._sparse_width is None:
            return self.pull("features", gids)
        rows_of, own = self._by_host(gids)
        answers = self.ask(SPARSE_ROWS, rows_of, self._sparse_width) if rows_of else {}
        pieces = {}
        for host, (counts, columns, *rest) in answers.items():
            values = self._typed_values(rest[0] if rest else None)
            pieces[host] = SparseRows.of_counts(counts, columns, values, self._sparse_width)
        if own is not None or not pieces:
            own_features = self.own_features()
            assert isinstance(own_features, SparseRows)
            slots = np.empty(0, np.int64) if own is None else own.numpy()
            pieces[self._host] = own_features.take(slots)
        return SparseRows.joined([pieces[host] for host in sorted(pieces)])

    def pull(self, name: str, gids: np.ndarray) -> torch.Tensor:
        """Rows of nodes of any hosts. Blocks; releases the GIL while it waits.

        Args:
            name: features, labels, or a mask.
            gids: int64 `[n]`, those of each host together, hosts in ascending order.
        """
        rows_of, own = self._by_host(gids)
        pieces = self.ask(ROWS, rows_of, stored(name)) if rows_of else {}
        if own is not None:
            pieces[self._host] = (self._client._data_store[stored(name)].index_select(0, own),)
        if not pieces:
            return self.own_rows(name)[:0]
        in_order = [pieces[host][0] for host in sorted(pieces)]
        return self._typed(name, in_order[0] if len(in_order) == 1 else torch.cat(in_order))

    def _by_host(self, gids: np.ndarray) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
        """Rows of nodes in the tables of the other hosts that have them, and in this host's."""
        owner = np.searchsorted(self._offsets, gids, side="right") - 1
        assert (np.diff(owner) >= 0).all(), "gids of one host stand together"
        begins = np.searchsorted(owner, np.arange(len(self._offsets)))
        rows_of = {
            host: torch.from_numpy(gids[begin:end] - self._offsets[host])
            for host, (begin, end) in enumerate(pairwise(begins))
            if begin < end
        }
        own = rows_of.pop(self._host, None)
        return rows_of, own

    def ask(
        self, subject: str, tensors: Mapping[int, torch.Tensor], *arguments: int | str
    ) -> dict[int, tuple[torch.Tensor, ...]]:
        """Ask the servers of several hosts at once. Blocks; releases the GIL while it waits.

        Args:
            subject: which of the servers' `answers`.
            tensors: for each host that is asked, what it is asked about; not empty.
            arguments: further ones, the same for all hosts.

        Returns:
            What each host's server answers.
        """
        questions = [(host, Question(subject, arguments, t)) for host, t in tensors.items()]
        with self._one_at_a_time:
            started = time.perf_counter()
            answers = rpc.remote_call(questions)
            last = self._transport.last_sender // self._pairs_per_host
            self.wait_seconds[last] += time.perf_counter() - started
            for host, answer in zip(tensors, answers, strict=True):
                self.sent_bytes[host] += tensors[host].nbytes
                self.received_bytes[host] += sum(one.nbytes for one in answer.tensors)
        return {host: answer.tensors for host, answer in zip(tensors, answers, strict=True)}

    def _typed(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(self._feature_dtype) if name == "features" else rows

    def _typed_values(self, values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.view(self._feature_dtype)

    def close(self) -> None:
        """Say goodbye; the servers end when all trainers have. Collective; blocks."""
        del self._graph
        dist_context.exit_client()
