"""Prediction by many ranks says what one process says, and leaves nothing half-written."""

import json
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from conftest import Partitioned, planted
from jobs import Job, distsage, mpirun

from distsage.config import TrainConfig
from distsage.model.graphsage import GraphSAGE
from distsage.partitioning.parts import Parts
from distsage.train.checkpoint import Best, Origin, weights_of
from distsage.train.run_directory import RunDirectory, plain

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]


def write_run(path: Path, parts: Path) -> None:
    """A run on some parts, with a model of three layers that nobody has trained."""
    manifest = Parts.open(parts).manifest
    config = TrainConfig(parts=parts, run_dir=path, num_hidden=8)
    model = GraphSAGE(manifest.num_features, 8, manifest.num_classes, 3, 0.5, seed=3)
    origin = Origin(
        command="train",
        kernels="",
        device="cpu",
        model=model.shape,
        task=manifest.task,
        graph=manifest.graph_name,
        content={},
        checksum=manifest.checksum,
        trainers=1,
        versions={},
        config=plain(asdict(config)),
    )
    scores = {"val": {"accuracy": 0.5}}
    RunDirectory.begin(path, config).save_model(origin, Best(3, 0.5, scores, weights_of(model)))


def arguments(run: Path, output: Path, *options: object, hosts: int) -> list[object]:
    where = ("--run-dir", run, "--output", output, "--emulated-hosts", hosts)
    return ["-m", "distsage", "predict", *where, *options]


def of_one_process(run: Path, output: Path, *options: object) -> tuple[list[str], np.ndarray]:
    distsage("predict", "--run-dir", run, "--output", output, *options)
    with np.load(output) as written:
        return written["ids"].tolist(), written["values"]


def test_four_trainers_on_two_hosts_and_a_kill_before(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    """Three parts: one host's trainers share a part, the other's has two, in another order."""
    parts, run, output = partitioned(planted(), 3), tmp_path / "run", tmp_path / "out"
    write_run(run, parts)
    asked = arguments(run, output, hosts=2)
    job = Job(8, *asked)
    deadline = time.monotonic() + 200
    while not (output / "_started.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim = job.rank_processes().get(3)
    if victim is not None:  # not ended already
        os.kill(victim, signal.SIGKILL)
        job.wait(None)
        assert not (output / "_manifest.json").exists()
    else:
        job.wait(0)
    mpirun(8, *asked)

    manifest = json.loads((output / "_manifest.json").read_text())
    assert [part["part"] for part in manifest["parts"]] == [0, 1, 2]
    assert not list(output.glob("_part*")) + list(output.glob(".*"))
    bounds = Parts.open(parts).offsets
    original = Parts.open(parts).original_ids()
    for part, entry in enumerate(manifest["parts"]):
        (file,) = entry["files"]
        ids = pyarrow.parquet.read_table(output / file["name"])["id"].to_pylist()
        assert ids == original[bounds[part] : bounds[part + 1]].tolist()
    table = pyarrow.parquet.read_table(output).sort_by("id")  # as one table, the rest passed over
    ids, values = of_one_process(run, tmp_path / "one.npz")
    assert table["id"].to_pylist() == ids
    assert table.column_names == manifest["columns"] == ["id", "p0", "p1", "p2"]
    found = np.stack([table[name].to_numpy() for name in table.column_names[1:]], 1)
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)


def test_some_nodes_of_other_parts_by_one_pair(partitioned: Partitioned, tmp_path: Path) -> None:
    """The run was on two parts. Embeddings of the first layer, as arrays."""
    run, output = tmp_path / "run", tmp_path / "out"
    write_run(run, partitioned(planted(), 2))
    other = partitioned(planted(), 4)
    chosen = [f"n{v}" for v in range(0, 600, 7)]
    (tmp_path / "chosen.txt").write_text("\n".join(chosen) + "\n")
    options = ["--parts", other, "--nodes", tmp_path / "chosen.txt"]
    options += ["--what", "embeddings", "--layer", 1]
    asked = arguments(run, output, *options, "--file-format", "npy", hosts=1)
    mpirun(2, *asked)
    files = [f"part-{part:05d}" for part in range(4)]
    ids = np.concatenate([np.load(output / f"{name}.ids.npy") for name in files])
    values = np.concatenate([np.load(output / f"{name}.npy") for name in files])
    order = np.argsort(ids)
    expected_ids, expected = of_one_process(run, tmp_path / "one.npz", *options)
    assert ids[order].tolist() == expected_ids == sorted(chosen)
    np.testing.assert_allclose(values[order], expected, rtol=1e-5, atol=1e-6)
    assert values.shape == (86, 8)


def test_scores_of_two_hosts_are_those_of_one_process(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    write_run(run, partitioned(planted(), 3))
    asked = ["evaluate", "--run-dir", run]
    of_ranks = mpirun(4, "-m", "distsage", *asked, "--emulated-hosts", 2).stdout.splitlines()
    of_one = distsage(*asked).stdout.splitlines()
    assert len(of_one) == 4
    assert of_one[2].startswith("val accuracy 0.")
    assert of_one[2].endswith("(in training 0.5000)")
    assert of_ranks[-4:] == of_one
