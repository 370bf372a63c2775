"""Partitioners in a process of their own. Runs on the login host.

There their memory goes back to the machine as soon as they are done, and a crash in their C or C++
code becomes an exception here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distsage.files import allocate
from distsage.progress import elapsed


def run_partitioner(
    name: str,
    module: str,
    arguments: list[str],
    *,
    num_nodes: int,
    scratch: Path,
    environment: Mapping[str, str],
) -> np.ndarray:
    """Run `python -m MODULE RESULT ARGUMENTS...`, which fills the file RESULT; blocks until then.

    Args:
        name: of the partitioner, for messages.
        module: to run; it finds int32 `[N]` to be filled in RESULT.
        arguments: the module's own.
        num_nodes: N.
        scratch: an existing directory for RESULT, which is removed again.
        environment: added to this process's own.

    Returns:
        What the module has filled in.

    Raises:
        OSError: the disk is full.
        RuntimeError: the process failed.
    """
    result = scratch / "assignment"
    try:
        allocate(result, 4 * num_nodes)
        with elapsed(f"assigning nodes: {name}"):
            run = subprocess.run(
                [sys.executable, "-m", module, str(result), *arguments],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        if run.returncode != 0:
            cause = (
                f"was ended by {signal.Signals(-run.returncode).name}"
                + (" (out of memory?)" if run.returncode == -signal.SIGKILL else "")
                if run.returncode < 0
                else f"failed with status {run.returncode}"
            )
            raise RuntimeError(f"{name} {cause}\n{run.stdout[-2000:]}".strip())
        return np.fromfile(result, np.int32)
    finally:
        result.unlink(missing_ok=True)
