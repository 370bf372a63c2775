"""Graphs in one `.npz` file, or in a directory with each array in an `.npy` file of its own.

Runs on the login host and in the local run. Keys, read without unpickling anything; in a directory
`labels` is `labels.npy`, and so on:

    num_nodes                                   N (in a directory it may be left to the labels)
    edge_src, edge_dst                          [E] integers
    labels                                      [N] classes, or [N, C] zeros and ones
    features                                    [N, F], or as CSR:
    feat_indptr, feat_indices, feat_shape, feat_data   (without feat_data every value is 1)
    train_mask, val_mask, test_mask             [N] booleans, or [N, S] for S splits (optional)
    num_classes                                 C (optional)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from distsage.data.npy import (
    ArrayError,
    array_shape,
    map_array,
    map_rows,
    open_arrays,
    read_array_file,
)
from distsage.data.raw import RawGraph
from distsage.data.validate import MASKS
from distsage.errors import UserError
from distsage.progress import elapsed

_GRAPH = ("num_nodes", "edge_src", "edge_dst", "labels")
_CSR = ("feat_indptr", "feat_indices", "feat_shape")
_KNOWN = {*_GRAPH, *_CSR, "feat_data", "features", *MASKS, "num_classes"}
# Beyond what any graph has: what a damaged number would make us allocate.
_MOST_NODES = 1 << 40
_MOST_CLASSES = 1 << 20
_MOST_FEATURES = 1 << 24


def is_array_directory(path: Path) -> bool:
    """Whether a directory is one of arrays, not of tables."""
    return (path / "labels.npy").exists() or (path / "edge_src.npy").exists()


def read_npz(path: Path, *, labelled: bool = True) -> RawGraph:
    """Read the layout above.

    Edges and dense features stay in their file where they lie there unpacked.

    Args:
        path: of the file, or of the directory.
        labelled: there have to be labels.

    Raises:
        UserError: unreadable, pickled objects inside, a key missing, or a broken CSR matrix.
    """
    arrays = _arrays_of_directory(path) if path.is_dir() else _arrays(path)
    wanted = [key for key in _GRAPH if labelled or key != "labels"]
    wanted += _CSR if "feat_indptr" in arrays else ["features"]
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise UserError(
            f"{path} has no {' and no '.join(missing)}; its keys are {', '.join(arrays) or 'none'}"
        )
    return RawGraph(
        origin=str(path),
        num_nodes=_positive(path, "num_nodes", arrays["num_nodes"], _MOST_NODES),
        src=arrays["edge_src"],
        dst=arrays["edge_dst"],
        features=_csr(path, arrays) if "feat_indptr" in arrays else arrays["features"],
        labels=arrays.get("labels"),
        masks={name: arrays[name] for name in MASKS if name in arrays},
        num_classes=(
            _positive(path, "num_classes", arrays["num_classes"], _MOST_CLASSES)
            if "num_classes" in arrays
            else None
        ),
    )


def npz_sizes(path: Path) -> tuple[int, int, int] | None:
    """Nodes, listed edges and columns, from the headers of a file or directory of that layout.

    None where features are sparse, and where headers do not tell: reading says what is wrong.
    """
    keys = ("features", "edge_src")
    try:
        if path.is_dir():
            rows, edges = (array_shape(path / f"{key}.npy") for key in keys)
        else:
            with open_arrays(path) as file:
                rows, edges = (file.shape(key) for key in keys)
    except (OSError, ArrayError):
        return None
    if len(rows) != 2 or len(edges) != 1:
        return None
    return rows[0], edges[0], rows[1]


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays of the layout above; others are left unread, and dense features are for later."""
    try:
        with open_arrays(path) as file, elapsed(f"reading {path.name}"):
            read = {"features": file.rows, "edge_src": file.mapped, "edge_dst": file.mapped}
            return {key: read.get(key, file.read)(key) for key in file.keys if key in _KNOWN}
    except (OSError, ArrayError) as error:
        raise UserError(
            f"{path} cannot be read as an .npz file of plain arrays: {error}"
        ) from error


def _arrays_of_directory(directory: Path) -> dict[str, Any]:
    """As `_arrays`."""
    read: dict[str, Callable[[Path], Any]] = {
        "features": map_rows,
        "edge_src": map_array,
        "edge_dst": map_array,
    }
    arrays: dict[str, Any] = {}
    for key in sorted(_KNOWN):
        path = directory / f"{key}.npy"
        if not path.exists():
            continue
        try:
            arrays[key] = read.get(key, read_array_file)(path)
        except (OSError, ArrayError) as error:
            raise UserError(f"{path} cannot be read as a plain array: {error}") from error
    if "labels" in arrays and arrays["labels"].ndim:
        arrays.setdefault("num_nodes", np.array(len(arrays["labels"])))
    return arrays


def _positive(path: Path, key: str, value: np.ndarray, most: int) -> int:
    if value.size != 1 or value.dtype.kind not in "iu" or not 1 <= value.item() <= most:
        raise UserError(f"{path}: {key} has to be one positive integer, {most:,} at most")
    return int(value.item())


def _csr(path: Path, arrays: dict[str, np.ndarray]) -> scipy.sparse.csr_matrix:
    indptr, indices, shape = (arrays[key] for key in _CSR)
    data = arrays.get("feat_data", np.ones(indices.shape, np.float32))
    try:
        return csr_of(data, indices, indptr, shape)
    except ValueError as error:
        raise UserError(f"{path}: feat_* is no CSR matrix: {error}") from error


def csr_of(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: np.ndarray
) -> scipy.sparse.csr_matrix:
    """A CSR matrix whose arrays have the types and lengths of one.

    Where its rows begin and which columns they have is for `validate.check_features` to see, before
    any compiled code follows them.

    Args:
        data: `[NNZ]` numbers; float16 becomes float32, which scipy knows.
        indices: `[NNZ]` columns.
        indptr: `[N + 1]` where each row starts.
        shape: N and the number of columns.

    Raises:
        ValueError: it is none.
    """
    if not all(array.ndim == 1 and array.dtype.kind in "iu" for array in (indices, indptr, shape)):
        raise ValueError("its indices are no lists of integers")
    if data.ndim != 1 or data.dtype.kind not in "biuf":
        raise ValueError("its values are no list of numbers")
    if len(shape) != 2 or not 0 < shape[1] <= _MOST_FEATURES or shape[0] != len(indptr) - 1:
        raise ValueError(f"its shape is said to be {shape.tolist()}")
    indptr, indices = indptr.astype(np.int64), indices.astype(np.int64)
    if len(data) != len(indices):
        raise ValueError(f"it has {len(data)} values but {len(indices)} columns for them")
    data = data.astype(np.float32) if data.dtype.kind == "f" else data
    return scipy.sparse.csr_matrix(
        (data, indices, indptr), shape=(int(shape[0]), int(shape[1])), copy=False
    )
