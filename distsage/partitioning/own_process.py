"""Partitioners in a process of their own. Runs on the login host.

There their memory goes back to the machine as soon as they are done, and a crash in their C or C++
code becomes an exception here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from distsage.errors import UserError
from distsage.files import allocate
from distsage.limits import human_bytes
from distsage.progress import elapsed


def num_directed_edges(undirected: Path) -> int:
    """The edges of a graph that `undirected_file` wrote, counted once for each direction."""
    return int(np.fromfile(undirected, np.uint64, 3)[2])


def run_partitioner(
    name: str,
    module: str,
    undirected: Path,
    arguments: list[str],
    *,
    num_nodes: int,
    memory_needed: Callable[[int, int], int],
    otherwise: str,
    scratch: Path,
    environment: Mapping[str, str],
) -> np.ndarray:
    """Run `python -m MODULE RESULT GRAPH ARGUMENTS...`, which fills the file RESULT. Blocks.

    Args:
        name: of the partitioner, for messages.
        module: to run; it finds int32 `[N]` to be filled in RESULT.
        undirected: GRAPH, as `undirected_file` writes it.
        arguments: the module's own.
        num_nodes: N.
        memory_needed: from N and the number of edges in both directions to the bytes that the
            process takes at its peak; about.
        otherwise: what a user can do who has no more memory, for messages.
        scratch: an existing directory for RESULT, which is removed again.
        environment: added to this process's own.

    Returns:
        What the module has filled in.

    Raises:
        OSError: the disk is full.
        UserError: the process was killed, as the kernel does where memory runs out.
        RuntimeError: the process failed.
    """
    result = scratch / "assignment"
    try:
        allocate(result, 4 * num_nodes)
        with elapsed(f"assigning nodes: {name}"):
            run = subprocess.run(
                [sys.executable, "-m", module, str(result), str(undirected), *arguments],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        if run.returncode == -signal.SIGKILL:
            need = memory_needed(num_nodes, num_directed_edges(undirected))
            raise UserError(
                f"{name} was killed (SIGKILL), most likely because memory ran out: it takes about "
                f"{human_bytes(need)} beside this process; give the job more memory, or "
                f"{otherwise}"
            )
        if run.returncode != 0:
            cause = (
                f"was ended by {signal.Signals(-run.returncode).name}"
                if run.returncode < 0
                else f"failed with status {run.returncode}"
            )
            raise RuntimeError(f"{name} {cause}\n{run.stdout[-2000:]}".strip())
        return np.fromfile(result, np.int32)
    finally:
        result.unlink(missing_ok=True)
