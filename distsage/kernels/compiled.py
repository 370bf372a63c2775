"""How this package compiles its loops: numba, without the GIL, for the process's level, cached.

Runs wherever a kernel is imported. numba's cache trusts a compiled function as long as the file of
that function is unchanged, although it contains the code of functions from other files. Here the
cache has a directory for each state of all files of this package, so that an upgrade or an edit
never runs yesterday's machine code. Levels lie apart in it, since numba keeps a target's code apart
from another's.
"""

import hashlib
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.registry import cpu_target

from distsage.kernels import level


@cache
def _cache_directory() -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(here.glob("*.py")):
        digest.update(file.read_bytes())
    base = here / "__pycache__"
    if not os.access(base if base.exists() else here, os.W_OK):
        base = Path.home() / ".cache" / "distsage"
    return str(base / f"kernels-{digest.hexdigest()[:16]}")


def _set_target() -> None:
    """Have numba compile for the level of this process."""
    if platform.machine() == "x86_64":
        name, features = level.TARGETS[level.chosen()]
        numba.config.CPU_NAME, numba.config.CPU_FEATURES = name, features
        _, found_name, found_features = cpu_target.target_context.codegen().magic_tuple()
        assert (found_name, found_features) == (name, features), (
            "numba has compiled for another target in this process already; import "
            "distsage.kernels before that"
        )


_set_target()


def compiled(function: Callable) -> Any:
    """Compile on the first call, for each combination of types; division by zero is not checked.

    Every loop of the package is compiled through here, and calls compiled functions of its own file
    or of `distsage.kernels` only.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _cache_directory()
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before
