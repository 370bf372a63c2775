"""NH: as its definition has it, and as unlike for like messages as it promises."""

import numpy as np
import pytest

from distsage.kernels.universal_hash import BLOCK_BYTES, PASSES, hash_blocks

pytestmark = pytest.mark.levels


def hashes_of(words: np.ndarray, key: np.ndarray) -> np.ndarray:
    hashes = np.empty((words.nbytes // BLOCK_BYTES, PASSES), np.uint64)
    hash_blocks(words, key, hashes)
    return hashes


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def numbers(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 2**32, count, dtype=np.uint32)


@pytest.mark.parametrize("blocks", [0, 1, 7])
def test_it_is_nh(blocks: int, rng: np.random.Generator) -> None:
    """Sums modulo 2^64 of products of sums modulo 2^32, in Python's numbers."""
    half = BLOCK_BYTES // 8
    words, key = numbers(rng, 2 * half * blocks), numbers(rng, 2 * half * PASSES)
    words[:3] = 2**32 - 1
    expected = []
    for block in words.reshape(blocks, 2, half).tolist():
        for one in key.reshape(PASSES, 2, half).tolist():
            products = (
                (a + c) % 2**32 * ((b + d) % 2**32) for a, b, c, d in zip(*block, *one, strict=True)
            )
            expected.append(sum(products) % 2**64)
    assert hashes_of(words, key).ravel().tolist() == expected


def test_every_bit_counts_in_every_pass(rng: np.random.Generator) -> None:
    words, key = numbers(rng, BLOCK_BYTES // 4), numbers(rng, PASSES * BLOCK_BYTES // 4)
    before = hashes_of(words, key)
    for at in range(len(words)):
        changed = words.copy()
        changed[at] ^= np.uint32(1) << np.uint32(rng.integers(32))
        assert (hashes_of(changed, key) != before).all()
