"""Which part each node goes to."""

import re
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from distsage.cli import main
from distsage.config import PartMethod
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.partitioning import assignment, own_process
from distsage.partitioning.assignment import assigner, choose
from distsage.partitioning.attempts import edge_cut
from distsage.partitioning.reorder import Order
from tests.unit.partition_graphs import communities, edges_of, make_graph, random_directed, ring


def assign(
    graph: Graph,
    num_parts: int,
    scratch: Path,
    method: PartMethod | Path = "kaminpar",
    seed: int = 0,
    **balance: bool,
) -> np.ndarray:
    choice = choose(method, **balance)
    with assigner(graph, num_parts, choice, scratch=scratch, **balance) as draw:
        return draw(seed)


def test_random_is_even_and_repeats(tmp_path: Path) -> None:
    graph = random_directed(103, 500)
    parts = assign(graph, 4, tmp_path, "random", seed=5)
    assert sorted(np.bincount(parts)) == [25, 26, 26, 26]
    np.testing.assert_array_equal(parts, assign(graph, 4, tmp_path, "random", seed=5))
    assert (parts != assign(graph, 4, tmp_path, "random", seed=6)).any()


@pytest.mark.parametrize("method", ["kaminpar", "metis"])
def test_finds_communities_and_repeats(method: PartMethod, tmp_path: Path) -> None:
    graph = communities(4, 250)
    parts = assign(graph, 4, tmp_path, method, seed=3)
    planted = 0.05 * 3 / 4 * graph.topology.num_edges  # 5 % of the edges lead anywhere
    assert edge_cut(graph.topology, parts) < 1.1 * planted
    assert parts.dtype == np.int32
    # A part may have 3 % more than the mean.
    assert np.bincount(parts, minlength=4).max() <= 258
    np.testing.assert_array_equal(parts, assign(graph, 4, tmp_path, method, seed=3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["kaminpar", "metis"])
def test_edges_of_one_direction_count(method: PartMethod, tmp_path: Path) -> None:
    """Two cliques, whose edges go upwards only; one edge joins them, and some nodes have none."""
    low, high = np.triu_indices(20, 1)
    src, dst = np.concatenate((low, low + 20, [3])), np.concatenate((high, high + 20, [27]))
    parts = assign(make_graph(src, dst, 44), 2, tmp_path, method)
    assert len(set(parts[:20])) == len(set(parts[20:40])) == 1
    assert sorted(np.bincount(parts)) == [22, 22]


def test_seeds_of_kaminpar_differ(tmp_path: Path) -> None:
    graph = random_directed(300, 1500)
    one, other, _ = (assign(graph, 4, tmp_path, seed=seed) for seed in (1, 2, 2**62 + 1))
    assert (one != other).any()


def test_metis_balances_train_nodes_and_edges(tmp_path: Path) -> None:
    # All train nodes and most edges lie in one community, so a plain cut would not share them.
    graph = communities(2, 400)
    plain = assign(graph, 2, tmp_path, "metis")
    in_first = plain == 0
    v = np.arange(graph.num_nodes)
    train = in_first & (v % 2 == 0)
    dense = np.flatnonzero(in_first)
    rng = np.random.default_rng(0)
    src, dst = edges_of(graph.topology)
    more = rng.choice(dense, (2, 20 * len(dense)))
    graph = make_graph(
        np.concatenate((src, more[0], more[1])),
        np.concatenate((dst, more[1], more[0])),
        graph.num_nodes,
        train_mask=train,
        val_mask=~train & (v % 3 == 0),
        test_mask=~train & (v % 3 != 0),
    )

    def shares(parts: np.ndarray, weight: np.ndarray) -> float:
        sums = np.bincount(parts, weight, minlength=2)
        return float(sums.max() / sums.sum())

    degrees = np.diff(graph.topology.indptr)
    assert shares(plain, train) == 1
    assert shares(assign(graph, 2, tmp_path, "auto", balance_train=True), train) < 0.6
    assert shares(plain, degrees) > 0.7
    assert shares(assign(graph, 2, tmp_path, "auto", balance_edges=True), degrees) < 0.6


@pytest.mark.parametrize("method", ["kaminpar", "metis"])
@pytest.mark.parametrize("num_parts", [1, 2, 37, 40])
def test_no_part_is_empty(method: PartMethod, num_parts: int, tmp_path: Path) -> None:
    parts = assign(ring(40), num_parts, tmp_path, method)
    assert np.bincount(parts, minlength=num_parts).min() >= 1
    assert len(np.bincount(parts)) == num_parts


@pytest.mark.parametrize("method", ["kaminpar", "metis"])
def test_a_graph_of_loops_only(method: PartMethod, tmp_path: Path) -> None:
    v = np.arange(12)
    parts = assign(make_graph(v, v, 12), 3, tmp_path, method)
    assert np.bincount(parts, minlength=3).min() >= 1


def test_empty_parts_are_filled_from_the_largest() -> None:
    filled = assignment._fill_empty(np.array([0, 0, 0, 0, 3, 3, 3], np.int32), 5)
    assert sorted(np.bincount(filled, minlength=5)) == [1, 1, 1, 2, 2]
    assert (filled[:2] == 0).all()
    assert (filled[4:6] == 3).all()


@pytest.mark.parametrize(("method", "name"), [("kaminpar", "KaMinPar"), ("metis", "METIS")])
def test_a_crash_is_an_exception(
    method: PartMethod, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_process.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=f"{name} failed with status 1"):
        assign(ring(10), 2, tmp_path, method)
    assert list(tmp_path.iterdir()) == []
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -FPE $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(own_process.sys, "executable", str(killed))
    with pytest.raises(RuntimeError, match=f"{name} was ended by SIGFPE"):
        assign(ring(10), 2, tmp_path, method)


def kill_child(module: str) -> None:
    """Kill the first child of this process that runs a module; blocks until there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if module in child.cmdline():
                    child.kill()
                    return
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("method", "name", "remedy"),
    [
        ("kaminpar", "KaMinPar", "let --part-method be random"),
        ("metis", "METIS", "let KaMinPar assign"),
    ],
)
def test_a_partitioner_that_is_killed_is_one_sentence(
    method: str, name: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the kernel kills what takes more memory than there is."""
    words = ["--dataset", "synthetic:300:20", "--num-parts", "2", "--part-method", method]
    killer = threading.Thread(target=kill_child, args=(f"distsage.partitioning.{method}",))
    killer.start()
    with pytest.raises(SystemExit) as ended:
        main(["partition", *words, "--output", str(tmp_path / "parts")])
    killer.join()
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"distsage: {name} was killed (SIGKILL), most likely because memory ran")
    assert re.search(rf"it takes about [0-9.]+ MiB .* give the job more memory, or {remedy}", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "options", "method", "words"),
    [
        ("auto", {}, "kaminpar", "less time and memory"),
        ("auto", {"balance_train": True}, "metis", "since --balance-train is more than KaMinPar"),
        ("auto", {"balance_edges": True}, "metis", "since --balance-edges is more than KaMinPar"),
        ("metis", {"balance_train": True, "balance_edges": True}, "metis", "as --part-method asks"),
        ("auto", {"attempts": 3}, "kaminpar", "less time and memory"),
        ("random", {"attempts": 3}, "random", "as --part-method asks"),
        (Path("own.npy"), {}, "file", "own.npy"),
    ],
)
def test_who_assigns_and_why(
    asked: PartMethod | Path, options: dict, method: str, words: str
) -> None:
    choice = choose(asked, **options)
    assert choice.method == method
    assert words in choice.reason


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        ("kaminpar", {"balance_edges": True}, "leave out --balance-edges, or let --part-method be"),
        ("metis", {"attempts": 2}, "takes no seed .* leave out --attempts, or take"),
        ("auto", {"attempts": 2, "balance_train": True}, "out --attempts or --balance-train"),
        (Path("own.npy"), {"attempts": 2}, r"own\.npy is one assignment, not 2"),
        (Path("own.npy"), {"balance_train": True}, r"own\.npy says .*; leave out --balance-train"),
    ],
)
def test_what_cannot_be_done_together(
    asked: PartMethod | Path, options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose(asked, **options)


def test_an_assignment_of_ones_own(tmp_path: Path) -> None:
    graph = ring(6)
    wanted = np.array([2, 0, 1, 1, 0, 2])
    for dtype in ("i8", "u1", ">i4"):
        np.save(tmp_path / "own.npy", wanted.astype(dtype))
        found = assign(graph, 3, tmp_path, tmp_path / "own.npy")
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)
    for text in ("2\n0\n1\n1\n0\n2\n", "2\r\n0\r\n 1 \r\n1\r\n0\r\n02"):
        (tmp_path / "own.txt").write_text(text)
        np.testing.assert_array_equal(assign(graph, 3, tmp_path, tmp_path / "own.txt"), wanted)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([0, 1, 0], "gives 3 nodes a part, but the graph has 4 nodes"),
        ([0, 1, 0, 1, 1], "gives 5 nodes a part"),
        ([0, 1, 0, -1], "gives node 3 part -1, but the 2 parts are 0 to 1"),
        ([0, 2, 0, 1], "gives node 1 part 2"),
        (np.array([0, 1, 2**64 - 1, 1], np.uint64), f"gives node 2 part {2**64 - 1}"),
        ([1, 1, 1, 1], "gives no node to part 0 of 2"),
        ([[0, 1], [0, 1]], r"has int64 of shape \(2, 2\); give one integer for each node"),
        ([0.0, 1.0, 0.0, 1.0], "has float64 of shape"),
        ([False, True, False, True], "has bool of shape"),
        (b"\x93NUMPY", "cannot read .*own: it is no numpy array"),
        ("0\n1\n0\n", "gives 3 nodes a part, but the graph has 4 nodes"),
        ("0\n1\n0\n1\n" + 9 * "0\n", "gives 5 or more nodes a part"),
        ("0\n1\n\n1\n", "line 3 of .*own is '', which is no part's number"),
        ("0\n1\n-1\n1\n", "line 3 of .*own is '-1'"),
        ("0\n1 1\n", "line 2 of .*own is '1 1'"),
        ("0\n" + 10**6 * "1", "line 2 of .*own is '11111111111111111111', which"),
        ("0\n1\n2\n1\n", "gives node 2 part 2"),
    ],
)
def test_an_assignment_that_is_none(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own"
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with open(path, "wb") as stream:
            np.save(stream, np.asarray(content))
    with pytest.raises(UserError, match=message) as caught:
        assign(ring(4), 2, tmp_path, path)
    assert "\n" not in str(caught.value)


def test_numbering_is_part_major_and_keeps_the_order_inside() -> None:
    order = Order.of(np.array([1, 0, 1, 0, 2]), 3, np.dtype(np.int32))
    np.testing.assert_array_equal(order.position, [1, 3, 0, 2, 4])
    np.testing.assert_array_equal(order.gid, [2, 0, 3, 1, 4])
    np.testing.assert_array_equal(order.offsets, [0, 2, 4, 5])
    assert order.gid.dtype == np.int32


def test_numbering_keeps_a_trainers_nodes_together() -> None:
    order = Order.of(np.array([3, 0, 1, 0, 2, 1]), 2, np.dtype(np.int32), trainers_per_host=2)
    np.testing.assert_array_equal(order.position, [1, 3, 2, 5, 4, 0])
    np.testing.assert_array_equal(order.offsets, [0, 4, 6])
