"""From the columns of a dataset to features, and what a model keeps of it for its predictions.

Runs on the login host, in the local run and in predict. A cell without a value is filled or
refused, dense columns are standardised, and category columns become one-hot columns, sparse from
the start. What is learned from the data on the way is an Encoding; with a given one, another table
becomes features in the same way.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse

from distsage.data.dense import new_matrix
from distsage.data.raw import DenseRows, RawGraph
from distsage.data.validate import check_features
from distsage.errors import UserError
from distsage.limits import human_bytes

logger = logging.getLogger(__name__)

Fill = Literal["mean", "zero"]

# Rows that are computed with together, so that little memory is needed beside the features.
_ROWS = 65536
# What the values of all category columns may take: every checkpoint has them in its header.
_MOST_VALUE_BYTES = 32 << 20
# Beside its own letters, a value takes so much in an indented file.
_BYTES_AROUND_A_VALUE = 16


@dataclass(frozen=True)
class Encoding:
    """How columns became features: dense ones first, then the one-hot columns of each category.

    Attributes:
        num_dense: D, how many dense columns there are.
        names: of the dense columns, in order; None where the data name none.
        categories: category column to its values, in the order of their one-hot columns.
        fill: `[D]`, what a cell without a value became; None: there was to be none.
        mean, deviation: `[D]`, of the train nodes; None: the dense columns are as they were. A
            column of deviation 0 became 0.
    """

    num_dense: int
    names: tuple[str, ...] | None = None
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fill: tuple[float, ...] | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    @property
    def num_features(self) -> int:
        """F: dense and one-hot columns."""
        return self.num_dense + sum(len(values) for values in self.categories.values())

    def to_json(self) -> dict[str, Any]:
        """As manifests and model files have it; a list of pairs keeps the categories in order."""
        lists = {
            name: None if value is None else list(value)
            for name, value in (
                *(("names", self.names), ("fill", self.fill)),
                *(("mean", self.mean), ("deviation", self.deviation)),
            )
        }
        categories = [[name, list(values)] for name, values in self.categories.items()]
        return {"num_dense": self.num_dense, "categories": categories, **lists}

    @classmethod
    def from_json(cls, value: Any) -> "Encoding":
        """The inverse of `to_json`; believes nothing.

        Raises:
            ValueError: `value` is no encoding.
        """
        try:
            encoding = cls(
                value["num_dense"],
                _texts(value["names"]),
                {name: _texts(values) or () for name, values in value["categories"]},
                *(_numbers(value[name]) for name in ("fill", "mean", "deviation")),
            )
            sound = encoding._is_sound() and len(encoding.categories) == len(value["categories"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("how its columns became features cannot be understood") from error
        if not sound:
            raise ValueError("what it says of how its columns became features contradicts itself")
        return encoding

    def _is_sound(self) -> bool:
        of_dense = (self.names, self.fill, self.mean, self.deviation)
        return (
            type(self.num_dense) is int
            and all(each is None or len(each) == self.num_dense for each in of_dense)
            and all(isinstance(name, str) for name in self.categories)
            and all(0 < len(set(each)) == len(each) for each in self.categories.values())
            and (self.mean is None) == (self.deviation is None)
            and min(self.deviation or (), default=0) >= 0
            and self.num_features > 0
        )


def _texts(value: Any) -> tuple[str, ...] | None:
    if value is not None and not (
        isinstance(value, list) and all(isinstance(text, str) for text in value)
    ):
        raise ValueError("no list of texts")
    return None if value is None else tuple(value)


def _numbers(value: Any) -> tuple[float, ...] | None:
    if value is not None and not (
        isinstance(value, list) and all(type(x) is float and math.isfinite(x) for x in value)
    ):
        raise ValueError("no list of numbers")
    return None if value is None else tuple(value)


def divides_rows(feature_norm: str, *, is_sparse: bool) -> bool:
    """Whether `--feature-norm` has each row of features divided by the sum of its absolute values.

    Args:
        feature_norm: the option's value.
        is_sparse: whether the data store their features sparse. Of features that were read: they
            are sparse, and have no encoding, since one-hot columns are made sparse only then.
    """
    return feature_norm == "row" or (feature_norm == "auto" and is_sparse)


def disagreement(trained: Encoding | None, found: Encoding | None) -> str | None:
    """Why features that were encoded elsewhere are not those of a model; None if they are.

    Args:
        trained: the model's.
        found: of the other features.

    Returns:
        A clause with `theirs` for what was found.
    """
    ours, theirs = (each or Encoding(0) for each in (trained, found))
    if (ours.mean is None) != (theirs.mean is None):
        return (
            "the model takes standardised features, and theirs are not"
            if theirs.mean is None
            else "theirs are standardised, and the model's were not"
        )
    if (ours.mean, ours.deviation) != (theirs.mean, theirs.deviation):
        return "theirs are standardised by other numbers than the model's"
    if list(ours.categories) != list(theirs.categories):
        return (
            f"the model has the category columns {_listed(ours.categories)}, they have "
            f"{_listed(theirs.categories)}"
        )
    for name, values in ours.categories.items():
        if values != theirs.categories[name]:
            return f"the values of their category column {name!r} are not the model's"
    if None not in (ours.names, theirs.names) and ours.names != theirs.names:
        return "their columns have other names, or another order, than the model's"
    if None not in (ours.fill, theirs.fill) and ours.fill != theirs.fill:
        return "their missing values were filled in with other numbers than the model's"
    return None


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"


def encode(
    raw: RawGraph,
    train_mask: np.ndarray,
    *,
    standardise: bool = False,
    fill: Fill | None = None,
    given: Encoding | None = None,
    scratch: Path | None = None,
) -> tuple["np.ndarray | scipy.sparse.csr_matrix", Encoding | None]:
    """The features of a graph that was read, and how they came to be.

    Args:
        raw: what was read; its features are an array, which may be a memory map.
        train_mask: bool `[N]`; means and deviations are of these nodes, so that a prediction for
            the others owes nothing to their own values.
        standardise: take the mean from each dense column and divide it by its deviation.
        fill: what a dense cell without a value becomes: the column's mean, or zero. A category
            cell without one has no one in its group. Without `fill` such cells are refused.
        given: the encoding to apply, instead of what the other arguments say.
        scratch: an existing directory for dense rows; None keeps them in memory.

    Returns:
        float32 `[N, F]`, dense, or CSR where the data are sparse or have category columns; and the
        encoding, None where there is nothing to keep.

    Raises:
        UserError: a cell has no value, the features are not what `check_features` wants, a category
            column has too many values, or the data do not fit the given encoding.
    """
    if given is not None:
        _check_fit(raw, given)
    if scipy.sparse.issparse(raw.features):
        if standardise:
            logger.warning(
                "%s: --feature-norm standard leaves features that are stored sparse as they are",
                raw.origin,
            )
        return check_features(raw.origin, raw.features, raw.num_nodes), None

    assert not isinstance(raw.features, DenseRows)
    dense, filled = raw.features, None
    if raw.feature_names is not None:
        dense, filled = _filled(raw, train_mask, fill, given, scratch)
    if not raw.categories or dense.shape[1]:
        dense = check_features(raw.origin, dense, raw.num_nodes)
    encoding = given or Encoding(
        dense.shape[1],
        raw.feature_names,
        _values_of(raw),
        None if filled is None else tuple(filled.tolist()),
    )
    if given is None and standardise:
        mean, deviation = _moments(dense, np.flatnonzero(train_mask))
        encoding = replace(encoding, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))
    if encoding.mean is not None and encoding.deviation is not None:
        if encoding.categories:
            logger.warning(
                "%s: --feature-norm standard is for the %d dense columns; category columns stay "
                "zeros and ones",
                *(raw.origin, encoding.num_dense),
            )
        moments = np.array(encoding.mean), np.array(encoding.deviation)
        dense = _standardised(raw, dense, *moments, scratch)
    if not encoding.categories:
        worth_keeping = raw.feature_names is not None or encoding.mean is not None
        return dense, encoding if worth_keeping else None
    one_hot = _one_hot(raw, encoding)
    blocks = [scipy.sparse.csr_matrix(dense), one_hot] if encoding.num_dense else [one_hot]
    return scipy.sparse.hstack(blocks, format="csr", dtype=np.float32), encoding


def _check_fit(raw: RawGraph, given: Encoding) -> None:
    """The data have the columns that an encoding is about; a table was read by their names."""
    if given.categories and raw.feature_names is None:
        raise UserError(
            f"{raw.origin} is no directory of tables, but the model was trained on the category "
            f"columns {_listed(given.categories)} of one"
        )
    if given.mean is None:
        return
    if scipy.sparse.issparse(raw.features) or raw.features.shape[1:] != (given.num_dense,):
        found = "x".join(map(str, raw.features.shape[1:])) or "no"
        kind = "sparse" if scipy.sparse.issparse(raw.features) else "dense"
        raise UserError(
            f"{raw.origin} has {found} {kind} feature columns, but the model was trained on "
            f"{given.num_dense} standardised ones; name the graph that it was trained on"
        )


def _slices(num_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, _ROWS):
        yield slice(start, start + _ROWS)


def _filled(
    raw: RawGraph,
    train_mask: np.ndarray,
    fill: Fill | None,
    given: Encoding | None,
    scratch: Path | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The dense columns with a number in every cell, and the numbers for cells without, `[D]`."""
    dense, names = raw.features, raw.feature_names
    assert isinstance(dense, np.ndarray)
    assert names is not None
    if given is not None:
        numbers = None if given.fill is None else np.array(given.fill)
    elif fill == "mean":
        numbers = _means_of_values(raw.origin, dense, np.flatnonzero(train_mask), names)
    else:
        numbers = None if fill is None else np.zeros(len(names))
    if numbers is None:
        _refuse_missing(raw, names, "train" if given is not None else "read the table")
        return dense, None
    filled = new_matrix(dense.shape, None if scratch is None else scratch / "filled")
    for rows in _slices(len(dense)):
        filled[rows] = np.where(np.isnan(dense[rows]), numbers, dense[rows])
    return filled, numbers


