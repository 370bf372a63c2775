"""A run of `partition` that is killed goes on after its last finished stage, to the same bytes."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from distsage import limits, progress
from distsage.cli import main
from distsage.data import datasets
from distsage.partitioning import run, shares, stages
from tests.unit.data import test_downloads as ogb
from tests.unit.data_files import tables, write

# The function whose n-th call is the process's last, and how many stages are done by then.
MOMENTS: dict[str, tuple[Any, str, int, int]] = {
    "reading": (datasets, "check_labels", 1, 0),
    "before the graph's mark": (stages, "write_json", 2, 0),
    "the second attempt": (run, "judged", 2, 1),
    "before the assignment": (run, "choose", 1, 1),
    "ordering": (run, "order_parts", 1, 1),
    "the second part": (shares, "write_graph", 2, 2),
    "rows": (shares.NodeData, "write", 3, 2),
    "ranking": (shares, "rank_remote", 2, 3),
    "checksums": (shares, "sha256", 4, 4),
    "the manifest": (run, "write_json", 2, 4),
    "the last rename": (stages.os, "rename", 1, 4),
}


def partition(dataset: str, output: Path, *options: str) -> None:
    words = ["--dataset", dataset, "--num-parts", "2", "--output", str(output)]
    main(["partition", *words, "--part-method", "random", "--attempts", "2", *options])


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def killed_at(moment: str, do: Callable[[], None]) -> None:
    """Run `do` in a child that ends by SIGKILL at the moment."""
    holder, name, calls, _ = MOMENTS[moment]
    function, count = getattr(holder, name), 0

    def last(*arguments: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    status = child_status(lambda: setattr(holder, name, last), do)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def child_status(arm: Callable[[], None], do: Callable[[], None]) -> int:
    """How a child ends that is armed first."""
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        try:
            arm()
            do()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "g", *tables(), ".parquet")


@pytest.fixture(scope="module")
def whole(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("whole") / "parts"
    partition(dataset, output)
    return content(output)


@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment != "ordering"])
def test_a_killed_run_goes_on(
    moment: str,
    dataset: str,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "parts"
    killed_at(moment, lambda: partition(dataset, output))
    assert not output.exists()
    stages_done = MOMENTS[moment][3]
    done = [datasets, run, run, shares][:stages_done]
    names = ["load_graph", "assigner", "_write_whole", "rank_remote"]
    for holder, name in zip(done, names, strict=False):
        monkeypatch.setattr(holder, name, lambda *_, **__: pytest.fail("done again"))
    partition(dataset, output)
    assert content(output) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"parts"}


@pytest.fixture(scope="module")
def num_calls(
    dataset: str, whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> int:
    """Of functions, Python's and C's, in a run."""
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(one_more)
    try:
        partition(dataset, tmp_path_factory.mktemp("counted") / "parts")
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_at_random_moments_goes_on(
    seed: int, dataset: str, whole: dict[str, bytes], num_calls: int, tmp_path: Path
) -> None:
    """Twice, the second time while it goes on."""
    output = tmp_path / "parts"
    rng = np.random.default_rng(seed)
    for _ in range(2):
        left = int(rng.integers(num_calls))

        def one_less(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        status = child_status(lambda: sys.setprofile(one_less), lambda: partition(dataset, output))
        assert os.WIFSIGNALED(status) or output.exists()  # what goes on may be done before
        if output.exists():
            break
    else:
        partition(dataset, output)
    assert content(output) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"parts"}


@pytest.mark.parametrize("moment", ["ordering", "rows", "checksums"])
def test_sparse_features_and_a_partitioner_go_on(moment: str, tmp_path: Path) -> None:
    matrix = scipy.sparse.random_array((12, 6), density=0.4, rng=np.random.default_rng(0)).tocsr()
    np.savez(
        tmp_path / "g.npz",
        num_nodes=12,
        edge_src=np.arange(12),
        edge_dst=np.roll(np.arange(12), 1),
        labels=np.arange(12) % 2,
        feat_indptr=matrix.indptr,
        feat_indices=matrix.indices,
        feat_data=matrix.data.astype(np.float32),
        feat_shape=np.array(matrix.shape),
    )
    options = ("--part-method", "kaminpar", "--split", "0.5/0.2/0.3")
    partition(str(tmp_path / "g.npz"), tmp_path / "expected", *options)
    output = tmp_path / "parts"
    killed_at(moment, lambda: partition(str(tmp_path / "g.npz"), output, *options))
    partition(str(tmp_path / "g.npz"), output, *options)
    assert content(output) == content(tmp_path / "expected")
    assert "feature_counts.npy" in content(output)


def test_other_options_or_data_start_anew(
    dataset: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "parts"
    killed_at("ranking", lambda: partition(dataset, output, "--seed", "5"))
    partition(dataset, output)
    assert content(output) == whole

    edges, nodes = tables()
    changing = write(tmp_path / "g", edges, nodes)
    killed_at("ranking", lambda: partition(changing, tmp_path / "other"))
    nodes["f0"] += 1
    write(tmp_path / "g", edges, nodes)
    partition(changing, tmp_path / "other")
    partition(changing, tmp_path / "expected")
    assert content(tmp_path / "other") == content(tmp_path / "expected")


def test_what_a_killed_partitioner_wrote_goes_when_the_next_run_begins(
    dataset: str, tmp_path: Path
) -> None:
    output = tmp_path / "parts"
    killed_at("the second attempt", lambda: partition(dataset, output))
    unfinished = tmp_path / ".parts.unfinished"
    assert len(list(unfinished.glob("scratch-*"))) == 1
    killed_at("before the assignment", lambda: partition(dataset, output))
    assert not list(unfinished.glob("scratch-*"))
    partition(dataset, output)


def test_too_small_a_disk_for_the_graph(
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(limits, "free_disk", lambda _: 99)
    with pytest.raises(SystemExit) as ended:
        partition(dataset, tmp_path / "parts")
    assert ended.value.code == 2
    assert "keeping the graph that was read takes" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_another_assignment_starts_anew(dataset: str, tmp_path: Path) -> None:
    own, output = tmp_path / "own.txt", tmp_path / "parts"
    options = ("--part-method", str(own), "--attempts", "1")
    own.write_text("0\n1\n" * 5 + "0\n")
    killed_at("ranking", lambda: partition(dataset, output, *options))
    own.write_text("0\n" * 6 + "1\n" * 5)
    partition(dataset, output, *options)
    partition(dataset, tmp_path / "expected", *options)
    assert content(output) == content(tmp_path / "expected")


def test_one_process_at_a_time(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stages.unfinished(tmp_path / "parts", {}), pytest.raises(SystemExit) as ended:
        partition(dataset, tmp_path / "parts")
    assert ended.value.code == 2
    assert "belongs to a job that is running" in capsys.readouterr().err


def test_sources_of_one_graph_give_the_same_parts(
    dataset: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    edges, nodes = tables()
    masks = {
        f"{name}_mask": (nodes["split"] == name).to_numpy() for name in ("train", "val", "test")
    }
    arrays = {
        "num_nodes": len(nodes),
        "edge_src": edges["src"],
        "edge_dst": edges["dst"],
        "features": nodes[["f0", "f1"]].to_numpy(np.float32),
        "labels": nodes["label"],
        **masks,
    }
    np.savez(tmp_path / "g.npz", **arrays)
    packed = tmp_path / "packed"
    packed.mkdir()
    np.savez_compressed(packed / "g.npz", **arrays)
    folder, many = tmp_path / "arrays" / "g", tmp_path / "many" / "g"
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for stem, table in (("edges", edges), ("nodes", nodes)):
        (many / stem).mkdir(parents=True)
        table[:4].to_csv(many / stem / "0.csv", index=False)
        table[4:].to_csv(many / stem / "1.csv.gz", index=False)
    for number, source in enumerate(
        [write(tmp_path / "g", edges, nodes), tmp_path / "g.npz", packed / "g.npz", folder, many]
    ):
        partition(str(source), tmp_path / str(number))
        found = content(tmp_path / str(number))
        # The manifest says what it was made from.
        for name in whole.keys() - {"manifest.json"}:
            assert found[name] == whole[name], (source, name)


def test_the_benchmark_s_own_files_give_the_same_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ogb.OGB_FEATURES.round(2)
    ogb.ogb_csv(tmp_path / "ogbn_arxiv", "time", rows)
    monkeypatch.setenv("DISTSAGE_DATASETS", str(tmp_path))
    partition("ogbn-arxiv", tmp_path / "expected")
    wanted = content(tmp_path / "expected")
    node = np.arange(ogb.NUM_NODES)
    split = np.select([np.isin(node, list(ogb.SPLIT[name])) for name in ogb.SPLIT], [0, 1, 2], 3)
    words = np.array(["train", "val", "test", ""], object)
    nodes = pd.DataFrame({"id": node, "label": node % 7, "split": words[split]})
    nodes[[f"f{column}" for column in range(rows.shape[1])]] = rows
    edges = pd.DataFrame(ogb.EDGES, columns=["src", "dst"])
    (tmp_path / "tables").mkdir()
    source = write(tmp_path / "tables" / "ogbn-arxiv", edges, nodes, ".parquet")
    partition(source, tmp_path / "found")
    found = content(tmp_path / "found")
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - {"manifest.json"}:
        assert found[name] == wanted[name], name


def broken(directory: Path, name: str) -> None:
    edges, nodes = tables()
    if name == "an edge to no node in the last row":
        edges.loc[len(edges) - 1, "dst"] = 77
    elif name == "an id twice":
        nodes.loc[len(nodes) - 1, "id"] = 0
    elif name == "no number in the last row":
        nodes.loc[len(nodes) - 1, "f1"] = np.nan
    elif name == "ids of two types":
        nodes["id"] = nodes["id"].astype(str).replace("4", "ghost")
    write(directory, edges, nodes, ".parquet")
    if name == "a table that is cut off":
        path = directory / "nodes.parquet"
        path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("an edge to no node in the last row", "is node 77, which nodes.parquet does not have"),
        ("an id twice", "names node 0 more than once"),
        ("no number in the last row", "the column 'f1' has no value in row 11 of the node table"),
        ("ids of two types", "is node 4, which nodes.parquet does not have"),
        ("a table that is cut off", "nodes.parquet cannot be read as a table"),
    ],
)
def test_broken_tables_leave_nothing(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(tmp_path / "g", name)
    with pytest.raises(SystemExit) as ended:
        partition(str(tmp_path / "g"), tmp_path / "parts")
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"g"}


@pytest.mark.parametrize("kind", ["rows", "numbers", "texts"])
def test_an_edge_to_no_node_in_the_millionth_row(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edges, nodes = tables()
    names = nodes["id"].to_numpy() * (1 if kind == "rows" else 10)
    ghost: object = 990
    if kind == "texts":
        names, ghost = np.array([f"n{name}" for name in names], object), "ghost"
    nodes["id"] = names
    columns = {end: np.tile(names[edges[end]], 100_000) for end in ("src", "dst")}
    columns["dst"][1_000_000] = columns["src"][1_050_000] = ghost
    write(tmp_path / "g", pd.DataFrame(columns), nodes, ".parquet")
    with pytest.raises(SystemExit) as ended:
        partition(str(tmp_path / "g"), tmp_path / "parts")
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"distsage: {tmp_path / 'g' / 'edges.parquet'}: the dst of edge 1000000 is node {ghost}, "
        "which nodes.parquet does not have"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"g"}


def test_every_stage_says_how_far_it_is(
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "_LEAST_PAUSE_SECONDS", 0)
    monkeypatch.setattr(progress, "_PAUSE_SHARE", 0)
    monkeypatch.setattr(progress, "_TICK_SECONDS", 0.01)  # KaMinPar's process takes longer
    partition(dataset, tmp_path / "parts", "--part-method", "kaminpar", "--undirected")
    lines = iter(capsys.readouterr().err.splitlines())
    for line in (
        "reading nodes.parquet: 11 of 11 rows, 0 s left",
        "reading edges: 11 of 11 edges, 0 s left",
        "reading features: 11 of 11 rows, 0 s left",
        "assigning nodes: writing what the partitioner reads: 11 of 11 nodes, 0 s left",
        "assigning nodes: KaMinPar: 0 s so far",
        "judging attempt of seed 1: 2 of 2 parts, 0 s left",
        "writing the parts' graphs: 19 of 19 edges, 0 s left",
        "writing labels, masks and dense features: 11 of 11 rows, 0 s left",
        "ranking remote nodes: 2 of 2 parts, 0 s left",
    ):
        assert line in lines  # and those that follow come later
    assert any(line.startswith("checksums: ") for line in lines)
