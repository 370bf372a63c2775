"""The arrays in DGL's files of named arrays, without DGL. Runs wherever parts are written or read.

DGL's reader holds a whole file in memory. Maps of it are pages that the system gives back.
"""

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from distsage.data.npy import ArrayError

COUNT = struct.Struct("<Q")
# A file of named arrays: the magic number, and twice how many there are. Before each is its name.
FILE_MAGIC = 0xDD5A9FBE3FA2443F

_FILE = struct.Struct("<QQQ")
# An array begins with the magic number, a reserved one, the device (type and number), the number of
# axes and the type (code, bits, lanes). The length of each axis follows, then the number of bytes,
# and the values.
_ARRAY = struct.Struct("<QQiiiBBH")
_MAGIC = 0xDD5E40F096B4A13F
_CPU = 1
_MOST_NAME_BYTES, _MOST_AXES = 256, 8
_CODES = {"i": 0, "u": 1, "f": 2}
# By code and bits.
_TYPES = {(0, 32): "<i4", (0, 64): "<i8", (1, 8): "<u1", (2, 32): "<f4"}


def array_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What stands before an array's values in DGL's files."""
    num_bytes = math.prod(shape) * dtype.itemsize
    code, bits = _CODES[dtype.kind], 8 * dtype.itemsize
    return _ARRAY.pack(_MAGIC, 0, _CPU, 0, len(shape), code, bits, 1) + b"".join(
        map(COUNT.pack, (*shape, num_bytes))
    )


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that DGL's `save_tensors` wrote, by name: read-only memory maps.

    An array may begin at any byte; copy rows before they go to kernels.

    Args:
        path: a regular file.

    Raises:
        ArrayError: it is no such file, or is damaged.
        OSError: it cannot be read.
    """
    return _arrays(
        path, lambda stream, dtype, shape: np.memmap(stream, dtype, "r", stream.tell(), shape)
    )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """As `map_arrays`, but in memory."""
    return _arrays(
        path,
        lambda stream, dtype, shape: np.fromfile(stream, dtype, math.prod(shape)).reshape(shape),
    )


def _arrays(
    path: Path, values: Callable[[IO[bytes], str, tuple[int, ...]], np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of a file; `values` is given the file where an array's values begin."""
    arrays = {}
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size

        def take(count: int) -> bytes:
            # Nothing is taken from memory that the file does not hold.
            if count > size - stream.tell():
                raise ArrayError("it ends early")
            return stream.read(count)

        magic, _, number = _FILE.unpack(take(_FILE.size))
        if magic != FILE_MAGIC:
            raise ArrayError("it is no file of DGL's with named arrays")
        for _ in range(number):
            (length,) = COUNT.unpack(take(COUNT.size))
            name = take(min(length, _MOST_NAME_BYTES)).decode(errors="replace")
            magic, _, _, _, axes, code, bits, lanes = _ARRAY.unpack(take(_ARRAY.size))
            if magic != _MAGIC or not 0 <= axes <= _MOST_AXES:
                raise ArrayError("it is damaged")
            *shape, num_bytes = struct.unpack(f"<{axes + 1}Q", take((axes + 1) * COUNT.size))
            begin = stream.tell()
            if num_bytes > size - begin:
                raise ArrayError("it ends early")
            dtype = _TYPES.get((code, bits))
            if dtype is None or lanes != 1 or math.prod(shape) * bits != 8 * num_bytes:
                raise ArrayError("it is damaged")
            arrays[name] = (
                values(stream, dtype, tuple(shape)) if num_bytes else np.empty(shape, dtype)
            )
            stream.seek(begin + num_bytes)
    return arrays
