"""What a user gets wrong, end to end: one sentence, status 2, nothing half-written left behind."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Partitioned, planted
from jobs import distsage, mpirun

from distsage.files import own_directory

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]

MPIRUN_SAYS = re.compile(r"^-{60,}\n.*?^-{60,}\n", re.MULTILINE | re.DOTALL)
Damage = Callable[[Path], None]


def check_sentence(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line of ours on standard error that holds the words, and nothing else but mpirun's."""
    ours = [line for line in MPIRUN_SAYS.sub("", ended.stderr).splitlines() if line]
    assert len(ours) == 1, ended.stderr
    assert ours[0].startswith("distsage: ")
    for word in words:
        assert word in ours[0]
    assert ended.stdout == ""


def refuse_train(n: int, arguments: list[object], run_dir: Path, *words: str) -> None:
    """An mpirun of n ranks is refused and leaves no run directory."""
    ended = mpirun(n, "-m", "distsage", "train", "--run-dir", run_dir, *arguments, status=2)
    check_sentence(ended, *words)
    assert not run_dir.exists()


def test_parts_and_ranks_that_do_not_fit(partitioned: Partitioned, tmp_path: Path) -> None:
    one, two = partitioned(planted(), 1), partitioned(planted(), 2)
    run_dir = tmp_path / "run"
    refuse_train(3, ["--parts", one], run_dir, "3 ranks, an odd number", "2 x PAIRS x HOSTS")
    refuse_train(
        6, ["--parts", two, "--emulated-hosts", 2], run_dir, "6 ranks", "a multiple of 4 ranks"
    )
    refuse_train(
        4, ["--parts", one, "--emulated-hosts", 2], run_dir, "1 part", "2 hosts", "--num-parts 2"
    )


def test_options_that_cannot_be(partitioned: Partitioned, tmp_path: Path) -> None:
    parts = partitioned(planted(), 1)
    run_dir = tmp_path / "run"
    refuse_train(
        2, ["--parts", parts, "--batchsize", 3], run_dir, "--batchsize", "did you mean --batch-size"
    )
    refuse_train(2, ["--parts", tmp_path / "nowhere"], run_dir, "nowhere")
    refuse_train(2, [], run_dir, "--parts DIR or --conf-file")
    refuse_train(2, ["--parts", parts, "--fan-out", "10,x"], run_dir, "--fan-out '10,x'")


