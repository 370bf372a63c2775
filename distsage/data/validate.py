"""The checks where data enter: each function returns what Graph wants, or raises one sentence.

Runs on the login host and in the local run. Needs numpy and scipy only.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import scipy.sparse

from distsage.data.dense import FiniteCheck, collect, in_chunks, not_finite
from distsage.data.raw import DenseRows
from distsage.errors import UserError

MASKS = ("train_mask", "val_mask", "test_mask")

# Numbers that a sparse row may have: a batch with a longer one would take longer than all others.
_MOST_NUMBERS = 100_000


def check_edges(origin: str, src: np.ndarray, dst: np.ndarray, num_nodes: int) -> None:
    """Both ends of every edge are nodes.

    Raises:
        UserError: ids that are no integers, unequal lengths, an edge to a node that is not there.
    """
    for name, ids in (("source", src), ("destination", dst)):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise UserError(
                f"{origin}: the {name} ids of the edges are {_shape(ids)}; they have to be a list "
                "of integers"
            )
    if len(src) != len(dst):
        raise UserError(
            f"{origin}: there are {len(src)} edge sources but {len(dst)} edge destinations"
        )
    for ids in (src, dst):
        if len(ids) and (ids.min() < 0 or ids.max() >= num_nodes):
            edge = int(np.flatnonzero((ids < 0) | (ids >= num_nodes))[0])
            raise UserError(
                f"{origin}: edge {edge} goes from node {src[edge]} to node {dst[edge]}, but the "
                f"nodes are 0..{num_nodes - 1}"
            )


def check_features(
    origin: str,
    features: "np.ndarray | scipy.sparse.csr_matrix | DenseRows",
    num_nodes: int,
    *,
    normalise: bool = False,
    file: Path | None = None,
) -> "np.ndarray | scipy.sparse.csr_matrix":
    """The features as float32 `[N, F]`, dense and C-contiguous, or CSR.

    Args:
        origin: what the message calls the data.
        features: RawGraph.features.
        num_nodes: N.
        normalise: divide each row by the sum of its absolute values; rows of zeros stay.
        file: where rows go that are read in chunks; None keeps them in memory. See `collect`.

    Raises:
        UserError: not a numeric matrix of N rows, a broken CSR matrix, or values that are not
            finite.
        OSError: `file` cannot be written.
    """
    if features.ndim != 2 or features.dtype.kind not in "fiub" or features.shape[1] == 0:
        raise UserError(
            f"{origin}: the features are {_shape(features)}; they have to be a matrix of numbers "
            "with one row per node"
        )
    if features.shape[0] != num_nodes:
        raise UserError(
            f"{origin}: the features have {features.shape[0]} rows, but there are {num_nodes} nodes"
        )
    if isinstance(features, DenseRows):
        return collect(origin, features, normalise=row_normalised if normalise else None, file=file)
    # What float32 cannot hold becomes infinite, and the check below names it.
    with np.errstate(over="ignore"):
        if isinstance(features, np.ndarray):
            features = np.asanyarray(features, np.float32, order="C")  # a map stays one
            finite = FiniteCheck(origin)
            for chunk in in_chunks(features):
                finite.look_at(chunk)
            finite.finish()
        else:
            _check_csr(origin, features)
            features = features.astype(np.float32)
            bad = np.flatnonzero(~np.isfinite(features.data))
            if len(bad):
                row = int(np.searchsorted(features.indptr, bad[0], side="right")) - 1
                raise not_finite(origin, len(bad), row)
    return row_normalised(features) if normalise else features


def row_normalised(
    features: "np.ndarray | scipy.sparse.csr_matrix",
) -> "np.ndarray | scipy.sparse.csr_matrix":
    """Each row divided by the sum of its absolute values, float32; rows of zeros stay."""
    sums = np.asarray(abs(features).sum(axis=1)).ravel()
    factors = np.divide(1, sums, out=np.zeros(len(sums), np.float32), where=sums > 0)
    if isinstance(features, np.ndarray):
        return features * factors[:, None]
    scaled = features.copy()
    scaled.data *= np.repeat(factors, np.diff(features.indptr))
    return scaled


def _check_csr(origin: str, matrix: scipy.sparse.csr_matrix) -> None:
    """Columns exist and ascend within each row.

    Raises:
        UserError: they do not, or a row has very many numbers.
    """
    indptr, columns, width = matrix.indptr, matrix.indices, matrix.shape[1]
    lengths = np.diff(indptr)
    if indptr[0] != 0 or lengths.min() < 0 or indptr[-1] != len(columns):
        raise UserError(
            f"{origin}: the features are no CSR matrix: the bounds of their rows have to begin "
            f"with 0, ascend, and end with the {len(columns)} numbers that there are"
        )

    def row_of(number: int) -> int:
        return int(np.searchsorted(indptr, number, side="right")) - 1

    bad = np.flatnonzero((columns < 0) | (columns >= width))
    if len(bad):
        raise UserError(
            f"{origin}: row {row_of(bad[0])} of the features has a number in column "
            f"{columns[bad[0]]}, but the columns are 0..{width - 1}"
        )
    within = np.ones(max(len(columns) - 1, 0), bool)  # both numbers in one row
    ends = indptr[1:-1]
    within[ends[(ends > 0) & (ends < len(columns))] - 1] = False
    steps = np.diff(columns)
    for broken, what, remedy in (
        (steps == 0, "two numbers in column", "add them up, or keep one"),
        (steps < 0, "columns that do not ascend, at column", "sort each row by column"),
    ):
        bad = np.flatnonzero(within & broken)
        if len(bad):
            at = bad[0] + 1
            raise UserError(
                f"{origin}: row {row_of(at)} of the features has {what} {columns[at]}; {remedy}, "
                "as scipy's sum_duplicates() does"
            )
    if lengths.max(initial=0) > _MOST_NUMBERS:
        row = int(lengths.argmax())
        raise UserError(
            f"{origin}: row {row} of the features has {lengths[row]:,} numbers; a sparse row may "
            f"have {_MOST_NUMBERS:,}, so remove columns that most rows have, or check that row"
        )


def check_labels(
    origin: str,
    labels: np.ndarray | None,
    num_nodes: int,
    num_classes: int | None,
    *,
    required: bool = True,
) -> tuple[np.ndarray, int]:
    """The labels as Graph has them, and the number of classes.

    Args:
        origin: what the message calls the data.
        labels: `[N]` or `[N, 1]` classes, or `[N, C]` zeros and ones; None where there are none.
        num_nodes: N.
        num_classes: C as the data state it, or None.
        required: some node has to be labelled.

    Returns:
        int64 `[N]` with -1 for "not labelled", or float32 `[N, C]`; and C, 0 where no node is
        labelled.

    Raises:
        UserError: wrong length, labels that are no classes, negative or out of range.
    """
    if labels is None:
        return np.full(num_nodes, -1), 0
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "fiub":
        raise UserError(
            f"{origin}: the labels are {_shape(labels)}; they have to be one class number per "
            "node, or a matrix of zeros and ones for several labels per node"
        )
    if len(labels) != num_nodes:
        raise UserError(
            f"{origin}: there are {len(labels)} labels, but there are {num_nodes} nodes"
        )
    if labels.ndim == 2 and labels.shape[1] != 1:
        bad = np.flatnonzero(((labels != 0) & (labels != 1)).any(axis=1))
        if len(bad):
            raise UserError(
                f"{origin}: a label matrix holds only zeros and ones, but {len(bad)} rows have "
                f"other values, the first is row {bad[0]}"
            )
        if num_classes not in (None, labels.shape[1]) or labels.shape[1] == 0:
            raise UserError(
                f"{origin}: the label matrix has {labels.shape[1]} columns, but there are "
                f"{num_classes or 'no'} classes"
            )
        return labels.astype(np.float32), labels.shape[1]

    labels = labels.reshape(-1)
    if labels.dtype.kind == "f":
        labels = np.where(np.isnan(labels), -1, labels)
        bad = np.flatnonzero(labels != np.floor(labels))
        if len(bad):
            raise UserError(
                f"{origin}: labels have to be class numbers, but row {bad[0]} has {labels[bad[0]]}"
            )
    # Before the cast, which would wrap what int64 cannot hold.
    limit = np.iinfo(np.int64).max if num_classes is None else num_classes
    with np.errstate(over="ignore"):  # the limit is infinite in float16
        bad = np.flatnonzero((labels < -1) | (labels >= limit))
    if len(bad):
        allowed = "0 and up" if num_classes is None else f"0..{num_classes - 1}"
        raise UserError(
            f"{origin}: labels out of range: {len(bad)} of them, the first in row {bad[0]} is "
            f"{labels[bad[0]]}; classes are numbered {allowed}, and -1 means not labelled"
        )
    labels = labels.astype(np.int64)
    classes = np.unique(labels[labels >= 0])
    if not len(classes) and not required:
        return labels, 0
    if not len(classes):
        raise UserError(f"{origin}: no node is labelled")
    if num_classes is None:
        num_classes = int(classes[-1]) + 1
        # One stray number would silently widen the model's output: we ask instead.
        if num_classes > 2 * len(classes):
            row = int(np.flatnonzero(labels == classes[-1])[0])
            raise UserError(
                f"{origin}: labels out of range: row {row} has {num_classes - 1}, but only "
                f"{len(classes)} classes occur; number them 0..{len(classes) - 1}"
            )
    return labels, num_classes


def check_masks(
    origin: str, masks: Mapping[str, np.ndarray], labels: np.ndarray, split_index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train, val and test masks, bool `[N]` each: disjoint, not empty, labelled nodes only.

    Args:
        origin: what the message calls the data.
        masks: RawGraph.masks.
        labels: checked labels.
        split_index: which column of `[N, S]` masks; 0 for `[N]` masks.

    Raises:
        UserError: what the first line says does not hold, a mask is missing or has another length.
    """
    missing = [name for name in MASKS if name not in masks]
    if len(missing) == len(MASKS):
        raise UserError(
            f"{origin} comes without train, val and test masks; say how to draw them, such as "
            "--split 0.6/0.2/0.2"
        )
    if missing:
        raise UserError(
            f"{origin} has no {' and no '.join(missing)}; add it, or have all masks drawn with "
            "--split 0.6/0.2/0.2"
        )
    train, val, test = (
        _check_mask(origin, name, masks[name], len(labels), split_index) for name in MASKS
    )
    for name, mask in zip(MASKS, (train, val, test), strict=True):
        if not mask.any():
            raise UserError(f"{origin}: {name} is empty; every mask needs a node")
        if labels.ndim == 1 and (labels[mask] == -1).any():
            unlabelled = np.flatnonzero(mask & (labels == -1))
            raise UserError(
                f"{origin}: {name} has {len(unlabelled)} nodes without a label, the first is row "
                f"{unlabelled[0]}"
            )
    for name, other, both in (
        ("train_mask", "val_mask", train & val),
        ("train_mask", "test_mask", train & test),
        ("val_mask", "test_mask", val & test),
    ):
        if both.any():
            raise UserError(
                f"{origin}: {name} and {other} overlap: {both.sum()} nodes are in both, the first "
                f"is row {np.flatnonzero(both)[0]}"
            )
    return train, val, test


