"""Prediction by many ranks says what one process says, and leaves nothing half-written."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

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

PROGRAM = Path(__file__).with_name("predict_program.py")
PREDICT = ("-m", "distsage", "predict")


def write_run(path: Path, parts: Path, topology: str = "auto") -> None:
    """A run on some parts, with a model of three layers that nobody has trained."""
    manifest = Parts.open(parts).manifest
    config = TrainConfig(parts=parts, run_dir=path, num_hidden=8, topology=topology)
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


def asked(run: Path, output: Path, *options: object, hosts: int) -> list[object]:
    return ["--run-dir", run, "--output", output, "--emulated-hosts", hosts, *options]


def of_one_process(run: Path, output: Path, *options: object) -> tuple[list[str], np.ndarray]:
    distsage("predict", "--run-dir", run, "--output", output, *options)
    with np.load(output) as written:
        return written["ids"].tolist(), written["values"]


def content(output: Path) -> dict[str, bytes]:
    """All files but the job's logs."""
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def check(output: Path, parts: Path, run: Path, scratch: Path) -> None:
    """A directory of all nodes: whole, in the parts' order, and what one process says."""
    manifest = json.loads((output / "_manifest.json").read_text())
    files = [part["files"][0]["name"] for part in manifest["parts"]]
    assert sorted(content(output)) == ["_manifest.json", *files]
    opened = Parts.open(parts)
    assert len(files) == opened.num_parts
    original = opened.original_ids()
    for part, file in enumerate(files):
        ids = pyarrow.parquet.read_table(output / file)["id"].to_pylist()
        assert ids == original[opened.offsets[part] : opened.offsets[part + 1]].tolist()
    table = pyarrow.parquet.read_table(output).sort_by("id")  # as one table, the rest passed over
    ids, values = of_one_process(run, scratch / "one.npz")
    assert table["id"].to_pylist() == ids
    assert table.column_names == manifest["columns"] == ["id", "p0", "p1", "p2"]
    found = np.stack([table[name].to_numpy() for name in table.column_names[1:]], 1)
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)


class Undisturbed(NamedTuple):
    """A job that nobody has killed, and where the moments of its ranks are listed."""

    parts: Path
    run: Path
    output: Path
    moments: Path

    def moments_of(self, rank: int) -> list[str]:
        return Path(f"{self.moments}-{rank}").read_text().splitlines()


@pytest.fixture(scope="module")
def undisturbed(partitioned: Partitioned, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """16 parts on three hosts, so that one has a part more than the others."""
    path: Path = tmp_path_factory.mktemp("undisturbed")
    job = Undisturbed(partitioned(planted(), 16), path / "run", path / "out", path / "moments")
    write_run(job.run, job.parts, topology="partitioned")
    mpirun(6, PROGRAM, "none", job.moments, *asked(job.run, job.output, hosts=3))
    return job


def test_sixteen_parts_on_three_hosts(undisturbed: Undisturbed, tmp_path: Path) -> None:
    check(undisturbed.output, undisturbed.parts, undisturbed.run, tmp_path)


def kill_and_go_on(job: Undisturbed, output: Path, rank: int, moment: str) -> None:
    """The same job again: killed, and then not."""
    whole = content(job.output)
    Job(6, PROGRAM, rank, moment, *asked(job.run, output, hosts=3)).wait(None)
    left = content(output) if output.exists() else {}
    tables = {name: data for name, data in left.items() if name.endswith(".parquet")}
    assert {name: data for name, data in tables.items() if name[0] != "."}.items() <= whole.items()
    mpirun(6, *PREDICT, *asked(job.run, output, hosts=3))
    assert content(output) == whole


def test_a_job_that_is_killed_at_a_random_moment_goes_on_to_the_same_bytes(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A trainer, while it writes."""
    writing = [name for name in undisturbed.moments_of(3) if "Output" in name or "atomic" in name]
    moment = writing[int(np.random.default_rng(5).integers(len(writing)))]
    kill_and_go_on(undisturbed, tmp_path / "out", 3, moment)


def test_sixteen_parts_and_four_trainers_on_two_hosts(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    """A part's rows may be two trainers'."""
    parts, run, output = partitioned(planted(), 16), tmp_path / "run", tmp_path / "out"
    write_run(run, parts, topology="replicated")
    mpirun(8, *PREDICT, *asked(run, output, hosts=2))
    check(output, parts, run, tmp_path)


def test_some_nodes_of_other_parts_by_one_pair(partitioned: Partitioned, tmp_path: Path) -> None:
    """The run was on two parts. Embeddings of the first layer, as arrays."""
    run, output = tmp_path / "run", tmp_path / "out"
    write_run(run, partitioned(planted(), 2))
    other = partitioned(planted(), 16)
    chosen = [f"n{v}" for v in range(0, 600, 7)]
    (tmp_path / "chosen.txt").write_text("\n".join(chosen) + "\n")
    options = ["--parts", other, "--nodes", tmp_path / "chosen.txt"]
    options += ["--what", "embeddings", "--layer", 1]
    mpirun(2, *PREDICT, *asked(run, output, *options, "--file-format", "npy", hosts=1))
    files = [f"part-{part:05d}" for part in range(16)]
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
    evaluate = ["evaluate", "--run-dir", run]
    of_ranks = mpirun(4, "-m", "distsage", *evaluate, "--emulated-hosts", 2).stdout.splitlines()
    of_one = distsage(*evaluate).stdout.splitlines()
    assert len(of_one) == 4
    assert of_one[2].startswith("val accuracy 0.")
    assert of_one[2].endswith("(in training 0.5000)")
    assert of_ranks[-4:] == of_one
