"""A run of `partition` that is killed goes on after its last finished stage, to the same bytes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from distsage import limits
from distsage.cli import main
from distsage.data import datasets
from distsage.partitioning import dgl_format, run, shares, stages
from tests.unit.data_files import tables, write

# The function whose n-th call is the process's last, and how many stages are done by then.
MOMENTS: dict[str, tuple[Any, str, int, int]] = {
    "reading": (datasets, "check_labels", 1, 0),
    "before the graph's mark": (stages, "write_json", 2, 0),
    "the second attempt": (run, "judged", 2, 1),
    "before the assignment": (run, "choose", 1, 1),
    "ordering": (run, "order_parts", 1, 1),
    "the second part": (dgl_format, "write_graph", 2, 2),
    "rows": (dgl_format.NodeData, "write", 3, 2),
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
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        function, count = getattr(holder, name), 0

        def last(*arguments: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        setattr(holder, name, last)
        try:
            do()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


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