def test_a_run_directory_that_cannot_be_written(partitioned: Partitioned, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run_dir = tmp_path / "file" / "run"
    refuse_train(2, ["--parts", partitioned(planted(), 1)], run_dir, "--run-dir", str(run_dir))


def test_a_run_directory_of_a_job_that_runs(partitioned: Partitioned, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--parts", partitioned(planted(), 1), "--run-dir", run_dir]
    with own_directory(run_dir, "job 4711 on a, b", "--run-dir"):
        ended = mpirun(2, "-m", "distsage", "train", *arguments, status=2)
    check_sentence(ended, f"{run_dir} belongs to a job that is running (job 4711 on a, b, process ")
    assert [path.name for path in run_dir.iterdir()] == ["owner.txt"]


def test_a_disk_that_fills_while_training(partitioned: Partitioned, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ["--parts", partitioned(planted(), 2), "--emulated-hosts", 2, "--num-epochs", 1]
    program = Path(__file__).with_name("full_disk_program.py")
    ended = mpirun(4, program, "--run-dir", run_dir, *options, status=2)
    ours = [line for line in MPIRUN_SAYS.sub("", ended.stderr).splitlines() if line]
    assert len(ours) == 1, ended.stderr
    assert ours[0].startswith("distsage: rank 1 (trainer on ")
    said = f"cannot write {run_dir / 'model.safetensors'}: File too large; make room there, or name"
    assert said in ours[0]
    # The note is there, although nothing could be written to it.
    names = {path.name for path in run_dir.iterdir()}
    before = {"config.yaml", "run.json", "progress.json", "checkpoints", "epochs.jsonl"}
    before.add("events.jsonl")
    assert names == before | {"ip_config.txt", "owner.txt", "logs", "failure.txt"}


def test_without_mpirun(partitioned: Partitioned, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    parts = partitioned(planted(), 1)
    ended = distsage("train", "--parts", parts, "--run-dir", run_dir, status=2)
    check_sentence(ended, "mpirun -n 2", "python -m distsage local")
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["127.0.0.1"], ["lists 1 host", "the job has 2"]),
        (["127.0.0.1", "127.0.0.9"], ["127.0.0.9"]),
        (["127.0.0.2", "127.0.0.1"], ["127.0.0.2"]),
        (None, ["ip_config"]),
    ],
    ids=["too few", "a stranger's", "swapped", "missing"],
)
def test_ip_config(
    lines: list[str] | None, words: list[str], partitioned: Partitioned, tmp_path: Path
) -> None:
    ip_config = tmp_path / "ip_config.given"
    if lines is not None:
        ip_config.write_text("\n".join(lines) + "\n")
    options = ["--parts", partitioned(planted(), 2), "--emulated-hosts", 2]
    run_dir = tmp_path / "run"
    refuse_train(4, [*options, "--ip-config", ip_config], run_dir, "ip_config", *words)


def truncate(name: str) -> Damage:
    def damage(parts: Path) -> None:
        content = (parts / name).read_bytes()
        (parts / name).write_bytes(content[: len(content) // 2])

    return damage


def flip(name: str) -> Damage:
    def damage(parts: Path) -> None:
        content = bytearray((parts / name).read_bytes())
        content[-20] ^= 1
        (parts / name).write_bytes(content)

    return damage


def remove(name: str) -> Damage:
    def damage(parts: Path) -> None:
        (parts / name).unlink()

    return damage


def change_json(name: str, key: str, value: object) -> Damage:
    def damage(parts: Path) -> None:
        content = json.loads((parts / name).read_text())
        (parts / name).write_text(json.dumps(content | {key: value}))

    return damage


def pretend_nodes(num_nodes: int) -> Damage:
    """Say that the last part has so many more nodes that the graph has `num_nodes`.

    The files' sizes go with it, so that the manifest agrees with itself.
    """

    def damage(parts: Path) -> None:
        manifest = json.loads((parts / "manifest.json").read_text())
        last = manifest["parts"][-1]
        last["nodes"] = [last["nodes"][0], num_nodes]
        node_map = {"_N": [part["nodes"] for part in manifest["parts"]]}
        more = num_nodes - manifest["num_nodes"]
        for name, row_bytes in (
            ("topology/indptr.npy", 8),
            (f"part{len(manifest['parts']) - 1}/node_feat.dgl", 4 * manifest["num_features"]),
        ):
            manifest["files"][name]["bytes"] += more * row_bytes
        last["bytes"] += more * 4 * manifest["num_features"]
        last["feature_numbers"] += more * manifest["num_features"]
        manifest["num_nodes"] = num_nodes
        (parts / "manifest.json").write_text(json.dumps(manifest))
        change_json("planted.json", "node_map", node_map)(parts)
        change_json("planted.json", "num_nodes", num_nodes)(parts)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate("part1/node_feat.dgl"), ["part1/node_feat.dgl", "bytes"]),
        (truncate("part1/graph.dgl"), ["part1/graph.dgl", "bytes"]),
        (truncate("topology/indices.npy"), ["topology/indices.npy", "bytes"]),
        (flip("part1/node_feat.dgl"), ["part1/node_feat.dgl", "checksum"]),
        (remove("part0/graph.dgl"), ["part0/graph.dgl", "No such file"]),
        (remove("manifest.json"), ["manifest.json"]),
        (truncate("manifest.json"), ["manifest.json", "JSON"]),
        (change_json("planted.json", "num_nodes", 7), ["planted.json", "num_nodes"]),
        (change_json("manifest.json", "format_version", 99), ["version 99"]),
        (pretend_nodes(2**31), ["2,147,483,648 nodes", "the 2,147,483,647 that", "more hosts"]),
    ],
    ids=lambda value: None if callable(value) else "-".join(value),
)
def test_damaged_parts(
    damage: Damage, words: list[str], partitioned: Partitioned, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(partitioned(planted(), 2), parts)
    damage(parts)
    run_dir = tmp_path / "run"
    refuse_train(4, ["--parts", parts, "--emulated-hosts", 2], run_dir, *words)


def npz(path: Path, **changes: np.ndarray) -> Path:
    """A graph of four nodes in a file."""
    values = {
        "num_nodes": np.array(4),
        "edge_src": np.array([0, 1, 2]),
        "edge_dst": np.array([1, 2, 3]),
        "features": np.ones((4, 2), np.float32),
        "labels": np.array([0, 1, 0, 1]),
        "train_mask": np.array([1, 1, 0, 0], bool),
        "val_mask": np.array([0, 0, 1, 0], bool),
        "test_mask": np.array([0, 0, 0, 1], bool),
    }
    np.savez(path, **(values | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "num_parts", "words"),
    [
        ({"features": np.array([[1, 1], [1, np.nan], [1, 1], [1, 1]])}, 2, ["NaN", "row 1"]),
        ({"labels": np.array([0, 1, 0, -7])}, 2, ["labels", "-7"]),
        ({"edge_src": np.array([0, 1, 9])}, 2, ["9"]),
        ({"val_mask": np.array([0, 1, 1, 0], bool)}, 2, ["train_mask", "val_mask"]),
        ({"test_mask": np.zeros(4, bool)}, 2, ["test_mask"]),
        ({}, 5, ["5", "4 nodes"]),
        ({}, 0, ["--num-parts is 0"]),
    ],
    ids=["NaN", "label", "edge", "overlap", "empty", "many-parts", "no-parts"],
)
def test_graphs_that_cannot_be_partitioned(
    changes: dict[str, np.ndarray], num_parts: int, words: list[str], tmp_path: Path
) -> None:
    graph = npz(tmp_path / "graph.npz", **changes)
    arguments = ["--dataset", graph, "--num-parts", num_parts, "--output", tmp_path / "out"]
    ended = distsage("partition", *arguments, status=2)
    said = ended.stderr.splitlines()
    assert "Traceback" not in ended.stderr
    assert sum(line.startswith("distsage: ") for line in said) == 1
    assert said[-1].startswith("distsage: ")
    for word in words:
        assert word in said[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["graph.npz"]


def test_names_that_mean_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, words in (
        (["partition", "--dataset", "coras", "--num-parts", 2, "--output", out], ["did you mean"]),
        (["local", "--dataset", tmp_path / "none.npz", "--run-dir", out], ["none.npz"]),
        (["local", "--parts", tmp_path, "--run-dir", out], ["manifest.json"]),
        (["predict", "--run-dir", tmp_path, "--output", out / "p.csv"], ["out"]),
        (["predict", "--run-dir", tmp_path, "--output", tmp_path / "p.csv"], ["no trained model"]),
    ):
        check_sentence(distsage(*arguments, status=2), *words)
        assert not list(tmp_path.iterdir())
