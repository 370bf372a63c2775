"""How the C library gives memory back. Runs on trainer ranks and in the local run."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 * 2**20
"""The largest block, in bytes, that glibc can be told to keep."""


def keep_freed_memory() -> None:
    """Keep what a batch has freed for the next one, where the C library is glibc.

    By itself glibc returns blocks of a megabyte to the kernel, which clears their pages for every
    batch anew. Blocks of more than 32 MiB are still returned.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, 2**30)
