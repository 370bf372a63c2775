"""A universal hash of the bytes that a job sends, faster than memory delivers them.

Runs in servers and trainers, on each side of every connection (`distsage.launch.dgl.frames`). It is
NH, the first stage of UMAC (RFC 4418) and of Adiantum: under a secret random key, two different
messages of one length have the same hash with a probability of 2^-32 a pass. What it returns is
short, and must be put under a keyed hash before anybody sees it.
"""

import numpy as np

from distsage.kernels.compiled import compiled

BLOCK_BYTES = 4096
"""So many bytes have one hash."""
PASSES = 3
"""Passes with keys of their own: together they miss a difference with a probability of 2^-96."""

_WORDS = BLOCK_BYTES // 4
_HALF = _WORDS // 2


@compiled
def hash_blocks(words: np.ndarray, key: np.ndarray, hashes: np.ndarray) -> None:
    """Hash whole blocks.

    Args:
        words: uint32 `[n * BLOCK_BYTES / 4]`.
        key: uint32 `[PASSES * BLOCK_BYTES / 4]`, secret and random.
        hashes: uint64 `[n, PASSES]`, written.
    """
    for block in range(len(hashes)):
        at = block * _WORDS
        # One loop for all passes reads the block once. What is summed wraps around: hashes are
        # products of 32-bit sums, added up modulo 2^64.
        sum_0 = sum_1 = sum_2 = np.uint64(0)
        for i in range(_HALF):
            a, b = words[at + i], words[at + _HALF + i]
            sum_0 += np.uint64(np.uint32(a + key[i])) * np.uint64(np.uint32(b + key[_HALF + i]))
            sum_1 += np.uint64(np.uint32(a + key[2 * _HALF + i])) * np.uint64(
                np.uint32(b + key[3 * _HALF + i])
            )
            sum_2 += np.uint64(np.uint32(a + key[4 * _HALF + i])) * np.uint64(
                np.uint32(b + key[5 * _HALF + i])
            )
        hashes[block, 0] = sum_0
        hashes[block, 1] = sum_1
        hashes[block, 2] = sum_2
