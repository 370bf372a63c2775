"""Hosts write shares of the parts: the same bytes, however many they are."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import scipy.sparse

from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.partitioning import estimate, shares
from distsage.partitioning.run import partition
from distsage.partitioning.shares import Plan, Share
from distsage.partitioning.stages import unfinished
from tests.unit.partition_graphs import random_directed

T = TypeVar("T")


class InTurn:
    """Hosts that write one after the other, the last one first; all but the first read files."""

    def __init__(self, num_hosts: int) -> None:
        self.num_hosts = num_hosts

    def begin(self, plan: Plan, own: Share) -> None:
        self._shares = [own, *(plan.share(host) for host in range(1, self.num_hosts))]

    def each(self, work: Callable[[Share], T]) -> list[T]:
        return [work(share) for share in reversed(self._shares)][::-1]


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def graph(kind: str) -> Graph:
    if kind == "dense":
        return random_directed(120, 900)
    if kind == "one part without train nodes":
        return random_directed(120, 900, train_mask=np.arange(120) == 0)
    rows = scipy.sparse.random_array((120, 9), density=0.3, rng=np.random.default_rng(0)).tocsr()
    names = np.array([f"n{v}" for v in range(120)])
    return random_directed(120, 900, features=rows.astype(np.float32), original_ids=names)


@pytest.mark.parametrize("num_hosts", [2, 3, 7])
@pytest.mark.parametrize("kind", ["dense", "sparse", "one part without train nodes"])
def test_several_hosts_write_what_one_writes(kind: str, num_hosts: int, tmp_path: Path) -> None:
    options = {"method": "random", "seed": 3, "fan_out": (2, 3), "batch_size": 5}
    partition(graph(kind), 5, tmp_path / "one", **options)
    with unfinished(tmp_path / "several", {}) as stages:
        shared = stages.graph(lambda _: graph(kind))
        hosts = InTurn(num_hosts)
        partition(shared, 5, tmp_path / "several", **options, stages=stages, hosts=hosts)
    assert content(tmp_path / "several") == content(tmp_path / "one")


@pytest.mark.parametrize("kind", ["dense", "sparse", "one part without train nodes"])
def test_several_threads_write_what_one_writes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distsage.data.raw._CHUNK_BYTES", 100)  # a few rows
    monkeypatch.setattr("distsage.partitioning.reorder._EDGES", 10)
    for number in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", number)
        partition(graph(kind), 5, tmp_path / number, method="random", batch_size=5)
    assert content(tmp_path / "3") == content(tmp_path / "1")


def test_threads_share_the_memory_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(estimate, "free_memory", lambda: 1 << 20)
    found = set()

    def watched(function: Callable) -> Callable:
        def noted(*arguments: object, **named: object) -> object:
            found.add(threading.current_thread())
            return function(*arguments, **named)

        return noted

    for name in ("write_graph", "_rows", "rank_remote"):
        monkeypatch.setattr(shares, name, watched(getattr(shares, name)))
    partition(random_directed(120_000, 900), 5, tmp_path / "parts", method="random", force=True)
    assert found == {threading.current_thread()}


def test_no_two_hosts_write_to_one_file(tmp_path: Path) -> None:
    written: list[set[str]] = []

    class Watched(InTurn):
        def each(self, work: Callable[[Share], T]) -> list[T]:
            results = []
            for share in self._shares:
                before = content(tmp_path)
                results.append(work(share))
                after = content(tmp_path)
                written.append({name for name in after if after[name] != before.get(name)})
            return results

    with unfinished(tmp_path / "several", {}) as stages:
        shared = stages.graph(lambda _: graph("sparse"))
        hosts = Watched(2)
        partition(shared, 4, tmp_path / "several", method="random", stages=stages, hosts=hosts)
    parts_of_first, parts_of_second, ranks_of_first, ranks_of_second, *checks = written
    assert not parts_of_first & parts_of_second
    assert not ranks_of_first & ranks_of_second
    assert parts_of_first
    assert ranks_of_second
    assert checks == [set(), set()]


def test_a_dataset_that_a_host_does_not_see_is_named(tmp_path: Path) -> None:
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (120, 3))
    with unfinished(tmp_path / "several", {}) as stages:
        stages.graph(lambda _: random_directed(120, 900, features=rows))
        (tmp_path / "rows.npy").unlink()
        with pytest.raises(UserError, match=r"rows\.npy is not visible on .*that all hosts share"):
            stages.saved_graph()
