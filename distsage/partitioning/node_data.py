"""The data of a part's nodes, in DGL's file, without DGL. Runs wherever parts are read.

DGL's reader holds a whole file in memory. Maps of it are pages that the system gives back.
"""

import struct
from pathlib import Path

import numpy as np

from distsage.partitioning.manifest import NODE_DATA, NODE_TYPE

ARRAY = struct.Struct("<QQiiiBBH")
"""An array in DGL's files begins with the magic number, a reserved one, the device (type and
number), the number of axes and the type (code, bits, lanes). The length of each axis follows, then
the number of bytes, and the values."""
COUNT = struct.Struct("<Q")
MAGIC = 0xDD5E40F096B4A13F

# A file of arrays with names begins with its own magic number and their count, twice.
_FILE = struct.Struct("<QQQ")
_FILE_MAGIC = 0xDD5A9FBE3FA2443F
_KINDS = "iuf"  # numpy's letters for the codes of types


def map_node_data(directory: Path) -> dict[str, np.ndarray]:
    """The rows of a part's own nodes by name, `[n, ...]` each, in gid order: read-only memory maps.

    An array may begin at any byte; copy rows before they go to kernels.

    Raises:
        ValueError: it is no such file.
        OSError: it cannot be read.
    """
    path, rows = directory / NODE_DATA, {}
    with open(path, "rb") as stream:

        def numbers(layout: struct.Struct) -> tuple[int, ...]:
            content = stream.read(layout.size)
            if len(content) < layout.size:
                raise ValueError(f"{path} ends early")
            return layout.unpack(content)

        magic, count, _ = numbers(_FILE)
        if magic != _FILE_MAGIC:
            raise ValueError(f"{path} is no file of named arrays")
        for _ in range(count):
            name = stream.read(*numbers(COUNT)).decode()
            magic, _, _, _, axes, code, bits, _ = numbers(ARRAY)
            if magic != MAGIC or code >= len(_KINDS):
                raise ValueError(f"{path} holds no array after the name {name}")
            shape = tuple(numbers(COUNT)[0] for _ in range(axes))
            (num_bytes,) = numbers(COUNT)
            dtype = np.dtype(f"{_KINDS[code]}{bits // 8}")
            begin = stream.tell()
            rows[name.removeprefix(f"{NODE_TYPE}/")] = (
                np.memmap(path, dtype, "r", begin, shape) if num_bytes else np.empty(shape, dtype)
            )
            stream.seek(begin + num_bytes)
    return rows
