"""Several hosts partition: one host's bytes, and whatever fails is named and ends all."""

from pathlib import Path

import numpy as np
import pytest
from jobs import distsage, mpirun

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(600)]
PROGRAM = Path(__file__).with_name("partition_program.py")


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    """The options that say what to split."""
    rng = np.random.default_rng(0)
    src = rng.integers(0, 300, 3000)
    np.savez(
        tmp_path / "g.npz",
        num_nodes=300,
        edge_src=src,
        edge_dst=(src + rng.integers(-9, 10, len(src))) % 300,
        features=rng.normal(size=(300, 5)).astype(np.float32),
        labels=rng.integers(0, 3, 300),
    )
    words: list[object] = ["--dataset", tmp_path / "g.npz", "--split", "0.5/0.2/0.3"]
    return [*words, "--undirected", "--num-parts", 5]


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_a_killed_rank_is_named_and_others_go_on_to_the_same_bytes(words, tmp_path: Path) -> None:
    output, one = tmp_path / "several", tmp_path / "one"
    said = mpirun(2, PROGRAM, "killed", *words, "--output", output, status=137).stderr
    (line,) = [line for line in said.splitlines() if line.startswith("distsage: ")]
    assert line.startswith("distsage: rank 1 on ")
    assert line.endswith(": killed by SIGKILL")
    assert not output.exists()
    said = mpirun(3, PROGRAM, "nothing", *words, "--output", output).stderr
    assert "going on with what an earlier run has left" in said
    assert "assigning" not in said
    assert "writing the graph" not in said
    distsage("partition", *words, "--output", one)
    assert content(output) == content(one)
    assert {path.name for path in tmp_path.iterdir()} == {"g.npz", "one", "several"}


def test_a_full_disk_of_one_host_ends_all_with_its_sentence(words, tmp_path: Path) -> None:
    said = mpirun(2, PROGRAM, "full disk", *words, "--output", tmp_path / "parts", status=2).stderr
    (line,) = [line for line in said.splitlines() if line.startswith("distsage: ")]
    assert line.startswith("distsage: rank 1 on ")
    assert "No space left on device; make room there, or name another --output" in line
    assert "Traceback" not in said
    assert not (tmp_path / "parts").exists()


def test_a_mistake_that_rank_0_finds_ends_all_with_one_sentence(words, tmp_path: Path) -> None:
    words = [*words, "--num-trainers-per-host", 100]
    said = mpirun(2, PROGRAM, "nothing", *words, "--output", tmp_path / "parts", status=2).stderr
    assert [line for line in said.splitlines() if line.startswith("distsage: ")] == [
        "distsage: g has 300 nodes, too few for 500 parts (5 hosts, 100 trainers each); "
        "ask for fewer"
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"g.npz"}