def _refuse_missing(raw: RawGraph, names: Sequence[str], do_what: str) -> None:
    """Raise a sentence about the first cell without a value, if there is one."""
    dense = raw.features
    assert isinstance(dense, np.ndarray)
    count = 0
    firsts: list[tuple[int, str]] = []
    for rows in _slices(raw.num_nodes):
        missing = np.isnan(dense[rows])
        count += int(missing.sum())
        if missing.any() and not firsts:
            row, column = np.argwhere(missing)[0]
            firsts.append((rows.start + int(row), names[column]))
    for name, category in raw.categories.items():
        missing = np.flatnonzero(category.codes < 0)
        count += len(missing)
        firsts += [(int(row), name) for row in missing[:1]]
    if firsts:
        row, name = min(firsts)
        raise UserError(
            f"{raw.origin}: the column {name!r} has no value in row {row + 1} of the node table "
            f"(rows count from 1, without the header; cells without a value: {count:,}); write "
            f"them, or {do_what} with --fill mean or --fill zero"
        )


def _means_of_values(
    origin: str, dense: np.ndarray, rows: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Of the cells that have a value, in some rows: float64 `[D]`."""
    total, count = np.zeros(dense.shape[1]), np.zeros(dense.shape[1], np.int64)
    for part in _slices(len(rows)):
        values = dense[rows[part]].astype(np.float64)
        there = ~np.isnan(values)
        total += np.where(there, values, 0).sum(axis=0)
        count += there.sum(axis=0)
    if not count.all():
        name = names[int(np.flatnonzero(count == 0)[0])]
        raise UserError(
            f"{origin}: --fill mean has nothing to fill the column {name!r} with: no train node "
            "has a value there; leave the column out, or give --fill zero"
        )
    return total / count


def _moments(dense: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each float32 column in some rows, float64 `[D]`.

    Equal numbers have a deviation of exactly 0: float64 adds up 2**29 of float32 without rounding.
    """
    total, squares = np.zeros(dense.shape[1]), np.zeros(dense.shape[1])
    for part in _slices(len(rows)):
        total += dense[rows[part]].sum(axis=0, dtype=np.float64)
    mean = total / len(rows)
    for part in _slices(len(rows)):
        squares += ((dense[rows[part]] - mean) ** 2).sum(axis=0)
    return mean, np.sqrt(squares / len(rows))


def _standardised(
    raw: RawGraph,
    dense: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    scratch: Path | None,
) -> np.ndarray:
    """float32 `[N, D]`; columns of deviation 0 become 0."""
    result = new_matrix(dense.shape, None if scratch is None else scratch / "standardised")
    divisor = np.where(deviation > 0, deviation, np.inf)
    with np.errstate(over="ignore"):
        for rows in _slices(len(dense)):
            result[rows] = (dense[rows] - mean) / divisor
            bad = np.argwhere(~np.isfinite(result[rows]))
            if len(bad):
                row, column = rows.start + int(bad[0][0]), int(bad[0][1])
                name = column if raw.feature_names is None else repr(raw.feature_names[column])
                raise UserError(
                    f"{raw.origin}: --feature-norm standard makes the number {dense[row, column]} "
                    f"in row {row + 1} of the column {name} too large: the train nodes' deviation "
                    f"is {deviation[column]:g}; correct it, or leave the column out"
                )
    return result


def _values_of(raw: RawGraph) -> dict[str, tuple[str, ...]]:
    """The values of each category column.

    Raises:
        UserError: a column has too many to teach anything, or all together take too much.
    """
    size = 0
    for name, category in raw.categories.items():
        width = len(category.values)
        if not width:
            raise UserError(
                f"{raw.origin}: the category column {name!r} has no value in any row; leave it out"
            )
        if 2 * width > raw.num_nodes:
            raise UserError(
                f"{raw.origin}: the category column {name!r} has {width:,} values in "
                f"{raw.num_nodes:,} rows and would become {width:,} one-hot columns; it may have "
                "half as many values as there are rows, so leave it out, or join its rare values"
            )
        size += sum(_BYTES_AROUND_A_VALUE + len(json.dumps(value)) for value in category.values)
        if size > _MOST_VALUE_BYTES:
            raise UserError(
                f"{raw.origin}: the values of the category columns up to {name!r} take "
                f"{human_bytes(size)}, and a model keeps {human_bytes(_MOST_VALUE_BYTES)}; leave a "
                "column out, or join its rare values"
            )
    return {name: category.values for name, category in raw.categories.items()}


def _one_hot(raw: RawGraph, encoding: Encoding) -> scipy.sparse.csr_matrix:
    """A one for each category cell, in the column of its value; values without one are counted."""
    columns = np.empty((raw.num_nodes, len(encoding.categories)), np.int64)
    width, unseen = 0, {}
    for group, (name, values) in enumerate(encoding.categories.items()):
        category = raw.categories[name]
        place = {value: width + position for position, value in enumerate(values)}
        # The last entry is for the code -1 of a cell without a value.
        places = np.array([place.get(value, -1) for value in category.values] + [-1], np.int64)
        columns[:, group] = places[category.codes]
        unseen[name] = int(np.count_nonzero((category.codes >= 0) & (columns[:, group] < 0)))
        width += len(values)
    if any(unseen.values()):
        counts = ", ".join(f"{name} {count:,}" for name, count in unseen.items() if count)
        logger.warning(
            "%s: cells with a category that the model was not trained on: %s (%s); their one-hot "
            "columns are all zero",
            *(raw.origin, f"{sum(unseen.values()):,}", counts),
        )
    there = columns >= 0
    indptr = np.zeros(raw.num_nodes + 1, np.int64)
    np.cumsum(there.sum(axis=1), out=indptr[1:])
    ones = np.ones(int(indptr[-1]), np.float32)
    return scipy.sparse.csr_matrix((ones, columns[there], indptr), (raw.num_nodes, width))
