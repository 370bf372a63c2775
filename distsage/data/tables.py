"""Graphs in a directory of tables.

Runs on the login host and in the local run. The directory holds an edge table and a node table,
each `.parquet`, `.csv` or `.csv.gz` with a header (letter case does not matter). A table may also
be a directory `edges` or `nodes` of such files, which follow one another in the order of their
names; names that begin with `.` or `_` are left out:

    edges.csv       src,dst
                    other columns are ignored
    nodes.csv       id,label,split,FEATURE,FEATURE,...
                    id: an integer or a string, as in src and dst; need not be 0..N-1
                    label: a class 0..C-1, empty for "not labelled"; or label_0, label_1, ... with
                        zeros and ones for several labels per node
                    split (optional): train, val, test or empty; or train_mask, val_mask and
                        test_mask with zeros and ones
                    every other column is a feature: a number, or a category (integers or texts)
                        where it is named as one, or a dictionary of texts in Parquet

A node may have no edge. Nodes are numbered in the order of the table's rows, and their ids are kept
as the graph's original ids. Node tables and edges are read some rows at a time; of the nodes, ids,
labels and masks are in memory.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from distsage.data.csc import index_dtype
from distsage.data.encoding import Encoding
from distsage.data.raw import CategoryColumn, DenseRows, RawGraph
from distsage.data.validate import MASKS
from distsage.errors import UserError, shown
from distsage.limits import free_memory, human_bytes, more_memory, require_disk, require_memory
from distsage.progress import progress

_IDS = ("id", "src", "dst")
_SUFFIXES = (".parquet", ".csv", ".csv.gz")
_SYNONYMS = {
    "source": "src",
    "target": "dst",
    "destination": "dst",
    "node_id": "id",
    "node": "id",
    "labels": "label",
    "valid_mask": "val_mask",
}
_SPLITS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "": -1, "none": -1}
# A csv row has to fit in one block; wide feature tables have long rows.
_BLOCK_BYTES = 1 << 26
_PARQUET_ROWS = 1 << 16  # that are read together


def read_tables(
    directory: Path,
    categorical: str | None = None,
    given: Encoding | None = None,
    scratch: Path | None = None,
    *,
    labelled: bool = True,
) -> RawGraph:
    """Read the layout above.

    Args:
        directory: of the two tables.
        categorical: category columns of the node table, with commas between.
        given: names the columns to take, instead of `categorical` and what is in the table.
        scratch: an existing directory, where the edges go; None keeps them in memory.
        labelled: there has to be a column of labels.

    Raises:
        OSError: the disk is full.
        UserError: a table is missing, unreadable or lacks a column; a node is named twice; an edge
            names a node that the node table does not have; a column cannot be a category.
    """
    edge_path, node_path = _table_path(directory, "edges"), _table_path(directory, "nodes")
    nodes = _Table(node_path)
    nodes.require("id")
    ids = _node_ids(nodes)
    src, dst = _edge_ends(_Table(edge_path), nodes, ids, scratch)
    labels = [name for name in nodes.names if re.fullmatch(r"label_[0-9]{1,9}", name)]
    if labels:
        labels.sort(key=lambda name: int(name.removeprefix("label_")))
    elif labelled or "label" in nodes.names:
        nodes.require("label")
        labels = ["label"]
    special = {"id", "split", *MASKS, *labels}
    features = [name for name in nodes.names if name not in special]
    if given is None or given.names is None:
        categories = _category_names(nodes, features, categorical)
        dense = [name for name in features if name not in categories]
    else:
        categories, dense = list(given.categories), list(given.names)
        for name in (*dense, *categories):
            nodes.require(name)
    if not dense and not categories:
        raise UserError(f"{node_path} has no feature column beside {shown(', '.join(nodes.names))}")
    return RawGraph(
        origin=str(directory),
        num_nodes=len(ids),
        src=src,
        dst=dst,
        features=DenseRows(
            (len(ids), len(dense)), np.dtype(np.float32), lambda: _feature_rows(nodes, dense)
        )
        if dense
        else np.empty((len(ids), 0), np.float32),
        labels=_labels(nodes, labels),
        masks=_masks(nodes),
        original_ids=_original_ids(str(directory), ids),
        feature_names=tuple(dense),
        categories={name: _category(nodes, name) for name in categories},
    )


def table_sizes(directory: Path) -> tuple[int, int, int] | None:
    """Nodes, listed edges and columns of nodes, as the Parquet files of both tables state.

    None where a table is none of Parquet, or is damaged: reading says what is wrong.

    Raises:
        UserError: a table is missing.
    """
    stated = []
    for stem in ("nodes", "edges"):
        path = _table_path(directory, stem)
        files = _files_of(path) if path.is_dir() else [path]
        if files[0].suffix != ".parquet":
            return None
        try:
            stated.append([pa.parquet.read_metadata(file) for file in files])
        except (OSError, pa.ArrowException):
            return None
    nodes, edges = (sum(file.num_rows for file in files) for files in stated)
    return nodes, edges, stated[0][0].num_columns


def _table_path(directory: Path, stem: str) -> Path:
    names = [stem + suffix for suffix in _SUFFIXES]
    found = [path for name in names if (path := directory / name).exists()]
    if (directory / stem).is_dir():
        found.append(directory / stem)
    if len(found) != 1:
        raise UserError(
            f"{directory} has {'both ' if found else 'no '}"
            f"{' and '.join(path.name for path in found) or f'{stem}.csv or {stem}.parquet'}; "
            f"it needs one table of {stem}"
        )
    return found[0]


class _TableError(Exception):
    """A file that cannot be read as asked; what is wrong is the cause."""

    def __init__(self, path: Path, reason: Exception) -> None:
        super().__init__(f"{path} cannot be read as a table: {shown(reason)}")


class _Table:
    """One table on disk, of one file or several; columns are read by name and when asked for.

    Attributes:
        path: the file, or the directory of the files.
        names: of its columns.
        types: of its columns; of a csv file a guess from its first rows.
        is_parquet: or else csv.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._paths = _files_of(path) if path.is_dir() else [path]
        self._lengths: dict[Path, int] = {}  # of the files that were read to their end
        self.is_parquet = path.suffix == ".parquet" or self._paths[0].suffix == ".parquet"
        for file in self._paths:
            headers, kinds = self._columns_of(file)
            names = [_as_named(header) for header in headers]
            found = dict(zip(names, headers, strict=True))
            types = dict(zip(names, kinds, strict=True))
            if len(found) < len(names):
                raise UserError(f"{file} has two columns of one name: {shown(', '.join(headers))}")
            if file == self._paths[0]:
                self.names, self.types, self._found = names, types, {file: found}
                continue
            if set(names) != set(self.names):
                raise UserError(
                    f"{file} has the columns {shown(', '.join(names))}, but "
                    f"{self._paths[0].name} has {shown(', '.join(self.names))}; the files of a "
                    "table need the same ones"
                )
            for name in (name for name in names if self.is_parquet and name in _IDS):
                if _is_number(types[name]) != _is_number(self.types[name]):
                    raise UserError(
                        f"{file}: the column {name!r} is of type {types[name]}, but in "
                        f"{self._paths[0].name} of type {self.types[name]}; write all ids of a "
                        "table as integers, or all as strings"
                    )
            self._found[file] = found

    def require(self, name: str) -> None:
        if name not in self.names:
            raise UserError(
                f"{self.path} has no column {name!r}; its columns are "
                f"{shown(', '.join(self.names))}"
            )

    @property
    def num_rows(self) -> int | None:
        """Of all files; None where only reading them tells."""
        if not self.is_parquet:
            return None
        return sum(pa.parquet.read_metadata(file).num_rows for file in self._paths)

    def read(self, types: dict[str, pa.DataType]) -> dict[str, pa.ChunkedArray]:
        """The named columns, converted."""
        try:
            return self.read_unchecked(types)
        except _TableError as error:
            raise UserError(str(error)) from error

    def read_unchecked(self, types: dict[str, pa.DataType]) -> dict[str, pa.ChunkedArray]:
        """As `read`, but what cannot be read or converted raises _TableError."""
        if (num_rows := self.num_rows) is not None:
            self._check_memory(8 * len(types) * num_rows)
        batches = []
        with progress(f"reading {self.path.name}", num_rows, "rows") as advance:
            for batch in self.batches(types):
                # What a packed file unpacks to, its size does not tell.
                self._check_memory(batch.nbytes)
                batches.append(batch)
                advance(len(batch))
        table = pa.Table.from_batches(batches, pa.schema(types))
        return {name: table[name] for name in types}

    def batches(self, types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        """The named columns, converted, some rows at a time, in order.

        Raises:
            _TableError: a file cannot be read, or values cannot be converted.
        """
        schema = pa.schema(types)
        for file in self._paths:
            length = 0
            try:
                for batch in self._batches_of(file, types):
                    found = self._found[file]
                    columns = [batch.column(found[name]).cast(types[name]) for name in types]
                    yield pa.record_batch(columns, schema=schema)
                    length += len(batch)
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                raise _TableError(file, error) from error
            self._lengths[file] = length
        # Arrow would keep for later what it has no use for now.
        pa.default_memory_pool().release_unused()

    def where(self, row: int) -> tuple[Path, int]:
        """The file of a row, and its place there; after the files before it were read."""
        for file in self._paths:
            length = self._lengths.get(file)
            if length is None or row < length:
                return file, row
            row -= length
        raise AssertionError(f"{self.path} has no row {row}")

    def _batches_of(self, file: Path, types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        found = {name: self._found[file][name] for name in types}
        if self.is_parquet:
            with pa.parquet.ParquetFile(file) as table:
                yield from table.iter_batches(_PARQUET_ROWS, columns=list(found.values()))
            return
        converting = pa.csv.ConvertOptions(
            include_columns=list(found.values()),
            column_types={found[name]: types[name] for name in types},
        )
        reading = pa.csv.ReadOptions(block_size=_BLOCK_BYTES)
        with pa.csv.open_csv(file, reading, convert_options=converting) as table:
            yield from table

    def _columns_of(self, file: Path) -> tuple[list[str], list[pa.DataType]]:
        try:
            if self.is_parquet:
                schema = pa.parquet.read_schema(file)
            else:
                with pa.csv.open_csv(file, pa.csv.ReadOptions(block_size=_BLOCK_BYTES)) as reader:
                    schema = reader.schema
            return schema.names, schema.types  # names are decoded here
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(str(_TableError(file, error))) from error

    def _check_memory(self, need: int) -> None:
        free = free_memory()
        if need > free:
            raise UserError(
                f"{self.path} takes {human_bytes(need)} more, but {human_bytes(free)} of memory "
                f"are left; {more_memory(need)}, or leave columns out"
            )


def _is_number(kind: pa.DataType) -> bool:
    # Integers are floating where a cell has no value.
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _files_of(directory: Path) -> list[Path]:
    """The files of a table, in the order of their names."""
    files = sorted(path for path in directory.iterdir() if path.name[0] not in "._")
    for file in files:
        if not file.name.endswith(_SUFFIXES) or not file.is_file():
            raise UserError(
                f"{file} is no table; the directory may hold .parquet, .csv and .csv.gz files"
            )
    if not files:
        raise UserError(f"{directory} holds no table")
    if len({file.suffix == ".parquet" for file in files}) > 1:
        raise UserError(f"{directory} holds tables of two kinds, Parquet and csv; take one kind")
    return files


def _as_named(column: str) -> str:
    """What a column is called here, whatever the letter case of its header."""
    name = column.strip().lower()
    return _SYNONYMS.get(name, name)


def _trim(names: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_trim_whitespace(names)


def _node_ids(nodes: _Table) -> pa.ChunkedArray:
    """The ids, int64 where all are integers in their usual spelling ("7", not "007")."""
    ids = _trim(nodes.read({"id": pa.string()})["id"])
    if not len(ids):
        raise UserError(f"{nodes.path} holds no nodes")
    empty = pc.fill_null(pc.equal(ids, ""), True)
    if pc.any(empty).as_py():
        file, row = nodes.where(pc.index(empty, True).as_py())
        raise UserError(f"{file}: row {row} has no id")
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = pc.value_counts(ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        raise UserError(f"{nodes.path} names node {shown(twice)} more than once")
    try:
        numbers = ids.cast(pa.int64())
    except pa.ArrowInvalid:
        return ids
    return numbers if pc.all(pc.equal(numbers.cast(pa.string()), ids)).as_py() else ids


def _edge_ends(
    edges: _Table, nodes: _Table, ids: pa.ChunkedArray, scratch: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers in the node table, `[E]` each; the edges' own order is lost."""
    edges.require("src")
    edges.require("dst")
    try:
        return _numbered(edges, nodes, ids, scratch)
    except _TableError as error:
        if not pa.types.is_integer(ids.type):
            raise UserError(str(error)) from error
    # An id that is no integer among integers: read as strings, it is named.
    try:
        return _numbered(edges, nodes, ids.cast(pa.string()), scratch)
    except _TableError as error:
        raise UserError(str(error)) from error


def _numbered(
    edges: _Table, nodes: _Table, ids: pa.ChunkedArray, scratch: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """As `_edge_ends`, but what cannot be read as the type of `ids` raises _TableError."""
    first_missing: tuple[int, str] | None = None
    dtype = np.dtype(index_dtype(len(ids)))
    if scratch is not None and (num_rows := edges.num_rows) is not None:
        what = f"{edges.path}: keeping the rows of the nodes of {num_rows:,} edges"
        require_disk(2 * dtype.itemsize * num_rows, scratch, what)
    with ExitStack() as stack:
        names = [] if scratch is None else [scratch / "edge_src", scratch / "edge_dst"]
        streams = [stack.enter_context(open(name, "wb")) for name in names]
        ends = _Ends(dtype, streams)
        for src, dst, edge in _row_numbers(edges, ids, scratch):
            missing = np.flatnonzero((src < 0) | (dst < 0))
            if len(missing):
                row = missing[np.argmin(edge[missing])]
                here = (int(edge[row]), "src" if src[row] < 0 else "dst")
                first_missing = min(here, first_missing or here)
            ends.append(src, dst)
        if first_missing is not None:
            raise _no_such_node(edges, nodes, *first_missing)
        return ends.finished()


def _row_numbers(
    edges: _Table, ids: pa.ChunkedArray, scratch: Path | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Some edges: row numbers of src and dst, -1 where there is none, and of the edge."""
    is_text = pa.types.is_string(ids.type)
    columns = {"src": ids.type, "dst": ids.type}
    schema = pa.schema({**columns, "edge": pa.int64()})

    def numbered() -> Iterator[pa.RecordBatch]:
        first = 0
        with progress("reading edges", edges.num_rows, "edges") as advance:
            for batch in edges.batches(columns):
                ends = [batch.column(name) for name in columns]
                ends = [pc.utf8_trim_whitespace(end) for end in ends] if is_text else ends
                edge = pa.array(np.arange(first, first + len(batch)))
                yield pa.record_batch([*ends, edge], schema=schema)
                first += len(batch)
                advance(len(batch))

    if not is_text and np.array_equal(ids.to_numpy(), np.arange(len(ids))):
        for batch in numbered():  # they are the row numbers
            src, dst = (batch.column(name).fill_null(-1).to_numpy() for name in columns)
            yield (
                *(np.where(end < len(ids), end, -1) for end in (src, dst)),
                batch["edge"].to_numpy(),
            )
        return
    from distsage.data.engine import row_numbers

    yield from row_numbers(str(edges.path), schema, numbered(), ids, scratch)


class _Ends:
    """The ends of edges as they come, kept in two files or, without these, in memory."""

    def __init__(self, dtype: np.dtype, streams: Sequence[IO[bytes]]) -> None:
        self._dtype = dtype
        self._streams = streams
        self._pieces: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def append(self, src: np.ndarray, dst: np.ndarray) -> None:
        for number, ids in enumerate((src, dst)):
            ids = np.ascontiguousarray(ids, self._dtype)
            if self._streams:
                self._streams[number].write(ids.data)
            else:
                self._pieces[number].append(ids)

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._streams:
            none = np.empty(0, self._dtype)
            src, dst = (np.concatenate([none, *pieces]) for pieces in self._pieces)
            return src, dst
        for stream in self._streams:
            stream.close()
        src, dst = (
            np.memmap(stream.name, self._dtype, "r")
            if Path(stream.name).stat().st_size
            else np.empty(0, self._dtype)
            for stream in self._streams
        )
        for stream in self._streams:
            Path(stream.name).unlink()  # the room is free again once the maps are gone
        return src, dst


def _no_such_node(edges: _Table, nodes: _Table, edge: int, end: str) -> UserError:
    """What to tell a user about an end of an edge; the edges were read once."""
    file, row = edges.where(edge)
    name = None
    for batch in edges.batches({end: pa.string()}):
        if edge < len(batch):
            name = batch.column(end)[edge].as_py()
            break
        edge -= len(batch)
    if name is None or not name.strip():
        return UserError(f"{file}: edge {row} has no {end}")
    return UserError(
        f"{file}: the {end} of edge {row} is node {shown(name.strip())}, which {nodes.path.name} "
        "does not have"
    )


def _category_names(nodes: _Table, features: list[str], categorical: str | None) -> list[str]:
    """The category columns, in the table's order: those that are named, and by their type."""
    named = [] if categorical is None else [_as_named(name) for name in categorical.split(",")]
    for name in named:
        nodes.require(name)
        if name not in features:
            raise UserError(
                f"--categorical {name}: this column of {nodes.path} is no feature; name others"
            )
    return [name for name in features if name in named or pa.types.is_dictionary(nodes.types[name])]


def _category(nodes: _Table, name: str) -> CategoryColumn:
    kind = nodes.types[name]
    if nodes.is_parquet and pa.types.is_floating(kind):
        # What became of integers where a cell has no value.
        try:
            numbers = nodes.read_unchecked({name: pa.int64()})[name]
        except _TableError as error:
            raise UserError(
                f"{nodes.path}: the category column {name!r} holds numbers that are no integers "
                f"({shown(error.__cause__)}); categories are integers or texts"
            ) from error
        texts = numbers.cast(pa.string())
    else:
        texts = _trim(nodes.read({name: pa.string()})[name])
    values = _in_order([value for value in pc.unique(texts).to_pylist() if value])
    codes = pc.fill_null(pc.index_in(texts, value_set=pa.array(values, pa.string())), -1)
    return CategoryColumn(codes.to_numpy(), tuple(values))


def _in_order(values: Sequence[str]) -> list[str]:
    """Integers by size, if all are spelled as usual; or else texts."""
    usual = re.compile(r"0|-?[1-9][0-9]{0,30}")
    return sorted(values, key=int if all(map(usual.fullmatch, values)) else None)


def _feature_rows(nodes: _Table, dense: list[str]) -> Iterator[np.ndarray]:
    """float32 `[k, F]`, in order; an empty cell is NaN."""
    try:
        for batch in nodes.batches(dict.fromkeys(dense, pa.float64())):
            yield _matrix(batch, dense, np.float32)
    except _TableError as error:
        raise UserError(
            f"{error}; if a column holds categories, name it with --categorical"
        ) from error


def _matrix(
    columns: "pa.RecordBatch | dict[str, pa.ChunkedArray]",
    names: list[str],
    dtype: type[np.floating],
) -> np.ndarray:
    """`[k, len(names)]`; an empty cell is NaN."""
    matrix = np.empty((len(columns[names[0]]), len(names)), dtype)
    with np.errstate(over="ignore"):
        for position, name in enumerate(names):
            matrix[:, position] = columns[name].to_numpy(zero_copy_only=False)
    return matrix


def _labels(nodes: _Table, names: list[str]) -> np.ndarray | None:
    """float64 `[N]` of the column `label`, `[N, C]` of others; None without a column."""
    if not names:
        return None
    matrix = _matrix(nodes.read(dict.fromkeys(names, pa.float64())), names, np.float64)
    return matrix[:, 0] if names == ["label"] else matrix


def _masks(nodes: _Table) -> dict[str, np.ndarray]:
    given = [name for name in MASKS if name in nodes.names]
    if given and "split" in nodes.names:
        raise UserError(f"{nodes.path} has both a split and {' and '.join(given)}; keep one")
    if "split" not in nodes.names:
        columns = nodes.read({name: pa.bool_() for name in given})
        return {name: pc.fill_null(column, False).to_numpy() for name, column in columns.items()}
    words = pc.utf8_lower(_trim(pc.fill_null(nodes.read({"split": pa.string()})["split"], "")))
    for word in pc.unique(words).to_pylist():
        if word not in _SPLITS:
            raise UserError(
                f"{nodes.path}: the split of a node is {shown(repr(word))}; it has to be train, "
                "val, test or empty"
            )
    part = pc.index_in(words, value_set=pa.array(list(_SPLITS))).to_numpy()
    mask = np.array(list(_SPLITS.values()))[part]
    return {name: mask == position for position, name in enumerate(MASKS)}


def _original_ids(origin: str, ids: pa.ChunkedArray) -> np.ndarray | None:
    if pa.types.is_integer(ids.type):
        numbers = ids.to_numpy()
        return None if np.array_equal(numbers, np.arange(len(numbers))) else numbers
    width = pc.max(pc.utf8_length(ids)).as_py()
    require_memory(4 * width * len(ids), f"{origin}: keeping ids of up to {width} characters")
    texts = np.empty(len(ids), f"<U{width}")
    for start in range(0, len(ids), _PARQUET_ROWS):  # a Python object takes more than its text
        some = ids.slice(start, _PARQUET_ROWS)
        texts[start : start + len(some)] = some.to_numpy()
    return texts
