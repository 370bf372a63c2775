"""`distsage train` with inputs that are slow: `slow_program.py WHAT OPTIONS`. Started by the tests.

WHAT is
    files       every file that is checked, or copied by --stage, takes SLOW_SECONDS; there are 10
    work        the first server reads its part for LOAD_SECONDS, and the first trainer computes its
                nodes for LAYER_SECONDS
    hung-load   the first server stops to read its part after a while
    hung-layer  the first trainer is stuck in its second evaluation
"""

import hashlib
import itertools
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

from distsage.cli import main

SLOW_SECONDS = 6.5
LOAD_SECONDS = 75.0
LAYER_SECONDS = 40.0
RANK = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMIX_RANK"))


class SlowDigest:
    """Of a file that comes slowly."""

    def __init__(self, data: bytes = b"") -> None:
        self._digest = hashlib.sha256(data)

    def update(self, data: bytes) -> None:
        time.sleep(SLOW_SECONDS)
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def read_slowly(seconds: float) -> None:
    """Read a pipe in one call, as a library reads a file."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)  # so that a write fails when the one who reads has ended
        try:
            for _ in range(int(seconds)):
                os.write(writer, bytes(2**21))
                time.sleep(1.0)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb", buffering=0) as stream:
        stream.readall()


def slow_load(hang: bool) -> None:
    from distsage.launch.dgl import patches

    load = patches.read_arrays

    def load_slowly(*args: Any, **kwargs: Any) -> Any:
        read_slowly(10.0 if hang else LOAD_SECONDS)
        if hang:
            time.sleep(300)
        return load(*args, **kwargs)

    patches.read_arrays = load_slowly


def slow_layers(hang: bool) -> None:
    from distsage.model import cpu, inference

    inference._PIECE_BYTES = 2000
    mean = cpu.neighbour_mean
    chunks = itertools.count()

    def slow_mean(*args: Any) -> Any:
        chunk = next(chunks)
        if hang and chunk > 20:
            time.sleep(300)
        if not hang and chunk < LAYER_SECONDS:
            time.sleep(1.0)
        return mean(*args)

    cpu.neighbour_mean = slow_mean


def slow_down() -> None:
    """In the rank, whose modules may not be imported before."""
    from distsage.launch import stage
    from distsage.launch.watch import progress
    from distsage.partitioning import parts

    if what == "files":
        stage.hashlib = parts.hashlib = SimpleNamespace(sha256=SlowDigest)  # type: ignore[assignment]
    mark = progress.Watched.mark

    def mark_and_slow_down(self: Any, doing: str, state: Any = progress.State.WORKING) -> None:
        mark(self, doing, state)
        if (RANK, what, doing) in (
            ("0", "work", "loading its parts"),
            ("0", "hung-load", "loading its parts"),
        ):
            slow_load(what == "hung-load")
        if (RANK, what, doing) in (
            ("1", "work", "opening the topology"),
            ("1", "hung-layer", "opening the topology"),
        ):
            slow_layers(what == "hung-layer")

    progress.Watched.mark = mark_and_slow_down  # type: ignore[method-assign]


if __name__ == "__main__":
    what = sys.argv[1]
    os.register_at_fork(after_in_child=slow_down)
    main(["train", *sys.argv[2:]])
