"""How large a cache is, and what it holds when several trainers fill it."""

import os
import threading

import numpy as np
import pytest
import torch

from distsage.config import TrainConfig
from distsage.errors import UserError
from distsage.features.cache import fill_cache, ranking_note
from distsage.launch.preflight import sweep_leftovers
from distsage.limits import SHARED_MEMORY
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from tests.unit.partition_graphs import ring


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 200),
        ({"cache_ratio": 0.0}, 0),
        ({"cache_ratio": 0.35}, 350),
        ({"cache_ratio": 1.0}, 1000),
    ],
)
def test_budget(options, rows):
    assert TrainConfig(parts="unused", **options).cache_rows(1000) == rows


@pytest.mark.parametrize(
    "options",
    [
        {"cache_ratio": -0.1},
        {"cache_ratio": 1.5},
        {"cache_bytes": -1},
        {"cache_ratio": 0.2, "cache_bytes": 10},
    ],
)
def test_bad_budgets(options):
    with pytest.raises(UserError, match="--cache-"):
        TrainConfig(parts="unused", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_shares", [1, 3])
@pytest.mark.parametrize("num_cached", [0, 2, 50])
def test_trainers_fill_one_copy_together(tmp_path, dtype, num_shares, num_cached):
    table = torch.arange(300).reshape(100, 3).to(dtype)
    gids = np.random.default_rng(0).permutation(100)[:num_cached]
    barrier = threading.Barrier(num_shares)
    pulled = []

    def pull(asked):
        assert (np.diff(asked) > 0).all()
        pulled.extend(asked.tolist())
        return table[asked]

    def fill(share):
        rows[share] = fill_cache(
            gids,
            table[:0],
            None,
            pull,
            tmp_path / "segment",
            share=share,
            num_shares=num_shares,
            barrier=lambda: barrier.wait(10),
            mark=lambda doing, state: None,
        )

    rows = {}
    threads = [threading.Thread(target=fill, args=(share,)) for share in range(num_shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pulled) == sorted(gids), "every row is pulled once"
    for share in range(num_shares):
        assert rows[share].dtype == dtype
        assert torch.equal(rows[share], table[gids])
    if num_cached:
        rows[0][0] = 7
        assert (rows[num_shares - 1][0] == 7).all(), "the trainers share one copy"
    assert list(tmp_path.iterdir()) == [], "the segment has no name any more"


def test_a_cache_that_nobody_has_mapped_yet_is_not_swept():
    segment = SHARED_MEMORY / f"distsage.{os.getuid()}.test.{os.getpid()}.cache"
    there = []

    def barrier():
        sweep_leftovers()  # another job starts on this host
        there.append(segment.exists())

    rows = fill_cache(
        np.arange(3),
        torch.empty(0, 2),
        None,
        lambda gids: torch.ones(len(gids), 2),
        segment,
        share=0,
        num_shares=1,
        barrier=barrier,
        mark=lambda doing, state: None,
    )
    assert there == [True, True]
    assert not segment.exists()
    assert torch.equal(rows, torch.ones(3, 2))


def test_too_little_shared_memory(tmp_path):
    with pytest.raises(UserError, match="no room for a cache of .* lower --cache-ratio"):
        fill_cache(
            _Long(2**60),
            torch.empty(0, 1),
            None,
            lambda gids: gids,
            tmp_path / "segment",
            share=0,
            num_shares=1,
            barrier=lambda: None,
            mark=lambda doing, state: None,
        )
    assert list(tmp_path.iterdir()) == []


class _Long:
    """Only its length is asked for."""

    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length


def test_a_ranking_for_other_batches_is_told(tmp_path):
    partition(ring(24), 2, tmp_path / "parts", method="random", fan_out=(5, -1), batch_size=7)
    manifest = Parts.open(tmp_path / "parts").manifest

    def note(fan_out, batch_size):
        config = TrainConfig(parts="unused", fan_out=fan_out, batch_size=batch_size)
        return ranking_note(manifest, config)

    assert note("5,-1", 7) is None
    for other in (("5", 7), ("10,25", 7), ("5,-1", 8)):
        said = note(*other)
        assert said is not None
        assert "--fan-out 5,-1 --batch-size 7, for which the graph was partitioned" in said
