"""`distsage` with no memory left for rows: `little_memory_program.py END predict|evaluate OPTIONS`.

Started by the tests. Says on standard error what is put into files. END is "whole", or a file of
rows, such as trainer-1/layer-1.rows, at which the process that makes it is killed.
"""

import os
import signal
import sys
from pathlib import Path

from distsage import files, limits
from distsage.cli import main

END = sys.argv[1]
allocate = files.allocate


def leave_nothing(need: int, what: str) -> None:
    limits._share = 0


def note_and_allocate(path: Path, num_bytes: int) -> None:
    name = f"{path.parent.name}/{path.name}"
    print(f"in the file {name}: {num_bytes} bytes", file=sys.stderr, flush=True)
    if name == END:
        os.kill(os.getpid(), signal.SIGKILL)
    allocate(path, num_bytes)


if __name__ == "__main__":
    # Before anybody imports them by name; torch and numba must not be there yet.
    limits.require_memory = leave_nothing
    files.allocate = note_and_allocate
    main(sys.argv[2:])
