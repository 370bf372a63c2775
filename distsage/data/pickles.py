"""Pickles that make arrays and nothing else. Runs on the login host and in the local run.

The citation graphs come as pickles of Python 2. A pickle is a program: before it runs here, its
instructions are looked through for those that name a class or take memory by a number, and what it
may name is numpy's and scipy's arrays.
"""

import collections
import copyreg
import io
import pickle
import pickletools
from typing import IO, Any

import numpy as np
import scipy.sparse

_MOST_BYTES = 1 << 28
_FORBIDDEN = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}


class PickleError(ValueError):
    """What is wrong with a pickle, in half a sentence."""


def load_arrays(stream: IO[bytes]) -> Any:
    """What a pickle holds: numpy arrays, CSR matrices, numbers, strings and plain containers.

    Arrays may be inconsistent in themselves: who uses indices in them has to check them.

    Raises:
        PickleError: it is damaged, too long, or wants to run anything else.
    """
    content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise PickleError("a pickle is longer than any of these sets")
    try:
        for instruction, argument, _ in pickletools.genops(content):
            name = instruction.name
            if name in _FORBIDDEN:
                raise PickleError(f"it wants to run {name}, which makes no array")
            # A place in the memo takes memory up to its number.
            if name.endswith("PUT") and int(argument or 0) > len(content):
                raise PickleError("it is damaged")
        return _ArrayUnpickler(content).load()
    except PickleError:
        raise
    # The documentation of pickle names these, and says that there may be more: what builds arrays
    # and containers raises them on arguments that do not fit.
    except (
        *(pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError),
        *(EOFError, OverflowError, ImportError, MemoryError, RecursionError),
    ) as error:
        raise PickleError(f"it is a damaged pickle: {' '.join(str(error).split())}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Makes numpy arrays, CSR matrices and plain containers.

    The module that a pickle names is ignored, so that those of any version of numpy, scipy and
    Python resolve to today's classes.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if name not in _CLASSES:
            raise PickleError(f"it wants to run {module}.{name}, which is no array")
        return _CLASSES[name]


def _dtype(description: Any, *flags: Any) -> np.dtype:
    """The type of an array: a number's, and no record, object or length of its own."""
    dtype = np.dtype(str(description))
    if dtype.kind not in "biuf":
        raise PickleError(f"it holds an array of {dtype}")
    return dtype


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise PickleError("it wants to encode something that is no text")
    return text.encode("latin1")


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    """How Python 2 made instances of classes of the old kind."""
    if cls is not scipy.sparse.csr_matrix or base is not object or state is not None:
        raise PickleError("it wants to make something that is no array")
    return copyreg.__dict__["_reconstructor"](cls, base, state)


_CLASSES: dict[str, Any] = {
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "scalar": np.float64(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": _dtype,
    "csr_matrix": scipy.sparse.csr_matrix,
    "defaultdict": collections.defaultdict,
    "_reconstructor": _reconstructor,
    "encode": _encode,
    "object": object,
    "list": list,
}
