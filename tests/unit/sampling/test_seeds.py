"""Seed plans: each train node once an epoch, the same number of steps everywhere."""

import numpy as np
import pytest

from distsage.sampling.seeds import SeedPlan


def plans(counts, batch_size, seed=0):
    nodes = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    return [SeedPlan(n, counts, batch_size, seed, rank) for rank, n in enumerate(nodes)]


@pytest.mark.parametrize(
    ("counts", "batch_size"), [([10, 10], 4), ([7, 23, 1], 5), ([3, 0], 2), ([1], 100), ([2, 9], 1)]
)
def test_every_train_node_is_a_seed_once_an_epoch(counts, batch_size):
    everyone = plans(counts, batch_size)
    assert len({plan.num_steps for plan in everyone}) == 1
    batches = [plan.batches(3) for plan in everyone]
    assert all(len(batch) <= batch_size for mine in batches for batch in mine)
    seen = np.sort(np.concatenate([batch for mine in batches for batch in mine]))
    np.testing.assert_array_equal(seen, np.arange(sum(counts)))
    for step in range(everyone[0].num_steps):
        whole = sum(len(mine[step]) for mine in batches)
        assert {plan.global_batch_size(step) for plan in everyone} == {whole}


def test_the_order_depends_on_seed_epoch_and_trainer_and_on_nothing_else():
    plan = SeedPlan(np.arange(50), [50, 50], 10, 1, 0)
    same = SeedPlan(np.arange(50), [50, 50], 10, 1, 0)
    np.testing.assert_array_equal(plan.batches(2), same.batches(2))
    others = [
        plan.batches(3),
        SeedPlan(np.arange(50), [50, 50], 10, 2, 0).batches(2),
        SeedPlan(np.arange(50), [50, 50], 10, 1, 1).batches(2),
    ]
    for other in others:
        assert not np.array_equal(plan.batches(2), other)


def test_a_step_has_its_seeds_its_size_and_keys_of_its_own():
    plan = SeedPlan(np.arange(50), [50, 40], 20, 1, 0)
    keys = set()
    for epoch in range(2):
        steps = list(plan.steps(epoch))
        assert [(s.epoch, s.number) for s in steps] == [(epoch, n) for n in range(plan.num_steps)]
        for step, seeds in zip(steps, plan.batches(epoch), strict=True):
            np.testing.assert_array_equal(step.seed_gid, seeds)
            assert step.global_size == plan.global_batch_size(step.number)
            keys |= {int(step.sample_key), int(step.dropout_key)}
    assert len(keys) == 2 * 2 * plan.num_steps
