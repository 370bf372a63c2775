"""What the ranks send each other through DGL, and what DGL has to know of the job.

Beside DGL's own requests there is one of ours, a question: a trainer asks a host's servers for
whatever they were started with an answer to. What a request says is sent as plain data, and only
the requests and answers listed here are made of it. Imported by servers and trainers.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from dgl.distributed import dist_graph, kvstore, role, rpc

from distsage.data.sparse_rows import SparseRows
from distsage.launch.roles import Assignment
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.manifest import NODE_TYPE

# DGL tells requests apart by number; this one is none of its own.
_QUESTION_SERVICE = 730_001
# The questions that every server has an answer to: rows of its part's data, by their numbers. Those
# of sparse features travel as their numbers.
ROWS = "rows"
SPARSE_ROWS = "sparse rows"
# What the KVStore calls their arrays. They belong to no type of nodes that DGL knows, so that it
# does not expect a row for each node.
SPARSE_INDPTR, SPARSE_COLUMNS, SPARSE_VALUES = (
    f"node~sparse~{array}" for array in ("indptr", "columns", "values")
)


@dataclass(frozen=True)
class DGLJob:
    """What DGL has to know of the job.

    Attributes:
        assignment: of this rank.
        servers: (ip, port) of every server, by its number.
        server_names, trainer_names: how messages name them, by their numbers.
        listener: this server's, bound to its (ip, port); None on trainers.
        parts: what each host holds.
        prefix: of the names of this host's shared-memory segments; no slash.
        secret: known to this job's ranks only; tells them from strangers.
        startup_timeout: seconds until a missing server counts as absent.
        feature_dtype: float32, float16, bfloat16 or int8, in which features are kept and sent.
        feature_scale: float32 `[F]`, how much one counts in int8; None for other types, and where
            features have no values.
    """

    assignment: Assignment
    servers: Sequence[tuple[str, int]]
    server_names: Sequence[str]
    trainer_names: Sequence[str]
    listener: socket.socket | None
    parts: HostParts
    prefix: str
    secret: bytes = field(repr=False)
    startup_timeout: float
    feature_dtype: str
    feature_scale: np.ndarray | None

    @property
    def max_message_bytes(self) -> int:
        """No request or answer has more: it is about rows or in-edges of one host at most once."""
        return max(self.parts.bytes(host) for host in range(self.parts.num_hosts))


Answer = Callable[..., Sequence[torch.Tensor]]
"""A server calls it with a question's tensor and arguments, and sends back what it returns."""

answers: dict[str, Answer] = {}
"""What this server answers, by the subject of the question."""


class Question(rpc.Request):
    """Ask a server `subject`; the arguments are plain numbers or strings.

    Trainers ask for rows this way, by their number in the part. DGL's own pull looks every id up
    several times, on both sides, and copies the rows into the order of the ids: half of its cost.
    """

    def __init__(
        self, subject: str, arguments: tuple[int | str, ...], tensor: torch.Tensor
    ) -> None:
        self._state = subject, arguments, tensor

    def __getstate__(self) -> tuple[Any, ...]:
        return self._state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def process_request(self, server_state: Any) -> "Tensors":
        """Answer it. DGL calls this in the server that is asked."""
        subject, arguments, tensor = self._state
        if subject == ROWS:
            (name,) = arguments
            return Tensors((server_state.kv_store.data_store[name].index_select(0, tensor),))
        if subject == SPARSE_ROWS:
            (width,) = arguments
            rows = stored_sparse_rows(server_state.kv_store.data_store, int(width))
            taken = rows.take(tensor.numpy())
            values = () if taken.values is None else (taken.values,)
            return Tensors((taken.counts, taken.columns, *values))
        return Tensors(tuple(answers[subject](tensor, *arguments)))


def stored(name: str) -> str:
    """What DGL's KVStore calls a node's data."""
    return f"node~{NODE_TYPE}~{name}"


def stored_sparse_rows(data_store: Mapping[str, torch.Tensor], width: int) -> SparseRows:
    """A part's sparse features, in place in what a server or a trainer has of the KVStore.

    Values of two bytes are int16 there.
    """
    indptr, columns = data_store[SPARSE_INDPTR], data_store[SPARSE_COLUMNS]
    numbers = int(indptr[-1])  # a segment has one element at least
    values = data_store.get(SPARSE_VALUES)
    return SparseRows(
        indptr, columns[:numbers], None if values is None else values[:numbers], width
    )


