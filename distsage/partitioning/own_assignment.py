"""An assignment of the user's own, from a file. Runs on the login host."""

from pathlib import Path

import numpy as np

from distsage.data.npy import ArrayError, map_array
from distsage.errors import UserError

_MAGIC = b"\x93NUMPY"
# A line with a part's number is shorter; what is longer is no such line.
_MOST_LINE_BYTES = 64


def read_assignment(path: Path, num_nodes: int, num_parts: int) -> np.ndarray:
    """Read which part each node goes to, in the order in which the graph has its nodes.

    Args:
        path: an `.npy` file of integers `[N]`, or text with a number on each line.
        num_nodes: N.
        num_parts: P; parts are numbered from 0.

    Returns:
        int32 `[N]`, in [0, P). No part is empty.

    Raises:
        UserError: the file cannot be read, has not one number for each node, a number that is no
            part's, or no node for a part.
    """
    try:
        with open(path, "rb") as stream:
            is_array = stream.read(len(_MAGIC)) == _MAGIC
        numbers = _read_array(path) if is_array else _read_text(path, num_nodes)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(numbers) != num_nodes:
        more = " or more" if len(numbers) > num_nodes and not is_array else ""
        raise UserError(
            f"{path} gives {len(numbers)}{more} nodes a part, but the graph has {num_nodes} nodes; "
            "give one number for each, in the graph's order"
        )
    wrong = np.flatnonzero((numbers < 0) | (numbers >= num_parts))
    if len(wrong):
        raise UserError(
            f"{path} gives node {wrong[0]} part {numbers[wrong[0]]}, but the {num_parts} parts are "
            f"0 to {num_parts - 1}"
        )
    assignment = numbers.astype(np.int32)
    sizes = np.bincount(assignment, minlength=num_parts)
    if sizes.min() == 0:
        raise UserError(
            f"{path} gives no node to part {int(np.argmin(sizes))} of {num_parts}; give each part "
            "a node, or ask for fewer parts"
        )
    return assignment


def _read_array(path: Path) -> np.ndarray:
    try:
        numbers = map_array(path)
    except ArrayError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise UserError(
            f"{path} has {numbers.dtype} of shape {numbers.shape}; give one integer for each node"
        )
    return numbers


def _read_text(path: Path, num_nodes: int) -> np.ndarray:
    """As far as one number beyond the graph's nodes."""
    numbers = np.empty(num_nodes + 1, np.int64)
    with open(path, "rb") as stream:
        for index in range(len(numbers)):
            line = stream.readline(_MOST_LINE_BYTES)
            if not line:
                return numbers[:index]
            word = line.strip()
            if not word.isdigit() or len(word) > 18:
                raise UserError(
                    f"line {index + 1} of {path} is {word[:20].decode(errors='replace')!r}, which "
                    "is no part's number; give one on each line"
                )
            numbers[index] = int(word)
    return numbers
