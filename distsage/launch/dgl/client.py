"""A trainer's side: waits for its server, then reads the data of all parts. Runs on odd ranks."""

import socket
import threading
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import dgl
import numpy as np
import torch
from dgl.distributed import dist_context, dist_graph, kvstore, rpc

from distsage.launch.dgl.messages import ROWS, DGLJob, Question
from distsage.launch.dgl.patches import install, unlink_segments


def wait_for_listener(ip: str, port: int) -> None:
    """Wait until some process of this host listens on `ip:port`. Blocks.

    There is no bound here on how long a server may load; if it is stuck or ends, its watcher ends
    the job. Reads the kernel's table instead of connecting: DGL's server would count a connection
    as a client.
    """
    wanted = f"{socket.inet_aton(ip)[::-1].hex().upper()}:{port:04X}"
    while True:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == wanted and fields[3] == "0A":
                return
        time.sleep(0.1)  # reading the table takes milliseconds, and the servers need the CPU


def _stored(name: str) -> str:
    """What DGL's KVStore calls a node's data."""
    return f"node~_N~{name}"


class GraphStore:
    """Data of all parts, as the trainer sees them. One per trainer.

    Several threads may use it. DGL's client is not made for that, so they take turns.
    """

    def __init__(self, job: DGLJob, graph_name: str, offsets: np.ndarray) -> None:
        """Connect to all servers. Collective over the trainers; blocks.

        Args:
            job: of this rank.
            graph_name: as the parts' configuration has it.
            offsets: int64 `[P + 1]`; part i owns the gids in [offsets[i], offsets[i + 1]).
        """
        dgl.distributed.initialize(install(job))
        self._graph = dist_graph.DistGraph(graph_name)
        self._feature_dtype: torch.dtype = getattr(torch, job.feature_dtype)
        self._client = kvstore.get_kvstore()
        self._part = job.assignment.host
        self._offsets = offsets
        self._one_at_a_time = threading.Lock()
        # All ranks of the host have mapped the segments (DistGraph ends with a barrier). Without
        # their names they vanish with the last process, whatever ends it.
        unlink_segments(job)

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
        pieces = self.ask(ROWS, rows_of, _stored(name)) if rows_of else {}
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
        questions = [(part, Question(subject, arguments, t)) for part, t in tensors.items()]
        with self._one_at_a_time:
            answers = rpc.remote_call(questions)
        return {part: answer.tensors for part, answer in zip(tensors, answers, strict=True)}

    def _typed(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(self._feature_dtype) if name == "features" else rows

    def close(self) -> None:
        """Say goodbye; the servers end when all trainers have. Collective; blocks."""
        del self._graph
        dist_context.exit_client()
