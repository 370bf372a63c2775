"""Graphs in a directory of tables.

Runs on the login host and in the local run. The directory holds an edge table and a node table,
each `.parquet`, `.csv` or `.csv.gz` with a header (letter case does not matter):

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

A node may have no edge. The ids are kept as the graph's original ids.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from distsage.data.encoding import Encoding
from distsage.data.raw import CategoryColumn, RawGraph
from distsage.data.validate import MASKS
from distsage.errors import UserError
from distsage.limits import free_memory, human_bytes

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


def read_tables(
    directory: Path, categorical: str | None = None, given: Encoding | None = None
) -> RawGraph:
    """Read the layout above.

    Args:
        directory: of the two tables.
        categorical: category columns of the node table, with commas between.
        given: names the columns to take, instead of `categorical` and what is in the table.

    Raises:
        UserError: a table is missing, unreadable or lacks a column; a node is named twice; an edge
            names a node that the node table does not have; a column cannot be a category.
    """
    edge_path, node_path = _table_path(directory, "edges"), _table_path(directory, "nodes")
    nodes = _Table(node_path)
    nodes.require("id")
    ids = _node_ids(nodes)
    src, dst = _edge_ends(edge_path, node_path, ids)
    labels = [name for name in nodes.names if re.fullmatch(r"label_[0-9]{1,9}", name)]
    if labels:
        labels.sort(key=lambda name: int(name.removeprefix("label_")))
    else:
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
        raise UserError(
            f"{node_path} has no feature column beside {_shown(', '.join(nodes.names))}"
        )
    columns = _read_numbers(nodes, labels, dense)
    label_matrix = _matrix(columns, labels, len(ids), np.float64)
    return RawGraph(
        origin=str(directory),
        num_nodes=len(ids),
        src=src,
        dst=dst,
        features=_matrix(columns, dense, len(ids), np.float32),
        labels=label_matrix[:, 0] if labels == ["label"] else label_matrix,
        masks=_masks(nodes),
        original_ids=_original_ids(ids),
        feature_names=tuple(dense),
        categories={name: _category(nodes, name) for name in categories},
    )


def _table_path(directory: Path, stem: str) -> Path:
    found = [path for suffix in _SUFFIXES if (path := directory / (stem + suffix)).exists()]
    if len(found) != 1:
        raise UserError(
            f"{directory} has {'both ' if found else 'no '}"
            f"{' and '.join(path.name for path in found) or f'{stem}.csv or {stem}.parquet'}; "
            f"it needs one table of {stem}"
        )
    return found[0]


class _Table:
    """One table on disk; columns are read by name and only when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.suffix == ".parquet":
                schema = pa.parquet.read_schema(path)
            else:
                with pa.csv.open_csv(path, pa.csv.ReadOptions(block_size=_BLOCK_BYTES)) as reader:
                    schema = reader.schema
            found = schema.names
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            self._unreadable(error)
        self.names = [_as_named(name) for name in found]
        # Of a csv file it is a guess from its first rows.
        self.types = dict(zip(self.names, schema.types, strict=True))
        self._found = dict(zip(self.names, found, strict=True))
        if len(self._found) < len(found):
            raise UserError(f"{path} has two columns of one name: {_shown(', '.join(found))}")

    def require(self, name: str) -> None:
        if name not in self._found:
            raise UserError(
                f"{self.path} has no column {name!r}; its columns are "
                f"{_shown(', '.join(self.names))}"
            )

    def read(self, types: dict[str, pa.DataType]) -> dict[str, pa.ChunkedArray]:
        """The named columns, converted."""
        try:
            return self.read_unchecked(types)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            self._unreadable(error)

    def read_unchecked(self, types: dict[str, pa.DataType]) -> dict[str, pa.ChunkedArray]:
        """As `read`, but values that cannot be converted raise pyarrow's ArrowInvalid."""
        found = {name: self._found[name] for name in types}
        if self.path.suffix == ".parquet":
            self._check_memory(8 * len(types) * pa.parquet.read_metadata(self.path).num_rows)
            table = pa.parquet.read_table(self.path, columns=list(found.values()))
            return {name: table[found[name]].cast(types[name]) for name in types}
        reading = pa.csv.ReadOptions(block_size=_BLOCK_BYTES)
        converting = pa.csv.ConvertOptions(
            include_columns=list(found.values()),
            column_types={found[name]: types[name] for name in types},
        )
        if self.path.suffix == ".gz":
            # What it unpacks to, its size does not tell: it is read a block at a time.
            batches = []
            with pa.csv.open_csv(self.path, reading, convert_options=converting) as reader:
                for batch in reader:
                    self._check_memory(batch.nbytes)
                    batches.append(batch)
                table = pa.Table.from_batches(batches, reader.schema)
        else:
            table = pa.csv.read_csv(self.path, reading, convert_options=converting)
        return {name: table[found[name]] for name in types}

    def _check_memory(self, need: int) -> None:
        free = free_memory()
        if need > free:
            raise UserError(
                f"{self.path} takes {human_bytes(need)} more, but {human_bytes(free)} of memory "
                "are left; use a machine with more, or leave columns out"
            )

    def _unreadable(self, error: Exception) -> NoReturn:
        raise UserError(f"{self.path} cannot be read as a table: {_shown(error)}") from error


