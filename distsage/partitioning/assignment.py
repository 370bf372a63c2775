"""Which part each node goes to: by whom it is chosen, and how. Runs on the login host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from distsage.config import PartMethod
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.partitioning.kaminpar import run_kaminpar
from distsage.partitioning.metis import balanced_quantities, run_metis
from distsage.partitioning.own_assignment import read_assignment
from distsage.partitioning.undirected import undirected_file

_NAMES = {"kaminpar": "KaMinPar", "metis": "METIS", "random": "at random"}


@dataclass(frozen=True)
class Choice:
    """Who assigns, and why.

    Attributes:
        method: who it is.
        reason: a few words for people.
        path: with `file`, the user's own assignment.
    """

    method: Literal["kaminpar", "metis", "random", "file"]
    reason: str
    path: Path | None = None


def choose(
    asked: PartMethod | Path,
    *,
    balance_train: bool = False,
    balance_edges: bool = False,
    attempts: int = 1,
) -> Choice:
    """Who assigns: `auto` is KaMinPar, but METIS where more than the number of nodes is balanced.

    Args:
        asked: a method, or the path of an assignment of the user's own.
        balance_train, balance_edges: see `assigner`.
        attempts: seeds that are tried.

    Raises:
        UserError: what is asked for cannot be done together.
    """
    balance = " ".join(
        option
        for option, wanted in (
            ("--balance-train", balance_train),
            ("--balance-edges", balance_edges),
        )
        if wanted
    )
    if isinstance(asked, Path):
        choice = Choice("file", f"the assignment in {asked}", asked)
    elif asked == "auto" and balance:
        choice = Choice("metis", f"METIS, since {balance} is more than KaMinPar balances")
    elif asked == "auto":
        choice = Choice("kaminpar", "KaMinPar, which takes less time and memory than METIS")
    else:
        choice = Choice(asked, f"{_NAMES[asked]}, as --part-method asks")
    if balance and choice.method == "kaminpar":
        raise UserError(
            f"KaMinPar balances the number of nodes and no more; leave out {balance}, or let "
            "--part-method be auto or metis"
        )
    if balance and choice.method == "file":
        raise UserError(f"{asked} says which part each node goes to; leave out {balance}")
    if attempts > 1 and choice.method == "metis":
        raise UserError(
            f"METIS takes no seed here, so {attempts} attempts would be the same; leave out "
            f"--attempts{f' or {balance}' if asked == 'auto' else ', or take --part-method auto'}"
        )
    if attempts > 1 and choice.method == "file":
        raise UserError(f"{asked} is one assignment, not {attempts}; leave out --attempts")
    return choice


@contextmanager
def assigner(
    graph: Graph,
    num_parts: int,
    choice: Choice,
    *,
    scratch: Path,
    balance_train: bool = False,
    balance_edges: bool = False,
) -> Iterator[Callable[[int], np.ndarray]]:
    """A function from a seed to an assignment; the same arguments give the same one.

    The function returns int32 `[N]`, in [0, num_parts), in which no part is empty. It blocks until
    the assignment is there. It raises UserError when KaMinPar or METIS was killed, and RuntimeError
    when it failed otherwise.

    Args:
        graph: what to split; its topology sorted within each node.
        num_parts: in [1, N].
        choice: KaMinPar and METIS keep neighbours together; random gives equal sizes.
        scratch: an existing directory for files of a few times the topology's size, removed again.
        balance_train: METIS also gives each part its share of the train, val and test nodes (DGL's
            `balance_ntypes`).
        balance_edges: METIS also gives each part its share of the in-edges.

    Raises:
        UserError: fewer train nodes than parts with `balance_train`, or the user's own assignment
            is none of this graph.
        OSError: the disk is full; also from the function.
    """
    num_nodes = graph.num_nodes
    assert 1 <= num_parts <= num_nodes
    if choice.path is not None:
        own = read_assignment(choice.path, num_nodes, num_parts)
        yield lambda _: own
    elif num_parts == 1:
        yield lambda _: np.zeros(num_nodes, np.int32)
    elif choice.method == "random":
        yield lambda seed: _random(num_nodes, num_parts, seed)
    else:
        weights = balanced_quantities(graph, num_parts, balance_train, balance_edges)
        with undirected_file(graph.topology, scratch / "undirected.parhip") as undirected:

            def run(seed: int) -> np.ndarray:
                if choice.method == "metis":
                    parts = run_metis(undirected, num_nodes, num_parts, weights, scratch)
                else:
                    parts = run_kaminpar(undirected, num_nodes, num_parts, seed, scratch)
                return _fill_empty(parts, num_parts)

            yield run


def _random(num_nodes: int, num_parts: int, seed: int) -> np.ndarray:
    place = np.random.default_rng(seed).permutation(num_nodes)
    return (place * num_parts // num_nodes).astype(np.int32)


def _fill_empty(assignment: np.ndarray, num_parts: int) -> np.ndarray:
    """Move one node of the part that is largest at the time into each empty part."""
    sizes = np.bincount(assignment, minlength=num_parts)
    empty = np.flatnonzero(sizes == 0)
    if len(empty) == 0:
        return assignment
    filled = assignment.copy()
    order = np.argsort(assignment, kind="stable")
    ends = np.cumsum(sizes)
    for part in empty:
        largest = int(np.argmax(sizes))
        ends[largest] -= 1
        sizes[largest] -= 1
        filled[order[ends[largest]]] = part
    return filled
