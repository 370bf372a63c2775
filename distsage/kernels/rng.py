"""Random numbers of training: every stream is named by (seed, epoch, trainer rank, step, purpose).

Runs on trainer ranks and in the local run. Nothing here keeps state between batches, so any batch
of any epoch can be drawn again, ahead of time, on any thread.
"""

import enum

import numpy as np

from distsage.kernels.compiled import compiled

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Purpose(enum.IntEnum):
    """What the numbers of a stream are used for; streams of two purposes are independent."""

    SAMPLE = 1
    DROPOUT = 2
    SHUFFLE = 3


@compiled
def mix64(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits.

    `mix64(key + i * golden)` for i = 1, 2, ... is the splitmix64 stream of `key`.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def draw(key: np.uint64, i: int) -> np.uint64:
    """Number i of the splitmix64 stream of `key`: uint64, any order, no state."""
    return mix64(key + np.uint64(i + 1) * GOLDEN)


@compiled
def below(bits: np.uint64, n: int) -> int:
    """Map 64 random bits to an integer in [0, n), for n < 2**53."""
    return int(np.float64(bits >> np.uint64(11)) * 2.0**-53 * np.float64(n))


def stream_key(seed: int, epoch: int, trainer_rank: int, step: int, purpose: Purpose) -> np.uint64:
    """Return the key of one stream: uint64, a hash of its five coordinates (each >= 0)."""
    key = np.uint64(0)
    for word in (seed, epoch, trainer_rank, step, int(purpose)):
        key = np.uint64(draw(key ^ np.uint64(word), 0))
    return key
