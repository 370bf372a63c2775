"""Dense features that are read some rows at a time. Runs on the login host and in the local run.

A loader says where the rows lie and how to read them in order; `collect` checks and shapes each
chunk as it passes and leaves float32 rows in memory, in a file, or where they lie already.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from distsage.data.npy import map_array
from distsage.data.raw import DenseRows, rows_per_chunk
from distsage.errors import UserError
from distsage.files import allocate
from distsage.limits import require_memory
from distsage.progress import progress


def in_chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Views of an array's rows, in order."""
    step = rows_per_chunk(rows[:1].nbytes)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def collect(
    origin: str,
    rows: DenseRows,
    *,
    normalise: Callable[[np.ndarray], np.ndarray] | None,
    file: Path | None,
    missing: bool = False,
) -> np.ndarray:
    """Read all rows once.

    Args:
        origin: what messages call the data.
        rows: to read.
        normalise: takes and returns float32 `[k, F]`; None leaves the values as they are.
        file: where to write the rows; None keeps them in memory. It is not written where the rows
            can be mapped as they lie.
        missing: let values that are not finite pass.

    Returns:
        float32 `[N, F]`, C-contiguous: a read-only memory map unless `file` is None.

    Raises:
        UserError: values that are not finite, or see `DenseRows.chunks`.
        OSError: `file` cannot be written.
    """
    finite = FiniteCheck(origin)

    def shaped() -> Iterator[np.ndarray]:
        with progress("reading features", rows.shape[0], "rows") as advance:
            for chunk in rows.chunks():
                # What float32 cannot hold becomes infinite, and the check names it.
                with np.errstate(over="ignore"):
                    chunk = np.ascontiguousarray(chunk, np.float32)
                if not missing:
                    finite.look_at(chunk)
                yield chunk if normalise is None else normalise(chunk)
                advance(len(chunk))
        finite.finish()

    as_it_lies = rows.mapped
    if (
        file is not None
        and normalise is None
        and as_it_lies is not None
        and as_it_lies.dtype == np.float32
        and as_it_lies.flags.c_contiguous
    ):
        for _ in shaped():
            pass
        return as_it_lies
    if file is None:
        require_memory(4 * math.prod(rows.shape), f"{origin}: keeping the features")
        matrix = np.empty(rows.shape, np.float32)
        filled = 0
        for chunk in shaped():
            matrix[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return matrix
    with open(file, "wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": rows.shape}
        )
        for chunk in shaped():
            stream.write(chunk.data)
    return map_array(file)


def new_matrix(shape: tuple[int, ...], file: Path | None) -> np.ndarray:
    """Float32 of that shape, to be filled: a new file's memory map, or in memory without one.

    Raises:
        OSError: the disk is full.
    """
    if file is None or not math.prod(shape):
        return np.empty(shape, np.float32)
    allocate(file, 4 * math.prod(shape))
    return np.memmap(file, np.float32, "r+", 0, shape)


class FiniteCheck:
    """Looks at the rows of a matrix as they pass and counts values that are not finite."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._rows = self._bad = 0
        self._first: int | None = None

    def look_at(self, chunk: np.ndarray) -> None:
        """Take the next rows, float32 `[k, F]`."""
        bad = np.nonzero(~np.isfinite(chunk))[0]
        if len(bad) and self._first is None:
            self._first = self._rows + int(bad[0])
        self._bad += len(bad)
        self._rows += len(chunk)

    def finish(self) -> None:
        """After the last row.

        Raises:
            UserError: a value was not finite.
        """
        if self._bad:
            raise not_finite(self._origin, self._bad, self._first)


def not_finite(origin: str, count: int, first_row: int | None) -> UserError:
    """What to tell a user whose features hold so many values that are no numbers."""
    return UserError(
        f"{origin}: the features hold NaN or infinite values: {count} of them, the first "
        f"in row {first_row}; fill them in or remove their column"
    )