class Tensors(rpc.Response):
    """The answer."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self.tensors = tensors

    def __getstate__(self) -> tuple[torch.Tensor, ...]:
        return self.tensors

    def __setstate__(self, state: tuple[torch.Tensor, ...]) -> None:
        self.tensors = state


def register_questions() -> None:
    """Let DGL carry questions and their answers. Once per process."""
    rpc.register_service(_QUESTION_SERVICE, Question, Tensors)


# What this job's ranks ask of each other, and what they answer. DGL knows more: some of it makes a
# server run functions that it is sent.
_KNOWN = frozenset(
    {
        *(Question, Tensors),
        *(rpc.ClientRegisterResponse, rpc.ShutDownRequest),
        *(rpc.ClientBarrierRequest, rpc.ClientBarrierResponse),
        *(role.RegisterRoleRequest, role.RegisterRoleResponse),
        *(role.GetRoleRequest, role.GetRoleResponse),
        *(kvstore.BarrierRequest, kvstore.BarrierResponse),
        *(kvstore.GetSharedDataRequest, kvstore.GetSharedDataResponse),
        *(kvstore.GetPartShapeRequest, kvstore.GetPartShapeResponse),
        *(kvstore.SendMetaToBackupRequest, kvstore.SendMetaToBackupResponse),
        *(kvstore.PullRequest, kvstore.PullResponse),
        *(dist_graph.InitGraphRequest, dist_graph.InitGraphResponse),
    }
)
# DGL sends these two along, and compares them.
_FUNCTIONS = {
    function.__name__: function
    for function in (kvstore.default_pull_handler, kvstore.default_push_handler)
}
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "dict": dict}


def to_plain(request: rpc.Request | rpc.Response) -> tuple[Any, list[torch.Tensor]]:
    """What a request or an answer says, as JSON can say it, and the tensors that it refers to.

    JSON knows no tuples, sets, keys but strings, functions and tensors: each of these is an object
    with one entry, whose key says what it is.

    Raises:
        TypeError: it says something else.
    """
    tensors: list[torch.Tensor] = []
    return _plain(request.__getstate__(), tensors), tensors


def from_plain(known: Any, said: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """Make a request or an answer of what `to_plain` has made of one.

    Raises:
        PermissionError: it is none that this job's ranks send, or `said` is nothing that `to_plain`
            returns.
    """
    if known not in _KNOWN:
        raise PermissionError(
            f"a message asks for {known.__name__}, which no rank of this job does"
        )
    made = known.__new__(known)
    made.__setstate__(_value(said, tensors))
    return made


# These two call themselves. Inside the functions above they would be cycles of references, which
# keep the tensors of a message until Python looks for such cycles.


def _plain(value: Any, tensors: list[torch.Tensor]) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [_plain(each, tensors) for each in value]
        case tuple() | set():
            kind = "set" if isinstance(value, set) else "tuple"
            return {kind: [_plain(each, tensors) for each in value]}
        case dict():
            pairs = value.items()
            return {"dict": [[_plain(a, tensors), _plain(b, tensors)] for a, b in pairs]}
        case torch.Tensor():
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
    for name, function in _FUNCTIONS.items():
        if value is function:
            return {"function": name}
    raise TypeError(f"{type(value).__name__} is not sent between ranks")


def _value(plain: Any, tensors: Sequence[torch.Tensor]) -> Any:
    match plain:
        case None | bool() | int() | float() | str():
            return plain
        case list():
            return [_value(each, tensors) for each in plain]
        case dict() if len(plain) == 1:
            ((kind, inside),) = plain.items()
            if kind == "tensor" and isinstance(inside, int) and 0 <= inside < len(tensors):
                return tensors[inside]
            if kind == "function" and isinstance(inside, str) and inside in _FUNCTIONS:
                return _FUNCTIONS[inside]
            if kind in _SEQUENCES and isinstance(inside, list):
                return _SEQUENCES[kind](_value(inside, tensors))
    raise PermissionError(f"a message says {str(plain)[:80]}, which no rank of this job says")
