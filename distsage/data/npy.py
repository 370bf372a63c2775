"""Arrays in numpy's files, read without trusting a word of them. Runs wherever arrays are kept.

`numpy.load` evaluates a header as Python and allocates what it says. Here a header is taken apart
by its grammar, only plain types are known, and an array has to be as long as its file says.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

import numpy as np

from distsage.data.archive import Archive, ArchiveError, open_archive
from distsage.data.raw import DenseRows, rows_per_chunk
from distsage.errors import UserError
from distsage.limits import free_memory, human_bytes

_MAGIC = b"\x93NUMPY"
_MOST_HEADER_BYTES = 1 << 16
_MOST_DIMENSIONS = 32
_CHUNK_BYTES = 1 << 24
_ENTRY = re.compile(
    r"""\s* (['"]) (?:
        descr          \1 \s*:\s* (['"]) (?P<descr> [<>=|]? [a-zA-Z] [0-9]{0,9} ) \2
      | fortran_order  \1 \s*:\s* (?P<fortran_order> True | False )
      | shape          \1 \s*:\s* \( (?P<shape> [0-9L,\s]* ) \)
    ) \s* (?: , | $ ) \s*""",
    re.VERBOSE,
)


class ArrayError(ValueError):
    """What is wrong with an array's file, in half a sentence."""


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
        dtype: a number, a boolean or a string.
        shape: of the array.
        fortran_order: whether the first index runs fastest.
        offset: where in the file the array starts.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    @property
    def num_bytes(self) -> int:
        """Of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes], num_bytes: int | None) -> Header:
    """Read the header of a file that is `num_bytes` long and holds one array and nothing else.

    With None, as for a pipe, the array's length is not compared with the file's.

    Raises:
        ArrayError: no such file, another type of array, or an array of another length.
    """
    start = stream.read(len(_MAGIC) + 2)
    if len(start) < len(_MAGIC) + 2 or not start.startswith(_MAGIC):
        raise ArrayError("it is no numpy array")
    length_bytes = 2 if start[len(_MAGIC)] == 1 else 4
    length = int.from_bytes(stream.read(length_bytes), "little")
    if length > _MOST_HEADER_BYTES:
        raise ArrayError(f"its header is said to have {length} bytes")
    content = stream.read(length)
    if len(content) < length:
        raise ArrayError("its header ends early")
    values = _parse(content)
    dtype = _plain_dtype(values["descr"])
    lengths = [length.strip().removesuffix("L") for length in values["shape"].split(",")]
    if lengths[-1] == "":
        lengths.pop()  # after the last comma
    if not all(length.isdigit() and len(length) < 20 for length in lengths):
        raise ArrayError("its header is damaged")
    shape = tuple(map(int, lengths))
    # Before any product, since an axis of length 0 hides the others.
    if len(shape) > _MOST_DIMENSIONS or math.prod(max(n, 1) for n in shape) >= 1 << 60:
        raise ArrayError(f"an array of shape {list(shape)} cannot be")
    header = Header(
        dtype, shape, values["fortran_order"] == "True", len(start) + length_bytes + length
    )
    if num_bytes is not None and header.offset + header.num_bytes != num_bytes:
        raise ArrayError(
            f"it has {num_bytes - header.offset} bytes of values, but {dtype} of shape "
            f"{list(shape)} takes {header.num_bytes}"
        )
    return header


def _parse(content: bytes) -> dict[str, str]:
    """The three values of a header such as `{'descr': '<f4', 'fortran_order': False, ...}`."""
    text = content.decode("latin1").strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise ArrayError("its header is damaged")
    text = text[1:-1].strip()
    values: dict[str, str] = {}
    position = 0
    while position < len(text):
        entry = _ENTRY.match(text, position)
        if entry is None:
            raise ArrayError(
                "its header is damaged, or it holds records: only plain arrays can be read"
            )
        values |= {key: value for key, value in entry.groupdict().items() if value is not None}
        position = entry.end()
    if len(values) != 3:
        raise ArrayError("its header is damaged")
    return values


def _plain_dtype(descr: str) -> np.dtype:
    if descr.lstrip("<>=|").startswith("O"):
        raise ArrayError("it holds pickled objects, which are never read; save plain arrays")
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError) as error:
        raise ArrayError(f"it is of type {descr!r}, which is unknown") from error
    if dtype.kind not in "biufcUS" or dtype.itemsize == 0:
        raise ArrayError(f"it is of type {descr!r}; only numbers, booleans and strings can be read")
    return dtype


def map_array(path: Path) -> np.ndarray:
    """The array of an .npy file, as a read-only memory map; in memory if it has no values.

    Raises:
        OSError: it cannot be read.
        ArrayError: it is damaged, or no plain array.
    """
    with open(path, "rb") as stream:
        header = read_header(stream, path.stat().st_size)
    order: Literal["F", "C"] = "F" if header.fortran_order else "C"
    if header.num_bytes == 0:
        return np.empty(header.shape, header.dtype, order)  # nothing cannot be mapped
    return np.memmap(path, header.dtype, "r", header.offset, header.shape, order)


def map_rows(path: Path) -> DenseRows | np.ndarray:
    """The matrix of an .npy file, to be read in chunks; as `map_array` where it is none.

    Raises:
        OSError: it cannot be read.
        ArrayError: it is damaged, or no plain array.
    """
    array = map_array(path)
    if array.ndim != 2 or 0 in array.shape:
        return array
    step = rows_per_chunk(array[:1].nbytes)

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(array), step):
            yield array[start : start + step]

    return DenseRows(array.shape, array.dtype, chunks, mapped=array)


def array_shape(path: Path) -> tuple[int, ...]:
    """The shape of the array in a `.npy` file.

    Raises:
        OSError: it cannot be read.
        ArrayError: it is damaged, or no plain array.
    """
    with open(path, "rb") as stream:
        return read_header(stream, path.stat().st_size).shape


def save_array(path: Path, array: np.ndarray, rows: np.ndarray | None = None) -> None:
    """Write an array as `numpy.save` does, which forgets why it could not: a full disk, a quota.

    Args:
        path: of the `.npy` file.
        array: plain values, no objects.
        rows: int `[k]`, which of the array's rows to write, in this order; they are put together
            some at a time. None writes the array as it is.

    Raises:
        OSError: it cannot be written.
    """
    header = np.lib.format.header_data_from_array_1_0(array)
    if rows is not None:
        header |= {"fortran_order": False, "shape": (len(rows), *array.shape[1:])}
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        if rows is None:
            stream.write(_bytes_of(array.T if header["fortran_order"] else array))
            return
        step = rows_per_chunk(array[:1].nbytes)
        for start in range(0, len(rows), step):
            stream.write(_bytes_of(array[rows[start : start + step]]))


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_array_file(path: Path) -> np.ndarray:
    """The array of an .npy file, in memory.

    Raises:
        OSError: it cannot be read.
        ArrayError: it is damaged, no plain array, or larger than the memory that is left.
    """
    with open(path, "rb") as stream:
        return read_array(stream, path.stat().st_size)


class ArrayFile:
    """An .npz file that is open for reading.

    Attributes:
        keys: names of its arrays.
    """

    def __init__(self, archive: Archive, path: Path) -> None:
        self._archive, self._path = archive, path
        self.keys = [name.removesuffix(".npy") for name in archive.entries if name.endswith(".npy")]

    def read(self, key: str) -> np.ndarray:
        """One of the arrays, in memory.

        Raises:
            ArrayError: it is missing, damaged, no plain array, or larger than the memory that is
                left.
        """
        name = f"{key}.npy"
        if key not in self.keys:
            raise ArrayError(f"{key}: it is missing")
        try:
            with self._archive.open(name) as stream:
                array = read_array(stream, self._archive.entries[name].file_size)
                stream.read(1)  # at its end, the archive compares its checksum
                return array
        except (ArrayError, ArchiveError) as error:
            raise ArrayError(f"{key}: {error}") from error

    def mapped(self, key: str) -> np.ndarray:
        """One of the arrays: a read-only memory map where it is stored unpacked, else in memory.

        It is read once in any case, so that damage is seen.

        Raises:
            ArrayError: as `read`.
        """
        array = self._map(key)
        if array is None:
            return self.read(key)
        with self._opened(key) as (stream, _):
            while stream.read(_CHUNK_BYTES):
                pass
        return array

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one of the arrays, which is not read.

        Raises:
            ArrayError: there is none, it is damaged, or no plain array.
        """
        if key not in self.keys:
            raise ArrayError(f"it has no {key}")
        with self._opened(key) as (_, header):
            return header.shape

    def rows(self, key: str) -> DenseRows | np.ndarray:
        """A matrix to be read in chunks; in memory where only that can be.

        Raises:
            ArrayError: it is damaged, or no plain array.
        """
        with self._opened(key) as (_, header):
            if header.fortran_order or len(header.shape) != 2 or 0 in header.shape:
                return self.read(key)
        return DenseRows(
            shape=header.shape,
            dtype=header.dtype,
            chunks=partial(_chunks, self._path, key),
            mapped=self._map(key),
        )

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[IO[bytes], Header]]:
        """The file of an array, behind its header."""
        name = f"{key}.npy"
        try:
            with self._archive.open(name) as stream:
                yield stream, read_header(stream, self._archive.entries[name].file_size)
        except (ArrayError, ArchiveError) as error:
            raise ArrayError(f"{key}: {error}") from error

    def _map(self, key: str) -> np.ndarray | None:
        start = self._archive.stored_at(f"{key}.npy")
        if start is None:
            return None
        with self._opened(key) as (_, header):
            order: Literal["F", "C"] = "F" if header.fortran_order else "C"
            if header.num_bytes == 0:
                return None  # nothing cannot be mapped
            return np.memmap(
                self._path, header.dtype, "r", start + header.offset, header.shape, order
            )


def _chunks(path: Path, key: str) -> Iterator[np.ndarray]:
    """The rows of a matrix of an .npz file, in order; the archive compares its checksum."""
    try:
        with open_arrays(path) as file, file._opened(key) as (stream, header):
            row_bytes = header.num_bytes // header.shape[0]
            step = rows_per_chunk(row_bytes)
            for start in range(0, header.shape[0], step):
                rows = min(step, header.shape[0] - start)
                content = stream.read(rows * row_bytes)
                if len(content) < rows * row_bytes:
                    raise ArrayError("it ends early")
                yield np.frombuffer(content, header.dtype).reshape(rows, -1)
            stream.read(1)  # at its end, the archive compares its checksum
    except (OSError, ArrayError) as error:
        raise UserError(
            f"{path} cannot be read as an .npz file of plain arrays: {error}"
        ) from error


def read_array(stream: IO[bytes], num_bytes: int | None) -> np.ndarray:
    """Read an array into memory; `num_bytes` as for `read_header`.

    Raises:
        ArrayError: it is damaged, no plain array, or larger than the memory that is left.
    """
    header = read_header(stream, num_bytes)
    free = free_memory()
    if header.num_bytes > free:
        raise ArrayError(
            f"it takes {human_bytes(header.num_bytes)}, but {human_bytes(free)} of memory are left"
        )
    values = np.empty(header.num_bytes, np.uint8)
    filled = 0
    while filled < len(values):
        chunk = stream.read(min(_CHUNK_BYTES, len(values) - filled))
        if not chunk:
            raise ArrayError("it ends early")
        values[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
        filled += len(chunk)
    array = values.view(header.dtype) if len(values) else np.empty(0, header.dtype)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # compiled code knows no other
    return array.reshape(header.shape, order="F" if header.fortran_order else "C")


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayFile]:
    """Open an .npz file.

    Raises:
        OSError: it cannot be read.
        ArrayError: it is no archive of arrays, or damaged; also from within the block.
    """
    with open(path, "rb") as stream:
        if stream.read(len(_MAGIC)) == _MAGIC:
            raise ArrayError("it is a single array")
    try:
        with open_archive(path) as archive:
            yield ArrayFile(archive, path)
    except ArchiveError as error:
        raise ArrayError(str(error)) from error
