"""The lines that one watcher of a job sends the next: signed, so that nobody else's count.

The watcher that is called greets with a nonce. The caller replies with a nonce of its own. From
the ring's key, both nonces and both ranks they derive the key of this connection, and the caller
signs every line under it. The keys themselves never cross the network. A line that was recorded on
another connection has the wrong signature, and one that is repeated has an old number.
"""

import hmac
import json
import re
import secrets
from dataclasses import asdict, dataclass, fields
from typing import Any

from distsage.launch.keys import derive_key

MOST_LINE_BYTES = 64 * 1024
_MOST_MARKS = 2**63
_NONCE = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True)
class News:
    """What a watcher knows, and tells with every line.

    Attributes:
        done: a bit for every rank that has ended well.
        marks: how many marks each rank is known to have made.
        stop: whether the job was asked to stop.
        dump: whether all ranks write their stacks to their logs.
        told: whether a watcher has said why the job ends, and could not note it.
    """

    done: int
    marks: list[int]
    stop: bool
    dump: bool
    told: bool


class Lines:
    """Cuts what a stream brings into lines.

    Args:
        most: bytes that one line may have; None: any number.
    """

    def __init__(self, most: int | None = MOST_LINE_BYTES) -> None:
        self._most = most
        self._rest = b""

    def cut(self, data: bytes) -> list[bytes]:
        """The lines that have come whole with `data`, without their ends.

        Raises:
            ValueError: a line is longer than `most`.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._most is not None and max(map(len, [*lines, self._rest])) > self._most:
            raise ValueError("a line is too long")
        return lines


def nonce() -> bytes:
    """A new one, in hexadecimal digits."""
    return secrets.token_hex(32).encode()


class Link:
    """One connection of the ring. The caller signs, the one that is called reads.

    Args:
        key: of the ring.
        caller: rank.
        called: rank.
        greeting: the nonce of the one that is called.
        reply: the nonce of the caller.

    Raises:
        ValueError: what should be a nonce is none.
    """

    def __init__(self, key: bytes, caller: int, called: int, greeting: bytes, reply: bytes) -> None:
        for said in (greeting, reply):
            if not _NONCE.fullmatch(said):
                raise ValueError("not a nonce")
        self._key = derive_key(
            key, f"watcher {caller} to {called}, {greeting.decode()}, {reply.decode()}"
        )
        self._number = 0  # of the last line

    def sign(self, news: News) -> bytes:
        """The next line, with its end."""
        self._number += 1
        text = json.dumps({"number": self._number, **asdict(news)}).encode()
        return self._signature(text) + b" " + text + b"\n"

    def read(self, line: bytes, ranks: int) -> News | None:
        """What a line says; None if it is not the caller's, or was read before.

        Numbers may be missing: where a stranger's bytes have spoiled a line, the next one counts.

        Raises:
            ValueError: the caller has signed what is no news of a ring of so many ranks.
        """
        signature, _, text = line.partition(b" ")
        if not hmac.compare_digest(signature, self._signature(text)):
            return None
        number, news = _parse(text, ranks)
        if number <= self._number:
            return None
        self._number = number
        return news

    def _signature(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, "sha256").hex().encode()


def _parse(text: bytes, ranks: int) -> tuple[int, News]:
    """The number of a line and its news, every value checked."""
    said: Any = json.loads(text)
    if not isinstance(said, dict) or said.keys() != {"number", *(f.name for f in fields(News))}:
        raise ValueError("not a watcher's news")
    marks = said["marks"]
    if not isinstance(marks, list) or len(marks) != ranks:
        raise ValueError("not the marks of all ranks")
    bounded = [(said["number"], _MOST_MARKS), (said["done"], 1 << ranks)]
    for value, bound in [*bounded, *((number, _MOST_MARKS) for number in marks)]:
        if type(value) is not int or not 0 <= value < bound:
            raise ValueError("not a number within its bounds")
    if any(type(said[name]) is not bool for name in ("stop", "dump", "told")):
        raise ValueError("neither true nor false")
    return said.pop("number"), News(**said)
