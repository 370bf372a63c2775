"""How answers are written: one file, or a directory with a file for each part and a manifest.

A directory is whole when `_manifest.json` is there. Readers of tables pass over names that begin
with `_`, so they read the directory as one table. Runs on trainer ranks and on one machine.
"""

import math
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from distsage.errors import UserError
from distsage.files import (
    atomic_file,
    explain_write_errors,
    read_json,
    remove_half_written,
    write_json,
)
from distsage.partitioning.parts import sha256

MANIFEST = "_manifest.json"
JOB = "_job"
"""What an MPI job keeps in the directory for itself: its logs."""
ROWS = "_rows"
"""What is kept there meanwhile of rows that do not fit into memory."""
_STARTED = "_started.json"
# What is made, and written, at a time: at most so many rows, and so many bytes of values.
_MOST_ROWS = 1 << 18
_CHUNK_BYTES = 1 << 23
WRITING_BYTES = 6 * _CHUNK_BYTES
"""Memory that writing takes; about."""


@dataclass(frozen=True)
class MadeRows:
    """An array that is made as it is written: a slice of it is an array in memory.

    Attributes:
        shape: `(n,)` or `(n, D)`.
        dtype: of its elements.
        make: makes the rows of a slice.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[slice], np.ndarray]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.make(rows)


Rows = np.ndarray | MadeRows


@dataclass(frozen=True)
class OutputDirectory:
    """A directory of predictions that is being written, or is whole.

    Until it is whole, `_started.json` says what it will hold, and `_part-N.json` that part N is
    written. A job that takes up one that was killed keeps the parts that are written.

    Attributes:
        path: of the directory.
        about: what the manifest will say beside the files.
    """

    path: Path
    about: dict[str, Any]

    def is_whole(self) -> bool:
        """Whether these very predictions are there already; what led to them is then removed.

        Raises:
            UserError: the directory holds something else.
        """
        if not self.path.exists():
            return False
        if not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file; name a directory")
        manifest = self.path / MANIFEST
        said = manifest if manifest.exists() else self.path / _STARTED
        if not said.exists():
            half_begun = {path.name for path in self.path.glob(f".{_STARTED}.*.tmp")}
            if {entry.name for entry in self.path.iterdir()} - {JOB, ROWS} - half_begun:
                raise UserError(
                    f"--output {self.path} holds other files; name another directory, or one that "
                    "is to be made"
                )
            return False
        found = read_json(said)
        for key, value in self.about.items():
            if found.get(key) != value:
                raise UserError(
                    f"--output {self.path} holds other predictions, which differ in {key}; name "
                    "another directory, or remove it first"
                )
        if said == manifest:
            self._clear()  # a job may have been killed when it had written the manifest
        return said == manifest

    def begin(self) -> None:
        """Make the directory, and have it say what it will hold. By one process.

        Raises:
            UserError: it holds something else, or cannot be written.
        """
        assert not self.is_whole()
        with explain_write_errors(self.path, "--output"):
            self.path.mkdir(parents=True, exist_ok=True)
            remove_half_written(self.path / "*")
            write_json(self.path / _STARTED, self.about)

    def written(self, part: int) -> bool:
        """Whether the files of a part are there, as they were written."""
        note = self.path / _note_of(part)
        if not note.exists():
            return False
        files = [(self.path / file["name"], file["bytes"]) for file in read_json(note)["files"]]
        return all(file.exists() and file.stat().st_size == size for file, size in files)

    def write_part(self, part: int, ids: Rows, values: Rows) -> None:
        """Write a part's rows; each file appears whole, and a note of them last.

        Args:
            part: its number.
            ids: `[n]`, original ids, int64 or unicode.
            values: float32 `[n, D]`.

        Raises:
            UserError: they cannot be written.
        """
        stem = self.path / f"part-{part:05d}"
        with explain_write_errors(self.path, "--output"):
            if self.about["file_format"] == "npy":
                contents = {".npy": values, ".ids.npy": ids}
                for ending, array in contents.items():
                    with atomic_file(stem.with_name(stem.name + ending)) as stream:
                        _write_array(stream, array)
            else:
                contents = {".parquet": values}
                with atomic_file(stem.with_name(f"{stem.name}.parquet")) as stream:
                    _write_parquet(stream, self.about["columns"], ids, values)
            files = []
            for ending in contents:
                file = stem.with_name(stem.name + ending)
                size = file.stat().st_size
                files.append({"name": file.name, "bytes": size, "sha256": sha256(file)})
            note = {"part": part, "rows": len(ids), "files": files}
            write_json(self.path / _note_of(part), note)

    def finish(self, num_parts: int) -> int:
        """Write the manifest, when all parts are written. By one process.

        Returns:
            The number of rows in all files.

        Raises:
            UserError: it cannot be written.
        """
        notes = [self.path / _note_of(part) for part in range(num_parts)]
        parts = [read_json(note) for note in notes]
        rows = sum(part["rows"] for part in parts)
        with explain_write_errors(self.path, "--output"):
            write_json(self.path / MANIFEST, {**self.about, "rows": rows, "parts": parts})
        self._clear()
        return int(rows)

    def _clear(self) -> None:
        """Remove what is of use until the manifest is there."""
        with explain_write_errors(self.path, "--output"):
            for scaffold in (*self.path.glob("_part-*.json"), self.path / _STARTED):
                scaffold.unlink(missing_ok=True)
            shutil.rmtree(self.path / ROWS, ignore_errors=True)


def _note_of(part: int) -> str:
    return f"_part-{part:05d}.json"


def check_file(path: Path) -> None:
    """See that one file can be written as `path`, before anything is read.

    Raises:
        UserError: it cannot.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a directory; name a file")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no directory {path.parent}; make it first")


