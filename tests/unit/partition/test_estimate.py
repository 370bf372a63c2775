"""What partitioning says it needs, and when it refuses."""

import re
from pathlib import Path

import numpy as np
import pytest

from distsage.data.graph import Graph
from distsage.data.raw import Sizes
from distsage.errors import UserError
from distsage.partitioning import estimate
from distsage.partitioning.estimate import Needs
from distsage.partitioning.run import partition
from tests.unit.partition_graphs import communities, random_directed, ring

GIB = 1 << 30


@pytest.mark.parametrize("num_parts", [1, 4])
def test_disk_is_an_upper_bound_of_the_right_size(num_parts: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 20)).astype(np.float32)
    graph = random_directed(4000, 60_000, features=features)
    expected = estimate.estimate(graph, num_parts, "random").disk
    partition(graph, num_parts, tmp_path / "parts", method="random")
    written = sum(path.stat().st_size for path in (tmp_path / "parts").rglob("*"))
    assert written <= expected * 1.02
    assert expected <= 1.5 * written


def test_needs_grow_with_the_graph_and_with_metis() -> None:
    small, large = communities(4, 100), communities(4, 400)
    for method in ("metis", "random"):
        needs = [estimate.estimate(graph, 4, method) for graph in (small, large)]
        assert needs[0].memory < needs[1].memory
        assert needs[0].disk < needs[1].disk
    huge = communities(4, 20_000)
    metis, random = (estimate.estimate(huge, 4, method) for method in ("metis", "random"))
    assert metis.memory > random.memory
    assert metis.disk == random.disk


def test_share_of_edges_in_both_directions() -> None:
    assert estimate._symmetric_share(ring(500).topology) == 0
    assert estimate._symmetric_share(communities(2, 200).topology) == 1


@pytest.mark.parametrize(
    ("memory", "disk", "message"),
    [
        (GIB, 9 * GIB, "too little memory;"),
        (9 * GIB, GIB, "too little disk;"),
        (GIB, GIB, "too little memory and disk;"),
    ],
)
def test_refuses_when_there_is_less(
    memory: int, disk: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "free_memory", lambda: memory)
    monkeypatch.setattr(estimate, "free_disk", lambda _: disk)
    needs = Needs(memory=3 * GIB, disk=2 * GIB)
    with pytest.raises(UserError, match=message):
        estimate.check(needs, tmp_path, force=False)
    sentence = estimate.check(needs, tmp_path, force=True)
    assert sentence.startswith("expects to need about 3.0 GiB of memory (free: ")
    assert "and 2.0 GiB of disk (free: " in sentence


def test_partition_refuses_and_force_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "free_memory", lambda: 1 << 20)
    with pytest.raises(UserError, match="too little memory"):
        partition(ring(24), 2, tmp_path / "parts", method="random")
    assert list(tmp_path.iterdir()) == []
    partition(ring(24), 2, tmp_path / "parts", method="random", force=True)
    assert (tmp_path / "parts" / "manifest.json").exists()


@pytest.mark.parametrize("graph", [ring(500), communities(2, 200)])
@pytest.mark.parametrize("method", ["kaminpar", "metis"])
def test_before_reading_the_bounds_hold_what_is_expected_afterwards(
    method: str, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a ring no edge has its reverse, of communities all have."""
    expected = estimate.estimate(graph, 4, method).memory
    edges = graph.topology.num_edges
    sizes = Sizes(graph.num_nodes, graph.num_features, edges, 2 * edges)
    monkeypatch.setattr(estimate, "free_memory", lambda: expected)
    estimate.check_before_reading(sizes, method, 4)
    monkeypatch.setattr(estimate, "free_memory", lambda: 0)
    monkeypatch.setattr(estimate, "more_memory", lambda need: f"give {need}")
    with pytest.raises(UserError) as refused:
        estimate.check_before_reading(sizes, method, 4)
    (named,) = re.findall(r"give (\d+)", str(refused.value))
    assert int(named) >= expected
