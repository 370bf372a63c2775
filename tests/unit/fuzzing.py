"""What the tests share that feed damaged files to readers: the damage, and what has to come of it.

The examples are drawn from a fixed seed and bounded in number, so that every run tries the same.
"""

import contextlib
import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from distsage.errors import UserError


def examples(count: int) -> settings:
    """Decorates a test that hypothesis feeds with `count` examples, the same every time."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,  # no test asserts a time; a hang ends at pytest's bound
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def success_or_one_sentence():
    """The block ends well or with one clear sentence; any other exception is a traceback."""
    try:
        yield
    except UserError as error:
        sentence = str(error)
        assert sentence
        assert "\n" not in sentence, sentence
        assert len(sentence) < 2000, sentence[:200]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Content that was cut short, grown, overwritten in a few places, or put together otherwise."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(
            st.sampled_from(["bits", "bytes", "cut", "insert", "remove", "repeat", "zeros"])
        ):
            case "bits" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "bytes":
                some = draw(st.binary(min_size=1, max_size=8))
                data[at : at + len(some)] = some
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=64))
            case "remove":
                del data[at : at + draw(st.integers(1, 64))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case "zeros":
                length = draw(st.integers(1, 16))
                data[at : at + length] = bytes(length)
    return bytes(data)


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1.5, -0.0, 1e308),
    *("", "x", "../x", "\0", "\ud800", "9" * 5000, "a\nb", "x" * 3000),
    *([], {}, [[]], [1, 2], {"": None}),
]


@st.composite
def altered_json(draw: st.DrawFn, content: str) -> bytes:
    """JSON of which one to three values were replaced, removed, repeated or given another name."""
    root = {"": json.loads(content)}
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(root))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        if draw(st.booleans()) and isinstance(holder[key], int):
            holder[key] += draw(st.sampled_from([-1, 1, 1000, -1000, 2**40, 2**64]))
        elif draw(st.booleans()) and holder is not root:
            removed = holder.pop(key)
            if draw(st.booleans()) and isinstance(holder, dict):
                holder[draw(st.sampled_from(["", "x", "../x", "parts", "\ud800"]))] = removed
        else:
            holder[key] = draw(st.sampled_from(ODD))
        if root[""] == "":
            break
    return json.dumps(root[""]).encode()


def _places(value: Any):
    """Every (container, key) below a value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def nested(count: int) -> list[bytes]:
    """Brackets within brackets, in the notations that readers know."""
    return [b"[" * count, b"{" * count, b'{"a":' * count, b"- " * count, b"(" * count]


def try_all(read: Callable[[bytes], object], contents: list[bytes]) -> None:
    """Each content ends well or with one sentence."""
    for content in contents:
        with success_or_one_sentence():
            read(content)
