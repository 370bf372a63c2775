"""What takes more memory than there may be: names of nodes to row numbers, and sorting edges.

Runs on the login host and in the local run. DuckDB does it, within a bound on its memory, beyond
which it puts data into files.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import duckdb
import numpy as np
import pyarrow as pa

from distsage.data.csc import index_dtype
from distsage.data.graph import Topology
from distsage.data.npy import map_array
from distsage.errors import UserError
from distsage.limits import (
    free_memory,
    human_bytes,
    more_memory,
    require_disk,
    require_memory,
    usable_cores,
)
from distsage.progress import progress

# Below that DuckDB does not get far, whatever the data.
_LEAST_BYTES = 128 << 20
# Of the memory that is left; the rest is for what passes outside DuckDB's own count.
_SHARE = 0.6
# What sorting puts on the disk, an edge: 12.6 bytes seen with 120 million and 1 GB of memory.
_SPILL_BYTES_PER_EDGE = 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ROWS = 1 << 18  # that pass together
# In the order written here: the smaller table, of nodes, is the one that is kept.
_AS_WRITTEN = "join_order,build_side_probe_side"

_NUMBERED = """
    SELECT source.number AS src, destination.number AS dst, edge
    FROM edges
    LEFT JOIN nodes AS source ON edges.src = source.id
    LEFT JOIN nodes AS destination ON edges.dst = destination.id
"""
_SORTED = "SELECT src, dst FROM edges ORDER BY dst, src"


def row_numbers(
    origin: str,
    schema: pa.Schema,
    edges: Iterator[pa.RecordBatch],
    ids: pa.ChunkedArray,
    scratch: Path | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The rows of `ids` in which the ends of edges are.

    Args:
        origin: what messages call the data.
        schema: `src` and `dst`, of the type of `ids`, and `edge`, int64.
        edges: of that schema. What reading them raises is raised here.
        ids: `[N]`, each once.
        scratch: an existing directory for what memory does not hold; None puts nothing there.

    Yields:
        Some edges, in any order: src and dst, int32 or int64 `[k]`, -1 where `ids` has no such
        end; and edge, int64 `[k]`.

    Raises:
        UserError: too little memory.
        OSError: the disk is full.
    """
    numbers = pa.array(np.arange(len(ids), dtype=index_dtype(len(ids))))
    with _engine(f"{origin}: finding the nodes of edges", schema, edges, scratch) as connection:
        connection.register("nodes", pa.table({"id": ids, "number": numbers}))
        for batch in connection.sql(_NUMBERED).to_arrow_reader(_ROWS):
            src, dst = (batch.column(name).fill_null(-1).to_numpy() for name in ("src", "dst"))
            yield src, dst, batch.column("edge").to_numpy()


def sorted_topology(
    origin: str,
    src: np.ndarray,
    dst: np.ndarray,
    num_nodes: int,
    *,
    both_directions: bool,
    scratch: Path,
) -> Topology:
    """What `csc_from_edges` gives, and `symmetrise` after it, in memory of a few words a node.

    Args:
        origin: what messages call the data.
        src: integer `[E]`, ids in [0, num_nodes); a memory map is read in chunks.
        dst: integer `[E]`, likewise.
        num_nodes: N.
        both_directions: add the reverse of every edge and drop duplicates.
        scratch: an existing directory; `indices.npy` is written there, and mapped.

    Raises:
        UserError: too little memory or disk.
        OSError: the disk is full.
    """
    dtype = np.dtype(index_dtype(num_nodes))
    schema = pa.schema([(name, pa.from_numpy_dtype(dtype)) for name in ("src", "dst")])
    most = len(src) * (2 if both_directions else 1)

    # An edge is half done when it is handed over, and done when it comes back sorted.
    def edges() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(src), _ROWS):
            ends = [np.array(ids[start : start + _ROWS], dtype) for ids in (src, dst)]
            for columns in (ends, ends[::-1]) if both_directions else (ends,):
                yield pa.record_batch([pa.array(column) for column in columns], schema=schema)
                advance(len(columns[0]) / 2)

    what = f"{origin}: sorting {most:,} edges"
    require_disk((_SPILL_BYTES_PER_EDGE + dtype.itemsize) * most, scratch, what)
    path = scratch / "indices.npy"
    degrees = np.zeros(num_nodes, np.int64)
    written = 0
    last = (-1, -1)
    with (
        _engine(what, schema, edges(), scratch) as connection,
        progress("sorting edges", most, "edges") as advance,
        open(path, "wb") as stream,
    ):
        _write_header(stream, dtype, most)
        start = stream.tell()
        for batch in connection.sql(_SORTED).to_arrow_reader(_ROWS):
            source, destination = (batch.column(name).to_numpy() for name in ("src", "dst"))
            advance(len(source) / 2)
            if both_directions and len(source):
                new = np.empty(len(source), bool)
                new[0] = (source[0], destination[0]) != last
                new[1:] = (np.diff(source) != 0) | (np.diff(destination) != 0)
                last = (source[-1], destination[-1])
                source, destination = source[new], destination[new]
            stream.write(np.ascontiguousarray(source).data)
            first = destination[0] if len(destination) else 0
            counts = np.bincount(destination - first)
            degrees[first : first + len(counts)] += counts
            written += len(source)
        stream.seek(0)
        _write_header(stream, dtype, written)
        assert stream.tell() == start  # numpy leaves room for a longer or shorter number
    indptr = np.zeros(num_nodes + 1, np.int64)
    np.cumsum(degrees, out=indptr[1:])
    return Topology(indptr, map_array(path))


def _write_header(stream: IO[bytes], dtype: np.dtype, length: int) -> None:
    np.lib.format.write_array_header_1_0(
        stream,
        {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (length,),
        },
    )


@contextmanager
def _engine(
    what: str, schema: pa.Schema, edges: Iterator[pa.RecordBatch], scratch: Path | None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection of its own that knows the edges; `what` is done with it, as a message begins."""
    require_memory(_LEAST_BYTES, what)
    bound = max(int(_SHARE * free_memory()), _LEAST_BYTES)
    failures: list[Exception] = []

    def passed_on() -> Iterator[pa.RecordBatch]:
        try:
            yield from edges
        except Exception as error:
            failures.append(error)
            raise

    with TemporaryDirectory(dir=scratch, prefix="duckdb-") as folder:
        connection = duckdb.connect(
            config={
                "memory_limit": f"{bound >> 20}MiB",
                "threads": min(usable_cores(), max(bound >> 27, 1)),
                "preserve_insertion_order": False,
                "temp_directory": "" if scratch is None else folder,
                "max_temp_directory_size": "1000TB",  # the disk itself is the bound
            }
        )
        connection.execute("SET enable_progress_bar = false")  # ours is shown
        connection.execute(f"SET disabled_optimizers = '{_AS_WRITTEN}'")
        connection.register("edges", pa.RecordBatchReader.from_batches(schema, passed_on()))
        try:
            yield connection
        # What happens while results are fetched comes through Arrow, as text.
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if failures:
                raise failures[0] from None
            for number in _FULL:
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number)) from error
            if "Out of Memory" in str(error):
                raise UserError(
                    f"{what} takes more than the {human_bytes(bound)} of memory that it may use; "
                    f"{more_memory(2 * bound)}"
                ) from error
            raise
        finally:
            connection.close()
            pa.default_memory_pool().release_unused()  # Arrow would keep it for later
