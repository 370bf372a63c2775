"""What the comparison of cache rankings counts, beside brute force on a small graph."""

import numpy as np

from distsage.sampling.seeds import SeedPlan
from tests.unit.graphs import in_neighbours, random_topology
from tools.bench.ranking import input_counts, misses, rankings

N, LOW, HIGH = 300, 100, 180
TOPOLOGY = random_topology(N, 1500)
PLAN = SeedPlan(np.arange(LOW, HIGH, 3), [27], 5, seed=3, trainer_rank=0)
REMOTE = np.r_[0:LOW, HIGH:N]


def test_misses_are_the_remote_inputs_of_every_batch() -> None:
    cached = REMOTE[::4]
    inputs_of_batches = []
    for epoch in range(2):
        for seeds in PLAN.batches(epoch):
            inputs = set(seeds.tolist())
            for _ in range(2):
                inputs |= {int(u) for v in inputs for u in in_neighbours(TOPOLOGY, v)}
            inputs_of_batches.append({v for v in inputs if not LOW <= v < HIGH})
    counts = input_counts(TOPOLOGY, PLAN, (-1, -1), range(2))
    uncached = sum(len(inputs) for inputs in inputs_of_batches)
    left = sum(len(inputs - set(cached.tolist())) for inputs in inputs_of_batches)
    assert 0 < left < uncached
    assert misses(counts, LOW, HIGH, REMOTE[:0]) == uncached
    assert misses(counts, LOW, HIGH, cached) == left
    assert misses(counts, LOW, HIGH, REMOTE) == 0


def test_measured_is_never_worse_than_random() -> None:
    scored = input_counts(TOPOLOGY, PLAN, (3, 4), range(10))
    counted = input_counts(TOPOLOGY, PLAN, (3, 4), range(10, 40))
    measured = rankings(TOPOLOGY, LOW, HIGH, REMOTE[:50], counted)["measured"]
    rng = np.random.default_rng(0)
    for size in range(0, len(REMOTE) + 1, 20):
        by_measured = misses(scored, LOW, HIGH, measured[:size])
        for _ in range(20):
            assert by_measured <= misses(scored, LOW, HIGH, rng.permutation(REMOTE)[:size])


def test_rankings_by_hand() -> None:
    vip = REMOTE[[7, 2, 9]]
    counts = np.zeros(N, np.int64)
    counts[250] = 1
    found = rankings(TOPOLOGY, LOW, HIGH, vip, counts)
    for name in ("degree", "halo", "measured"):
        np.testing.assert_array_equal(np.sort(found[name]), REMOTE)
    assert found["VIP"].tolist() == vip.tolist()
    assert found["measured"][:4].tolist() == [250, *vip], "ties go by VIP"
    degree = {v: len(in_neighbours(TOPOLOGY, v)) for v in range(N)}
    sources = np.concatenate([in_neighbours(TOPOLOGY, v) for v in range(LOW, HIGH)]).tolist()
    into_part = [(sources.count(v), degree[v]) for v in found["halo"].tolist()]
    assert into_part == sorted(into_part, reverse=True)
    degrees = [degree[v] for v in found["degree"].tolist()]
    assert degrees == sorted(degrees, reverse=True)
