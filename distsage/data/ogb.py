"""The node classification sets of the Open Graph Benchmark.

Runs on the login host and in the local run. The package ogb is not used: its dataset class asks
questions on standard input and unpickles files that were downloaded, and its readers believe what
they read.

On disk: `ROOT/ogbn_arxiv/{RELEASE_v1.txt, raw/, split/}`, as ogb itself has it.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from distsage.data.download import Source, fetch_zip
from distsage.data.npy import ArrayError, open_arrays
from distsage.data.raw import DenseRows, RawGraph
from distsage.data.validate import MASKS
from distsage.errors import UserError
from distsage.limits import free_memory, human_bytes
from distsage.progress import elapsed

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 24
_GIB = 1 << 30


@dataclass(frozen=True)
class _Facts:
    """One data set, as ogb's table `nodeproppred/master.csv` (1.3.6) has it.

    Attributes:
        source: where its archive comes from. ogb says http; the server has https, too.
        split: which folder of `split/` counts.
        num_classes: C.
        binary: whether the raw files are .npz; else they are .csv.gz.
        add_inverse_edge: each edge is stored once, and its reverse is to be added.
    """

    source: Source
    split: str
    num_classes: int
    binary: bool = False
    add_inverse_edge: bool = False


_SERVER = "https://snap.stanford.edu/ogb/data/nodeproppred"
_SETS = {
    "ogbn-arxiv": _Facts(
        Source(
            f"{_SERVER}/arxiv.zip",
            _GIB,
            "49f85c801589ecdcc52cfaca99693aaea7b8af16a9ac3f41dd85a5f3193fe276",
        ),
        split="time",
        num_classes=40,
    ),
    "ogbn-products": _Facts(
        Source(
            f"{_SERVER}/products.zip",
            4 * _GIB,
            "5ea0a112edaec2141c0a2a612dd4aed58df97ff3e1ab1a0ca8238f43cbbb50a8",
        ),
        split="sales_ranking",
        num_classes=47,
        add_inverse_edge=True,
    ),
    "ogbn-papers100M": _Facts(
        Source(f"{_SERVER}/papers100M-bin.zip", 200 * _GIB),
        split="time",
        num_classes=172,
        binary=True,
    ),
}


def read_ogb(name: str, root: Path) -> RawGraph:
    """Read `name` below `root`; download it when its directory is not there.

    Original ids are ogb's. ogbn-products stores each edge once, and the reverse is added, as ogb
    does; the others stay directed.

    Raises:
        UserError: it cannot be downloaded, or what is on disk is incomplete or damaged.
    """
    facts = _SETS[name]
    directory = root / name.replace("-", "_")
    if not directory.exists():
        fetch_zip(name, facts.source, directory)
    raw, split = directory / "raw", directory / "split" / facts.split
    for path in (
        directory / "RELEASE_v1.txt",
        *(raw / file for file in (_BINARY_FILES if facts.binary else _CSV_FILES)),
        *(split / f"{part}.csv.gz" for part in _SPLITS),
    ):
        if not path.exists():
            raise UserError(
                f"{path} is missing, so {directory} is no complete copy of {name}; bring the file, "
                "or remove the directory to have it downloaded again"
            )
    logger.info("reading %s from %s", name, directory)
    read = _read_binary if facts.binary else _read_csv
    try:
        with elapsed(f"reading {name}"):
            num_nodes, edges, features, labels = read(raw)
            masks = {
                mask: _mask(split / f"{part}.csv.gz", num_nodes)
                for mask, part in zip(MASKS, _SPLITS, strict=True)
            }
    except (OSError, ValueError) as error:
        raise _unreadable(directory, error) from error
    src, dst = edges
    if facts.add_inverse_edge:
        src, dst = np.concatenate((src, dst)), np.concatenate((dst, src))
    return RawGraph(
        origin=name,
        num_nodes=num_nodes,
        src=src,
        dst=dst,
        features=features,
        labels=labels,
        masks=masks,
        num_classes=facts.num_classes,
    )


_CSV_FILES = [
    f"{stem}.csv.gz"
    for stem in ("edge", "num-node-list", "num-edge-list", "node-feat", "node-label")
]
_BINARY_FILES = ["data.npz", "node-label.npz"]
_SPLITS = ("train", "valid", "test")

# Number of nodes, the two ends of the edges, features and labels.
_Read = tuple[int, tuple[np.ndarray, np.ndarray], DenseRows | np.ndarray, np.ndarray]


def _read_csv(raw: Path) -> _Read:
    num_nodes = _one_number(raw / "num-node-list.csv.gz")
    num_edges = _one_number(raw / "num-edge-list.csv.gz")
    edges = _table(raw / "edge.csv.gz", pa.int64(), num_edges, 2)
    features = _feature_rows(raw / "node-feat.csv.gz", num_nodes)
    labels = _table(raw / "node-label.csv.gz", pa.float64(), num_nodes)
    return num_nodes, (edges[:, 0], edges[:, 1]), features, labels


def _read_binary(raw: Path) -> _Read:
    with open_arrays(raw / "data.npz") as arrays:
        nothing = np.zeros(0)
        keys = arrays.keys
        counts = arrays.read("num_nodes_list") if "num_nodes_list" in keys else nothing
        edges = arrays.mapped("edge_index") if "edge_index" in keys else nothing
        features = arrays.rows("node_feat") if "node_feat" in keys else nothing
    with open_arrays(raw / "node-label.npz") as arrays:
        if "node_label" not in arrays.keys:
            raise ArrayError("node-label.npz has no node_label")
        labels = arrays.read("node_label")
    if counts.shape != (1,) or counts.dtype.kind not in "iu" or counts[0] < 1:
        raise ArrayError("num_nodes_list in data.npz is not the number of nodes of one graph")
    if edges.ndim != 2 or len(edges) != 2:
        raise ArrayError("edge_index in data.npz is no list of edges")
    return int(counts[0]), (edges[0], edges[1]), features, labels


def _one_number(path: Path) -> int:
    number = int(_table(path, pa.int64(), 1, 1)[0, 0])
    if not 0 <= number < 1 << 40:
        raise ValueError(f"{path.name} says {number}")
    return number


def _mask(path: Path, num_nodes: int) -> np.ndarray:
    mask = np.zeros(num_nodes, bool)
    for nodes in _batches(path, pa.int64(), 1):
        if len(nodes) and (nodes.min() < 0 or nodes.max() >= num_nodes):
            raise UserError(f"{path} names nodes outside 0..{num_nodes - 1}")
        mask[nodes[:, 0]] = True
    return mask


def _table(
    path: Path, dtype: pa.DataType, num_rows: int, num_columns: int | None = None
) -> np.ndarray:
    """A table of numbers without a header, `[num_rows, num_columns]`; an empty cell is NaN.

    Raises:
        OSError, ValueError: it cannot be read, or has another shape.
    """
    batches = _batches(path, dtype, num_columns)
    first = next(batches, np.zeros((0, num_columns or 1), dtype.to_pandas_dtype()))
    need, free = num_rows * first.shape[1] * first.itemsize, free_memory()
    if need > free:
        raise ValueError(
            f"{path.name} takes {human_bytes(need)}, but {human_bytes(free)} of memory are left"
        )
    table = np.empty((num_rows, first.shape[1]), first.dtype)
    filled = 0
    for rows in (batch for each in ([first], batches) for batch in each):
        if filled + len(rows) > num_rows:
            break
        table[filled : filled + len(rows)] = rows
        filled += len(rows)
    else:
        if filled == num_rows:
            return table
    raise ValueError(f"{path.name} does not have the {num_rows} rows that it should")


def _feature_rows(path: Path, num_rows: int) -> DenseRows:
    """A table of numbers as `_table` reads it, in chunks."""
    first = next(_batches(path, pa.float32(), None), np.zeros((0, 1), np.float32))

    def chunks() -> Iterator[np.ndarray]:
        seen = 0
        try:
            for rows in _batches(path, pa.float32(), None):
                seen += len(rows)
                if seen > num_rows:
                    break
                yield rows
            if seen != num_rows:
                raise ValueError(f"{path.name} does not have the {num_rows} rows that it should")
        except (OSError, ValueError) as error:
            raise _unreadable(path.parent.parent, error) from error

    return DenseRows((num_rows, first.shape[1]), first.dtype, chunks)


def _unreadable(directory: Path, error: Exception) -> UserError:
    return UserError(
        f"{directory} cannot be read as {directory.name.replace('_', '-')} "
        f"({' '.join(str(error).split())}); remove it to have it downloaded again"
    )


def _batches(path: Path, dtype: pa.DataType, num_columns: int | None) -> Iterator[np.ndarray]:
    """The rows of a table of numbers, some at a time, so that none takes more than is expected."""
    options = pa.csv.ReadOptions(block_size=_BLOCK_BYTES, autogenerate_column_names=True)
    try:
        with pa.csv.open_csv(path, options) as probe:
            names = probe.schema.names
        if num_columns not in (None, len(names)):
            raise ValueError(f"{path.name} has {len(names)} columns, not {num_columns}")
        types = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, dtype))
        with pa.csv.open_csv(path, options, convert_options=types) as reader:
            for batch in reader:
                columns = [
                    column.to_numpy(zero_copy_only=False).astype(dtype.to_pandas_dtype())
                    if column.null_count == 0 or pa.types.is_floating(dtype)
                    else _no_number(path)
                    for column in batch.columns
                ]
                yield np.stack(columns, axis=1)
    except pa.ArrowException as error:
        raise ValueError(f"{path.name}: {error}") from error


def _no_number(path: Path) -> np.ndarray:
    raise ValueError(f"{path.name} has an empty cell")
