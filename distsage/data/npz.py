"""Graphs in one `.npz` file.

Runs on the login host and in the local run. Keys, read without unpickling anything:

    num_nodes                                   N
    edge_src, edge_dst                          [E] integers
    labels                                      [N] classes, or [N, C] zeros and ones
    features                                    [N, F], or as CSR:
    feat_indptr, feat_indices, feat_shape, feat_data   (without feat_data every value is 1)
    train_mask, val_mask, test_mask             [N] booleans, or [N, S] for S splits (optional)
    num_classes                                 C (optional)
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import scipy.sparse

from distsage.data.raw import RawGraph
from distsage.data.validate import MASKS
from distsage.errors import UserError

_CSR = ("feat_indptr", "feat_indices", "feat_shape")


def read_npz(path: Path) -> RawGraph:
    """Read the layout above.

    Raises:
        UserError: unreadable, pickled objects inside, a key missing, or a broken CSR matrix.
    """
    arrays = _arrays(path)
    wanted = ["num_nodes", "edge_src", "edge_dst", "labels"]
    wanted += _CSR if "feat_indptr" in arrays else ["features"]
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise UserError(
            f"{path} has no {' and no '.join(missing)}; its keys are {', '.join(arrays) or 'none'}"
        )
    return RawGraph(
        origin=str(path),
        num_nodes=_positive(path, "num_nodes", arrays["num_nodes"]),
        src=arrays["edge_src"],
        dst=arrays["edge_dst"],
        features=_csr(path, arrays) if "feat_indptr" in arrays else arrays["features"],
        labels=arrays["labels"],
        masks={name: arrays[name] for name in MASKS if name in arrays},
        num_classes=(
            _positive(path, "num_classes", arrays["num_classes"])
            if "num_classes" in arrays
            else None
        ),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{path} is a single array, not an .npz file")
        with archive:
            return {key: archive[key] for key in archive.files}
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as an .npz file of plain arrays: {error}"
        ) from error


def _positive(path: Path, key: str, value: np.ndarray) -> int:
    if value.size != 1 or value.dtype.kind not in "iu" or value.item() < 1:
        raise UserError(f"{path}: {key} has to be one positive integer")
    return int(value.item())


def _csr(path: Path, arrays: dict[str, np.ndarray]) -> scipy.sparse.csr_matrix:
    indices = arrays["feat_indices"]
    data = arrays.get("feat_data", np.ones(indices.shape, np.float32))
    # scipy knows no float16 matrices.
    data = data.astype(np.float32) if data.dtype.kind == "f" else data
    parts = (data, indices.astype(np.int64), arrays["feat_indptr"].astype(np.int64))
    try:
        shape = tuple(int(length) for length in arrays["feat_shape"])
        matrix = scipy.sparse.csr_matrix(parts, shape=shape)
        matrix.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: feat_* is no CSR matrix: {error}") from error
    return matrix
