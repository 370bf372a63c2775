"""Which nodes are answered for: a mask, or a file of original ids. Runs on trainer ranks, too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from distsage.config import NODES
from distsage.data.npy import ArrayError, map_array
from distsage.errors import UserError


def choose(
    nodes: str,
    ids: np.ndarray,
    mask: Callable[[str], np.ndarray],
    everyone: Callable[[np.ndarray], np.ndarray] = lambda found: found,
) -> np.ndarray:
    """Whether each node is chosen: bool `[n]`.

    Args:
        nodes: all, train, val, test, or the path of a file of original ids.
        ids: `[n]`, the original ids of the nodes that are here.
        mask: the bool mask `[n]` called train, val or test.
        everyone: adds up int64 counts over all that choose; collective where `nodes` is a file.

    Raises:
        UserError: the file cannot be read, or names a node that nobody has.
    """
    if nodes == "all":
        return np.ones(len(ids), bool)
    if nodes in NODES:
        return mask(nodes)
    wanted = _read_ids(Path(nodes), as_text=ids.dtype.kind == "U")
    found = everyone(np.isin(wanted, ids).astype(np.int64)) > 0
    if not found.all():
        unknown = wanted[~found]
        others = f" and {len(unknown) - 1:,} others" if len(unknown) > 1 else ""
        raise UserError(
            f"--nodes {nodes} names node {unknown[0]}{others}, but the graph has no such id; give "
            "original ids of this graph"
        )
    return np.isin(ids, wanted)


def _read_ids(path: Path, *, as_text: bool) -> np.ndarray:
    """The ids in a file: int64 or unicode `[w]`.

    Raises:
        UserError: it cannot be read, holds no ids, or ids of another kind than the graph's.
    """
    try:
        if path.suffix == ".npy":
            ids = np.asarray(map_array(path))
        else:
            lines = path.read_text("utf-8").splitlines()
            ids = np.array([line.strip() for line in lines if line.strip()], np.str_)
    except OSError as error:
        raise UserError(f"cannot read --nodes {path}: {error.strerror}") from error
    except (ArrayError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --nodes {path}: {error}") from error
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iuU":
        raise UserError(f"--nodes {path} is no list of ids; give original ids, one on each line")
    if as_text:
        return ids.astype(np.str_)
    try:
        return ids.astype(np.int64)
    except ValueError as error:
        raise UserError(
            f"--nodes {path} holds ids that are no numbers, but the ids of this graph are; give "
            "original ids of this graph"
        ) from error
