"""Several assignments, and what each costs."""

from pathlib import Path

import numpy as np
import pytest

from distsage.partitioning.attempts import Attempt, best_of, edge_cut, judged
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from tests.unit.partition_graphs import communities, edges_of, random_directed, ring


def test_edge_cut_counts_directed_edges() -> None:
    graph = random_directed(60, 400)
    part = np.arange(60) % 3
    src, dst = edges_of(graph.topology)
    assert edge_cut(graph.topology, part) == np.count_nonzero(part[src] != part[dst])


def test_the_first_of_the_best_is_kept() -> None:
    rows = {4: 9.0, 5: 7.0, 6: 8.0, 7: 7.0}
    best, attempts = best_of(
        lambda seed: np.array([seed]),
        list(rows),
        lambda assignment, seed: Attempt(seed, 0, rows[int(assignment[0])]),
    )
    assert best.tolist() == [5]
    assert [(each.seed, each.remote_rows) for each in attempts] == list(rows.items())


def test_remote_rows_of_the_ring_by_hand() -> None:
    """Arcs of 12 nodes with 3 train nodes each, every 4th: 0, 4, 8 and 12, 16, 20.

    A batch takes all neighbours, v-1 and v-2, twice: of the first arc it needs 20 to 23, the four
    nodes before 0. So does the other's.
    """
    graph = ring(24)
    arcs = np.arange(24) // 12
    attempt = judged(graph, arcs, 2, seed=9, fan_out=[-1, -1], batch_size=3)
    assert attempt.seed == 9
    assert attempt.edge_cut == 6
    assert attempt.remote_rows == pytest.approx(4)
    # Every second node: the train nodes are all in one part, and need half of the 4 before each.
    attempt = judged(graph, np.arange(24) % 2, 2, seed=9, fan_out=[-1, -1], batch_size=6)
    assert attempt.remote_rows == pytest.approx(12)


@pytest.mark.parametrize("trainers", [1, 2])
def test_the_best_attempt_is_written_and_all_are_recorded(trainers: int, tmp_path: Path) -> None:
    graph = communities(6, 40, seed=2)
    options = {"method": "random", "fan_out": (2, 3), "batch_size": 4}
    options["num_trainers_per_host"] = trainers
    kept = partition(graph, 3, tmp_path / "best", attempts=4, seed=5, **options)
    alone = [
        partition(graph, 3, tmp_path / str(seed), seed=seed, **options) for seed in range(5, 9)
    ]
    assert [each.seed for each in kept.attempts] == [5, 6, 7, 8]
    for attempt, report in zip(kept.attempts, alone, strict=True):
        assert attempt.edge_cut == report.edge_cut
        assert attempt.remote_rows == pytest.approx(report.remote_rows)
        assert report.attempts == ()
    best = int(np.argmin([report.remote_rows for report in alone]))
    assert best != 0
    manifest = Parts.open(tmp_path / "best").manifest
    ids = [
        np.asarray(Parts.open(tmp_path / name).original_ids()) for name in ("best", str(5 + best))
    ]
    np.testing.assert_array_equal(*ids)
    recorded = manifest.configuration["attempts"]
    assert [each["seed"] for each in recorded] == [5, 6, 7, 8]
    assert [each["remote_rows"] for each in recorded] == [a.remote_rows for a in kept.attempts]
