"""What the ranks send each other through DGL, and what DGL has to know of the job.

A message is signed by its job. Beside DGL's own requests there is one of ours, a question: a
trainer asks a host's servers for whatever they were started with an answer to. Imported by servers
and trainers.
"""

import hmac
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dgl.distributed import rpc

from distsage.launch.roles import Assignment

_SIGNATURE_BYTES = 32
# DGL tells requests apart by number; this one is none of its own.
_QUESTION_SERVICE = 730_001
# The question that every server has an answer to: rows of its part's data, by their numbers.
ROWS = "rows"


@dataclass(frozen=True)
class DGLJob:
    """What DGL has to know of the job.

    Attributes:
        assignment: of this rank.
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


class SignedPickle:
    """Stands in for the module `pickle` inside dgl.distributed.rpc.

    Args:
        secret: of the job. Every message carries a hash under it, and none without is unpickled.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _sign(self, payload: bytes) -> bytes:
        return hmac.digest(self._secret, payload, "sha256")

    def dumps(self, value: Any) -> bytes:
        """Pickle a value; the signature goes first."""
        payload = pickle.dumps(value)
        return self._sign(payload) + payload

    def loads(self, data: bytes | bytearray) -> Any:
        """Read what `dumps` of this job has written.

        Raises:
            PermissionError: it is not signed by this job.
        """
        data = bytes(data)
        signature, payload = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(payload)):
            raise PermissionError(
                "a message on this rank's DGL port is not signed by this job; refusing to read it"
            )
        return pickle.loads(payload)


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
        return Tensors(tuple(answers[subject](tensor, *arguments)))


class Tensors(rpc.Response):
    """The answer; DGL unpacks a tuple of one."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self.tensors = tensors

    def __getstate__(self) -> tuple[torch.Tensor, ...]:
        return self.tensors

    def __setstate__(self, state: Any) -> None:
        self.tensors = state if isinstance(state, tuple) else (state,)


def register_questions() -> None:
    """Let DGL carry questions and their answers. Once per process."""
    rpc.register_service(_QUESTION_SERVICE, Question, Tensors)