def _shown(what: object) -> str:
    """Text from a file as a message quotes it: one line, not too long."""
    text = " ".join(str(what).split())
    return text if len(text) <= 500 else f"{text[:480]}..."


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
        raise UserError(f"{nodes.path}: row {pc.index(empty, True).as_py()} has no id")
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = pc.value_counts(ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        raise UserError(f"{nodes.path} names node {_shown(twice)} more than once")
    try:
        numbers = ids.cast(pa.int64())
    except pa.ArrowInvalid:
        return ids
    return numbers if pc.all(pc.equal(numbers.cast(pa.string()), ids)).as_py() else ids


def _edge_ends(
    edge_path: Path, node_path: Path, ids: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers in the node table, `[E]` each."""
    edges = _Table(edge_path)
    edges.require("src")
    edges.require("dst")
    try:
        ends = edges.read_unchecked({"src": ids.type, "dst": ids.type})
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        # An id that is no integer among integers: read as strings, it is named below.
        ends = edges.read({"src": pa.string(), "dst": pa.string()})
        ids = ids.cast(pa.string())
    rows = []
    for name in ("src", "dst"):
        names = _trim(ends[name]) if pa.types.is_string(ids.type) else ends[name]
        found = pc.index_in(names, value_set=ids)
        if found.null_count:
            edge = pc.index(pc.is_null(found), True).as_py()
            if names[edge].as_py() in (None, ""):
                raise UserError(f"{edge_path}: edge {edge} has no {name}")
            raise UserError(
                f"{edge_path}: the {name} of edge {edge} is node {_shown(names[edge])}, which "
                f"{node_path.name} does not have"
            )
        rows.append(found.to_numpy())
    return rows[0], rows[1]


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
    if nodes.path.suffix == ".parquet" and pa.types.is_floating(kind):
        # What became of integers where a cell has no value.
        try:
            numbers = nodes.read_unchecked({name: pa.int64()})[name]
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{nodes.path}: the category column {name!r} holds numbers that are no integers "
                f"({_shown(error)}); categories are integers or texts"
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


def _read_numbers(nodes: _Table, labels: list[str], dense: list[str]) -> dict[str, pa.ChunkedArray]:
    try:
        return nodes.read_unchecked({name: pa.float64() for name in labels + dense})
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        nodes.read({name: pa.float64() for name in labels})
        raise UserError(
            f"{nodes.path} cannot be read as a table: {_shown(error)}; if a column holds "
            "categories, name it with --categorical"
        ) from error


def _matrix(
    columns: dict[str, pa.ChunkedArray], names: list[str], num_rows: int, dtype: type[np.floating]
) -> np.ndarray:
    """`[num_rows, len(names)]`; an empty cell is NaN."""
    matrix = np.empty((num_rows, len(names)), dtype)
    with np.errstate(over="ignore"):
        for position, name in enumerate(names):
            matrix[:, position] = columns[name].to_numpy()
    return matrix


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
                f"{nodes.path}: the split of a node is {_shown(repr(word))}; it has to be train, "
                "val, test or empty"
            )
    part = pc.index_in(words, value_set=pa.array(list(_SPLITS))).to_numpy()
    mask = np.array(list(_SPLITS.values()))[part]
    return {name: mask == position for position, name in enumerate(MASKS)}


def _original_ids(ids: pa.ChunkedArray) -> np.ndarray | None:
    array = ids.to_numpy()
    if array.dtype == object:
        return array.astype(np.str_)
    return None if np.array_equal(array, np.arange(len(array))) else array