def begin_file(path: Path) -> None:
    """Remove what a process that was killed has left of `path`. Nobody else may be writing it.

    Raises:
        UserError: it cannot be removed.
    """
    with explain_write_errors(path, "--output"):
        remove_half_written(path)


def rows_folder(output: Path, *, is_file: bool) -> Path:
    """Where rows lie that do not fit into memory, until `output` is written."""
    return output.with_name(f".{output.name}.rows") if is_file else output / ROWS


def write_file(path: Path, columns: Sequence[str], ids: Rows, values: Rows) -> None:
    """Write ids `[N]` and values `[N, D]`: an .npz of the two, or a table of `columns`.

    Raises:
        UserError: it cannot be written; an older file stays as it was.
    """
    with explain_write_errors(path, "--output"), atomic_file(path) as stream:
        if path.suffix == ".npz":
            with zipfile.ZipFile(stream, "w") as archive:
                for name, array in (("ids", ids), ("values", values)):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        _write_array(member, array)
        elif path.suffix == ".parquet":
            _write_parquet(stream, columns, ids, values)
        else:
            schema = _schema(columns, ids)
            stream.write((",".join(columns) + "\n").encode())  # pyarrow would quote the names
            options = pa.csv.WriteOptions(include_header=False)
            with pa.csv.CSVWriter(stream, schema, write_options=options) as writer:
                for batch in _batches(ids, values, schema):
                    writer.write_batch(batch)


def _write_array(stream: IO[Any], array: Rows) -> None:
    """Write an array in numpy's format."""
    descr = np.lib.format.dtype_to_descr(array.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    for rows in _slices(array):
        stream.write(np.ascontiguousarray(array[rows]).reshape(-1).view(np.uint8).data)


def _write_parquet(stream: IO[Any], columns: Sequence[str], ids: Rows, values: Rows) -> None:
    schema = _schema(columns, ids)
    with pa.parquet.ParquetWriter(stream, schema) as writer:
        for batch in _batches(ids, values, schema):
            writer.write_batch(batch)


def _schema(columns: Sequence[str], ids: Rows) -> pa.Schema:
    id_type = pa.int64() if ids.dtype.kind == "i" else pa.string()
    return pa.schema([(columns[0], id_type), *((name, pa.float32()) for name in columns[1:])])


def _slices(array: Rows) -> Iterator[slice]:
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    step = min(_MOST_ROWS, max(1, _CHUNK_BYTES // max(row_bytes, 1)))
    for begin in range(0, len(array), step):
        yield slice(begin, min(begin + step, len(array)))


def _batches(ids: Rows, values: Rows, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for rows in _slices(values):
        columns = [ids[rows], *np.ascontiguousarray(values[rows].T)]
        yield pa.record_batch(
            [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)],
            schema=schema,
        )
