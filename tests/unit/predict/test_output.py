"""A directory of predictions: whole, taken up after a kill, or not ours."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from distsage.errors import UserError
from distsage.prediction.output import OutputDirectory, write_file
from distsage.prediction.part_rows import rows_of_parts
from distsage.prediction.selection import choose
from distsage.train.collectives import Collectives
from tests.unit.file_limit import room_for

ABOUT = {"what": "logits", "columns": ["id", "l0", "l1"], "file_format": "parquet"}
IDS = np.array(["a", "b", "c"])
VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)


def begun(path: Path) -> OutputDirectory:
    directory = OutputDirectory(path / "out", ABOUT)
    directory.begin()
    directory.write_part(0, IDS[:2], VALUES[:2])
    return directory


def test_a_directory_is_whole_when_its_manifest_is_there(tmp_path: Path) -> None:
    directory = begun(tmp_path)
    assert not directory.is_whole()
    directory.write_part(1, IDS[2:], VALUES[2:])
    assert directory.finish(2) == 3
    assert directory.is_whole()
    names = sorted(path.name for path in directory.path.iterdir())
    assert names == ["_manifest.json", "part-00000.parquet", "part-00001.parquet"]
    table = pyarrow.parquet.read_table(directory.path)
    assert table.to_pydict() == {"id": ["a", "b", "c"], "l0": [0, 2, 4], "l1": [1, 3, 5]}
    manifest = json.loads((directory.path / "_manifest.json").read_text())
    assert [part["rows"] for part in manifest["parts"]] == [2, 1]
    assert manifest["what"] == "logits"


def test_what_was_killed_is_taken_up(tmp_path: Path) -> None:
    first = begun(tmp_path)
    (first.path / ".part-00001.parquet.7.tmp").write_bytes(b"half")
    again = OutputDirectory(first.path, ABOUT)
    again.begin()
    assert [again.written(0), again.written(1)] == [True, False]
    assert not list(first.path.glob(".*"))
    (first.path / "part-00000.parquet").write_bytes(b"half")
    assert not again.written(0)


def test_a_kill_while_a_directory_begins_or_ends(tmp_path: Path) -> None:
    half = tmp_path / "out" / "._started.json.7.tmp"
    half.parent.mkdir()
    half.write_bytes(b"{")
    directory = begun(tmp_path)
    assert not half.exists()
    directory.write_part(1, IDS[2:], VALUES[2:])
    scaffold = {path: path.read_bytes() for path in directory.path.glob("_*")}
    directory.finish(2)
    names = {path.name for path in directory.path.iterdir()}
    for path, content in scaffold.items():
        path.write_bytes(content)  # killed before it was removed
    assert directory.is_whole()
    assert {path.name for path in directory.path.iterdir()} == names


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    begun(tmp_path)
    other = OutputDirectory(tmp_path / "out", {**ABOUT, "what": "embeddings"})
    with pytest.raises(UserError, match="holds other predictions, which differ in what"):
        other.is_whole()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        OutputDirectory(tmp_path / "theirs", ABOUT).is_whole()


def test_a_full_disk_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = begun(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_batch", full)
    with pytest.raises(UserError, match=r"No space left on device; make room .* another --output"):
        directory.write_part(1, IDS[2:], VALUES[2:])
    assert not list(directory.path.glob("*00001*")) + list(directory.path.glob(".*"))


MANY_IDS = np.array([f"n{v}" for v in range(9000)])
MANY_VALUES = np.random.default_rng(0).standard_normal((9000, 2), np.float32)
NO_ROOM = "File too large; make room there, or name another --output$"


@pytest.mark.parametrize("file_format", ["parquet", "npy"])
def test_the_kernel_says_why_a_part_is_not_written(file_format: str, tmp_path: Path) -> None:
    directory = OutputDirectory(tmp_path / "out", {**ABOUT, "file_format": file_format})
    directory.begin()
    with (
        room_for(2000),
        pytest.raises(UserError, match=f"cannot write {directory.path}: {NO_ROOM}"),
    ):
        directory.write_part(0, MANY_IDS, MANY_VALUES)
    assert [path.name for path in directory.path.iterdir()] == ["_started.json"]


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_the_kernel_says_why_a_file_is_not_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_bytes(b"an older one")
    with room_for(2000), pytest.raises(UserError, match=f"cannot write {path}: {NO_ROOM}"):
        write_file(path, ABOUT["columns"], MANY_IDS, MANY_VALUES)
    assert path.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["text", "npy"])
@pytest.mark.parametrize("ids", [np.array([30, 10, 20]), np.array(["x30", "x10", "x20"])])
def test_nodes_by_their_original_ids(ids: np.ndarray, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"nodes.{'npy' if kind == 'npy' else 'txt'}"

    def write(wanted: np.ndarray) -> str:
        if kind == "npy":
            np.save(path, wanted)
        else:
            path.write_text("\n".join(map(str, wanted)) + "\n\n")
        return str(path)

    def no_mask(name: str) -> np.ndarray:
        raise AssertionError(name)

    assert choose(write(ids[[2, 0, 2]]), ids, no_mask).tolist() == [True, False, True]
    unknown = ids[0] + 1 if ids.dtype.kind == "i" else ids[0] + "1"
    with pytest.raises(UserError, match=f"names node {unknown}, but the graph has no such id"):
        choose(write(np.append(ids, unknown)), ids, no_mask)


def test_ids_of_another_kind_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "nodes.txt").write_text("n1\n")
    with pytest.raises(UserError, match="holds ids that are no numbers"):
        choose(str(tmp_path / "nodes.txt"), np.arange(3), lambda name: np.ones(3, bool))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="is no list of ids"):
        choose(str(tmp_path / "empty.txt"), np.arange(3), lambda name: np.ones(3, bool))


def test_parts_of_one_trainer_keep_their_rows() -> None:
    """An empty part in the middle and one at the end have files, too."""
    gids = np.array([0, 2, 3, 7])
    values = torch.arange(8.0)[:, None]  # of all nodes
    offsets = np.array([0, 3, 3, 8, 8])
    found = list(
        rows_of_parts(values, gids, offsets, np.array([0, 8]), Collectives(), lambda: None)
    )
    assert [part for part, _, _ in found] == [0, 1, 2, 3]
    assert [its.tolist() for _, its, _ in found] == [[0, 2], [], [3, 7], []]
    for _, its, take in found:
        assert take(slice(0, len(its))).ravel().tolist() == its.tolist()
