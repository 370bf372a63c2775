"""How this package compiles its loops: numba, without the GIL, cached on disk.

Runs wherever a kernel is imported. numba's cache trusts a compiled function as long as the file of
that function is unchanged, although it contains the code of functions from other files. Here the
cache has a directory for each state of all the files that hold compiled code, so that an upgrade or
an edit never runs yesterday's machine code.
"""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

_FILES = ("compiled", "features", "kernels", "partitioned", "rng", "sampler", "vectors")


@cache
def _cache_directory() -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in _FILES:
        digest.update((here / f"{name}.py").read_bytes())
    base = here / "__pycache__"
    if not os.access(base if base.exists() else here, os.W_OK):
        base = Path.home() / ".cache" / "distsage"
    return str(base / f"kernels-{digest.hexdigest()[:16]}")


def compiled(function: Callable) -> Any:
    """Compile on the first call, for each combination of types; division by zero is not checked.

    A function so decorated stands in one of `_FILES`, and so does what it calls.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _cache_directory()
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before
