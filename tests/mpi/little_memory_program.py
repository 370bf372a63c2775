"""`distsage` with no memory left for rows: `little_memory_program.py predict|evaluate OPTIONS`.

Started by the tests. Says on standard error what is put into files.
"""

import sys
from pathlib import Path

from distsage import files, limits
from distsage.cli import main

allocate = files.allocate


def leave_nothing(need: int, what: str) -> None:
    limits._share = 0


def note_and_allocate(path: Path, num_bytes: int) -> None:
    print(f"in a file of {path.parent.name}: {num_bytes} bytes", file=sys.stderr, flush=True)
    allocate(path, num_bytes)


if __name__ == "__main__":
    # Before anybody imports them by name; torch and numba must not be there yet.
    limits.require_memory = leave_nothing
    files.allocate = note_and_allocate
    main(sys.argv[1:])
