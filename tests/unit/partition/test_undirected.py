"""The graph as partitioners read it, beside sets of edges."""

from pathlib import Path

import numpy as np
import pytest

from distsage.data.graph import Topology
from distsage.files import allocate
from distsage.partitioning import undirected
from distsage.partitioning.undirected import is_symmetric, read_undirected, undirected_file
from tests.unit.partition_graphs import communities, edges_of, make_graph, random_directed, ring

GRAPHS = {
    "ring": ring(24),
    "loops, repeated edges, isolated nodes": random_directed(60, 400),
    "both directions": communities(4, 50),
    "loops only": make_graph(np.arange(5), np.arange(5), 5),
    "no edges": make_graph(np.empty(0, int), np.empty(0, int), 7),
    "an edge more often than its reverse": make_graph(np.array([0, 1, 0]), np.array([1, 0, 1]), 2),
    "a star": make_graph(np.zeros(30, int), np.arange(30), 30),
}


def pairs(topology: Topology) -> list[tuple[int, int]]:
    return list(zip(*(ends.tolist() for ends in edges_of(topology)), strict=True))


@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
@pytest.mark.parametrize("name", GRAPHS)
def test_holds_each_edge_once_in_each_direction(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undirected, "_CHUNK_EDGES", chunk)
    topology = GRAPHS[name].topology
    one_way = {(u, v) for u, v in pairs(topology) if u != v}
    with undirected_file(topology, tmp_path / "graph") as path:
        found = read_undirected(path)
        header = np.fromfile(path, np.uint64, 3).tolist()
        size = path.stat().st_size
        assert [each.name for each in tmp_path.iterdir()] == ["graph"]
    assert found.num_nodes == topology.num_nodes
    assert pairs(found) == sorted(one_way | {(v, u) for u, v in one_way}, key=lambda e: e[::-1])
    assert header == [3, found.num_nodes, found.num_edges]
    assert size == 8 * (3 + found.num_nodes + 1 + found.num_edges)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", GRAPHS)
def test_symmetric_means_each_edge_has_its_reverse_as_often(name: str) -> None:
    topology = GRAPHS[name].topology
    there = pairs(topology)
    assert is_symmetric(topology) == (sorted(there) == sorted((v, u) for u, v in there))


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(undirected, "_write", full)
    with (
        pytest.raises(OSError, match="No space"),
        undirected_file(ring(9).topology, tmp_path / "g"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_room_of_a_mapped_file_is_taken_at_once(tmp_path: Path) -> None:
    allocate(tmp_path / "map", 1 << 20)
    status = (tmp_path / "map").stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20
