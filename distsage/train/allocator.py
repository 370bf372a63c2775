"""How the C library gives memory back. Runs on all ranks and in the local run."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 * 2**20
"""The largest block, in bytes, that glibc can be told to keep."""


def keep_freed_memory() -> None:
    """Keep what a batch has freed for the next one, where the C library is glibc.

    By itself glibc returns blocks of a megabyte to the kernel, which clears their pages for every
    batch anew. Blocks of more than 32 MiB are still returned.
    """
    _set(_M_MMAP_THRESHOLD, _LARGEST)
    _set(_M_TRIM_THRESHOLD, 2**30)


def return_freed_memory() -> None:
    """Return blocks of a megabyte or more to the kernel when they are freed, with glibc.

    By itself glibc takes larger and larger blocks from a heap that shrinks at its end only: the
    server of a prediction kept 250 MB of answers that it had sent.
    """
    _set(_M_MMAP_THRESHOLD, 2**20)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
