"""How a message crosses a connection: in frames that only the two ends can have written.

    prefix   number of the frame, bytes of the head
    head     what the message says, as JSON: a `Message`, with the types and shapes of its tensors
    tag      of prefix and head
    tensors  their bytes, one after the other; nothing if there are none
    tag      of number and tensors

Nothing is believed, and no memory is taken, before its tag has been checked. The key is that of one
direction of one connection, and frames count up: a frame that was changed, left out, repeated or
put elsewhere is refused, and with it the connection. Tensors are read into their own memory and
sent from it. Runs on server and trainer ranks.
"""

import hmac
import json
import struct
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_PREFIX = struct.Struct("<QI")
_NONCE = struct.Struct("<QI")  # number of the frame, which tag of it
_TAG_BYTES = 16
# What a message says besides its tensors: names and numbers.
MAX_HEAD_BYTES = 64 * 1024
# Tensors are tagged piece by piece, each while it is still in the processor's cache.
_PIECE_BYTES = 2**20

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}


@dataclass
class Message:
    """One request or answer of DGL's RPC; stands in for `dgl.distributed.rpc.RPCMessage`.

    Attributes:
        service_id: what is asked for, or answered.
        msg_seq: tells the requests of a trainer apart; an answer has its request's.
        client_id: the trainer's number.
        server_id: the server's number.
        data: the rest of the request or answer, as plain data (see `messages.to_plain`).
        tensors: that `data` refers to.
        group_id: DGL's number of the group of trainers; there is one.
    """

    service_id: int
    msg_seq: int
    client_id: int
    server_id: int
    data: Any
    tensors: Sequence[torch.Tensor]
    group_id: int = 0


class _Tagger:
    """Tags of one direction of a connection: GMAC (NIST SP 800-38D), AES-GCM of data in clear.

    No two tags have one nonce: frames count up, and so do the pieces of a frame.
    """

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def head_tag(self, prefix: bytes | bytearray, head: bytes) -> bytes:
        number, _ = _PREFIX.unpack(prefix)
        return self._tag(number, 0, bytes(prefix) + head)

    def piece_tag(self, number: int, count: int, piece: memoryview) -> bytes:
        """Of piece `count` of a frame's tensors, counted from 1."""
        return self._tag(number, count, piece)

    def tensors_tag(self, number: int, tags: Sequence[bytes]) -> bytes:
        """Of all tensors of a frame. How long they are stands in the head."""
        return self._tag(number, 2**32 - 1, b"".join(tags))

    def _tag(self, number: int, part: int, data: bytes | memoryview) -> bytes:
        return self._aead.encrypt(_NONCE.pack(number, part), b"", data)


class FrameWriter:
    """Makes the frames of one direction of a connection.

    Args:
        key: of the direction.
    """

    def __init__(self, key: bytes) -> None:
        self._tagger = _Tagger(key)
        self._number = 0

    def frame(self, message: Message) -> Iterator[memoryview]:
        """What to send, piece by piece. Frames have to be sent in the order of these calls."""
        number = self._number
        self._number += 1
        tensors = [tensor.detach().contiguous() for tensor in message.tensors]
        head = json.dumps(
            [
                *(message.service_id, message.msg_seq, message.client_id, message.server_id),
                *(message.group_id, message.data),
                [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in tensors],
            ],
            separators=(",", ":"),
        ).encode()
        assert len(head) <= MAX_HEAD_BYTES, f"a message says {len(head)} bytes"
        return self._pieces(number, head, tensors)

    def _pieces(
        self, number: int, head: bytes, tensors: Sequence[torch.Tensor]
    ) -> Iterator[memoryview]:
        prefix = _PREFIX.pack(number, len(head))
        yield memoryview(prefix + head + self._tagger.head_tag(prefix, head))
        if tensors:
            tags = []
            for count, piece in enumerate(_pieces(tensors), 1):
                tags.append(self._tagger.piece_tag(number, count, piece))
                yield piece
            yield memoryview(self._tagger.tensors_tag(number, tags))


class FrameReader:
    """Reads the frames of one direction of a connection.

    Args:
        key: of the direction.
        max_bytes: of one message's tensors; a longer one is refused before memory is taken for it.
    """

    def __init__(self, key: bytes, max_bytes: int) -> None:
        self._tagger = _Tagger(key)
        self._max_bytes = max_bytes
        self._number = 0

    def frame(self) -> Generator[memoryview, None, Message]:
        """Yields the memory to fill next, and returns the frame's message.

        Raises:
            PermissionError: this frame is not the one that the other end has sent next.
        """
        prefix = bytearray(_PREFIX.size)
        yield memoryview(prefix)
        number, head_bytes = _PREFIX.unpack(prefix)
        if number != self._number:
            raise PermissionError(
                f"frame {number} came where frame {self._number} was due; it was repeated, "
                "reordered or is not of this job"
            )
        if head_bytes > MAX_HEAD_BYTES:
            raise PermissionError(
                f"frame {number} announces {head_bytes} bytes where {MAX_HEAD_BYTES} are allowed"
            )
        rest = bytearray(head_bytes + _TAG_BYTES)
        yield memoryview(rest)
        head = bytes(rest[:head_bytes])
        self._check(rest[head_bytes:], self._tagger.head_tag(prefix, head))
        *numbers, data, layout = json.loads(head)
        tensors = self._allocate(layout)
        if tensors:
            tags = []
            for count, piece in enumerate(_pieces(tensors), 1):
                yield piece
                tags.append(self._tagger.piece_tag(number, count, piece))
            tag = bytearray(_TAG_BYTES)
            yield memoryview(tag)
            self._check(tag, self._tagger.tensors_tag(number, tags))
        self._number += 1
        service_id, msg_seq, client_id, server_id, group_id = numbers
        return Message(service_id, msg_seq, client_id, server_id, data, tensors, group_id)

    def _allocate(self, layout: Sequence[tuple[str, list[int]]]) -> list[torch.Tensor]:
        wanted = [(_DTYPES[dtype], shape) for dtype, shape in layout]
        if any(size < 0 for _, shape in wanted for size in shape):
            raise PermissionError(f"frame {self._number} announces a tensor of a negative size")
        # Python's numbers do not overflow.
        total = sum(dtype.itemsize * int(np.prod(shape, dtype=object)) for dtype, shape in wanted)
        if total > self._max_bytes:
            raise PermissionError(
                f"frame {self._number} announces {total} bytes where this job's messages have "
                f"{self._max_bytes} at most"
            )
        return [torch.empty(shape, dtype=dtype) for dtype, shape in wanted]

    def _check(self, found: bytearray, expected: bytes) -> None:
        if not hmac.compare_digest(found, expected):
            raise PermissionError(
                f"frame {self._number} was changed on its way or is not of this job"
            )


def _pieces(tensors: Sequence[torch.Tensor]) -> Iterator[memoryview]:
    """The memory of tensors, in pieces that have a tag each."""
    for tensor in tensors:
        memory = tensor.reshape(-1).view(torch.uint8).numpy()
        for begin in range(0, len(memory), _PIECE_BYTES):
            yield memory[begin : begin + _PIECE_BYTES].data