def take_masks(
    origin: str,
    masks: Mapping[str, np.ndarray],
    wanted: Collection[str],
    num_nodes: int,
    split_index: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train, val and test masks, bool `[N]` each; empty where not wanted, or where there is none.

    Args:
        origin, masks, split_index: as for `check_masks`.
        wanted: names out of MASKS.
        num_nodes: N.

    Raises:
        UserError: one has another length, or is no mask.
    """
    empty = np.zeros(num_nodes, bool)
    taken = {
        name: _check_mask(origin, name, mask, num_nodes, split_index)
        for name, mask in masks.items()
        if name in wanted
    }
    train, val, test = (taken.get(name, empty) for name in MASKS)
    return train, val, test


def _check_mask(
    origin: str, name: str, mask: np.ndarray, num_nodes: int, split_index: int
) -> np.ndarray:
    """One mask, bool `[N]`."""
    if mask.ndim not in (1, 2) or mask.dtype.kind not in "biuf":
        raise UserError(f"{origin}: {name} is {_shape(mask)}; it has to be one boolean per node")
    if len(mask) != num_nodes:
        raise UserError(f"{origin}: {name} has length {len(mask)}, but there are {num_nodes} nodes")
    num_splits = mask.shape[1] if mask.ndim == 2 else 1
    if not 0 <= split_index < num_splits:
        raise UserError(
            f"{origin} has {num_splits} split{'s' * (num_splits != 1)}, numbered from 0; there is "
            f"no split {split_index}"
        )
    mask = mask.reshape(num_nodes, num_splits)[:, split_index]
    if mask.dtype.kind != "b" and not ((mask == 0) | (mask == 1)).all():
        raise UserError(f"{origin}: {name} holds values other than 0 and 1")
    return mask.astype(bool)


def parse_split(split: str) -> tuple[float, float, float]:
    """Read `"0.6/0.2/0.2"`: the shares of train, val and test.

    Raises:
        UserError: not three positive numbers with a sum of 1 or less.
    """
    try:
        shares = tuple(float(part) for part in split.split("/"))
    except ValueError:
        shares = ()
    if len(shares) != 3 or not all(0 < share < 1 for share in shares) or sum(shares) > 1 + 1e-9:
        raise UserError(
            f"--split {split!r} is no split; give the shares of train, val and test nodes, three "
            "positive numbers with a sum of at most 1, such as 0.6/0.2/0.2"
        )
    return shares


def draw_masks(
    origin: str, labels: np.ndarray, shares: tuple[float, float, float], seed: int
) -> dict[str, np.ndarray]:
    """Masks over the labelled nodes, drawn uniformly; the same seed draws the same masks.

    Raises:
        UserError: too few labelled nodes for the shares.
    """
    labelled = np.flatnonzero(labels != -1) if labels.ndim == 1 else np.arange(len(labels))
    ends = np.rint(np.cumsum(shares) * len(labelled)).astype(np.int64)
    if np.diff(ends, prepend=0).min() == 0:
        raise UserError(
            f"{origin}: {len(labelled)} labelled nodes are too few for a split of "
            f"{'/'.join(map(str, shares))}: each mask needs a node"
        )
    drawn = np.random.default_rng(seed).permutation(labelled)
    masks = {}
    for name, chosen in zip(MASKS, np.split(drawn, ends)[:3], strict=True):
        masks[name] = np.zeros(len(labels), bool)
        masks[name][chosen] = True
    return masks


def _shape(array: "np.ndarray | scipy.sparse.csr_matrix | DenseRows") -> str:
    """How a message describes an array that it did not expect."""
    kind = {"O": "objects", "U": "strings", "S": "strings"}.get(array.dtype.kind, array.dtype.name)
    return f"{kind} of shape {list(array.shape)}"
