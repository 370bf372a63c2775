"""Single arrays of DGL's files of node data, read without DGL. Runs on the login host.

DGL's reader takes a file as a whole, features and all. This one passes over what nobody asked for.
"""

import math
import os
import struct
from pathlib import Path

import numpy as np

from distsage.data.npy import ArrayError

# An array in DGL's files: the magic number, a reserved one, the device (type and number), the
# number of axes, the type (code, bits, lanes), the length of each axis, and the values' bytes.
MAGIC = 0xDD5E40F096B4A13F
ARRAY = struct.Struct("<QQiiiBBH")
COUNT = struct.Struct("<Q")
# A file of named arrays: the magic number, and twice how many there are. Before each is its name.
_FILE_MAGIC = 0xDD5A9FBE3FA2443F
_FILE = struct.Struct("<QQQ")
_MOST_NAME_BYTES, _MOST_AXES = 256, 8
# By code and bits.
_TYPES = {(0, 32): "<i4", (0, 64): "<i8", (1, 8): "<u1", (2, 32): "<f4"}


def read_array(path: Path, name: str) -> np.ndarray:
    """One array of a file that DGL's `save_tensors` wrote.

    Args:
        path: a regular file.
        name: of the array.

    Raises:
        ArrayError: it has no such array, or is damaged.
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size

        def take(count: int) -> bytes:
            # Nothing is taken from memory that the file does not hold.
            if count > size - stream.tell():
                raise ArrayError("it ends early")
            return stream.read(count)

        magic, _, number = _FILE.unpack(take(_FILE.size))
        if magic != _FILE_MAGIC:
            raise ArrayError("it is no file of DGL's with named arrays")
        for _ in range(number):
            (length,) = COUNT.unpack(take(COUNT.size))
            found = take(min(length, _MOST_NAME_BYTES))
            magic, _, _, _, axes, code, bits, lanes = ARRAY.unpack(take(ARRAY.size))
            if magic != MAGIC or not 0 <= axes <= _MOST_AXES:
                raise ArrayError("it is damaged")
            *shape, num_bytes = struct.unpack(f"<{axes + 1}Q", take((axes + 1) * COUNT.size))
            if num_bytes > size:
                raise ArrayError("it ends early")
            if found != name.encode():
                stream.seek(num_bytes, os.SEEK_CUR)
                continue
            dtype = _TYPES.get((code, bits))
            if dtype is None or lanes != 1 or math.prod(shape) * bits != 8 * num_bytes:
                raise ArrayError("it is damaged")
            return np.frombuffer(take(num_bytes), dtype).reshape(shape)
    raise ArrayError(f"it has no {name}")
