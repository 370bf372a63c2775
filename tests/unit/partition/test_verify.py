"""Parts are verified before they are used; what was read is remembered, and only by oneself."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from distsage.config import LocalConfig, PredictConfig
from distsage.errors import UserError
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from distsage.partitioning.verify import load_parts, verify
from distsage.prediction.run import write_predictions
from distsage.train.local import train
from tests.unit.partition_graphs import ring


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "distsage" / "verified"


@pytest.fixture
def parts(tmp_path, cache):
    partition(ring(24), 2, tmp_path / "parts", method="random")
    return Parts.open(tmp_path / "parts")


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose checksums are computed."""
    names: list[str] = []
    verify_file = Parts.verify_file

    def record(self, name, on_chunk):
        names.append(name)
        verify_file(self, name, on_chunk)

    monkeypatch.setattr(Parts, "verify_file", record)
    return names


@pytest.mark.parametrize("name", ["part1/node_feat.dgl", "topology/indices.npy"])
def test_a_damaged_file_is_named(parts, name):
    path = parts.path / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"{name} has {len(content) - 1} bytes"):
        verify(parts, [1])
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name} has changed"):
        verify(parts, [1])
    path.write_bytes(content)
    verify(parts, [1])


def test_another_parts_files_are_not_read(parts):
    (parts.path / "part1" / "node_feat.dgl").unlink()
    verify(parts, [0])
    with pytest.raises(UserError, match="part1/node_feat.dgl"):
        verify(parts, [1])


def test_checksums_are_remembered_until_a_file_changes(parts, read):
    verify(parts, [0])
    assert len(read) == len(parts.files_of([0]))
    read.clear()
    verify(parts, [0])
    assert read == []
    os.utime(parts.path / "topology" / "indptr.npy", ns=(1, 1))
    verify(parts, [0])
    assert read == ["topology/indptr.npy"]


def test_a_change_that_hides_its_time_is_seen(parts):
    """Same size, same inode, and the old time of its last change."""
    verify(parts)
    path = parts.path / "topology" / "indptr.npy"
    before = path.stat()
    with open(path, "r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\x7f")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"indptr\.npy has changed"):
        verify(parts)


def write_of_another_user(record: Path) -> None:
    os.chown(record, 1234, 1234)


def link_to_another_file(record: Path) -> None:
    record.rename(record.with_suffix(".elsewhere"))
    record.symlink_to(record.with_suffix(".elsewhere"))


DISTRUSTED = {
    "another user's": write_of_another_user,
    "writable by others": lambda record: record.chmod(0o666),
    "in a directory that others may write": lambda record: record.parent.chmod(0o777),
    "in another user's directory": lambda record: os.chown(record.parent, 1234, 1234),
    "a link": link_to_another_file,
    "cut short": lambda record: record.write_bytes(record.read_bytes()[:-20]),
    "not an object": lambda record: record.write_text("[1]"),
    "nested deeply": lambda record: record.write_text("[" * 200_000),
    "of other files": lambda record: record.write_text('{"topology/indptr.npy": 7}'),
}


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("what", DISTRUSTED)
def test_a_record_that_may_be_anothers_or_is_damaged_is_not_believed(parts, cache, read, what):
    verify(parts)
    read.clear()
    (record,) = cache.iterdir()
    DISTRUSTED[what](record)
    verify(parts)
    assert len(read) == len(parts.files_of())


def test_a_cache_that_cannot_be_written_costs_reading_only(parts, cache, read, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    verify(parts)
    read.clear()
    verify(parts)
    assert len(read) == len(parts.files_of())


@pytest.mark.parametrize(
    "name", ["topology/indptr.npy", "topology/indices.npy", "part0/node_feat.dgl"]
)
def test_no_command_uses_a_changed_file(parts, tmp_path, name):
    """A changed byte of indptr.npy ended predict with SIGSEGV; others were not noticed."""
    options = {"num_epochs": 1, "num_hidden": 4, "fan_out": "2", "num_workers": 0}
    train(LocalConfig(parts=parts.path, run_dir=tmp_path / "run", **options))
    path = parts.path / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)
    refused = [
        lambda: write_predictions(
            PredictConfig(run_dir=tmp_path / "run", output=tmp_path / "out.npz")
        ),
        lambda: train(LocalConfig(parts=parts.path, run_dir=tmp_path / "run2", **options)),
        lambda: load_parts(parts.path),
    ]
    for use in refused:
        with pytest.raises(UserError, match=f"{name} has changed"):
            use()
    assert not (tmp_path / "out.npz").exists()
    assert not (tmp_path / "run2").exists()


def test_rows_that_the_manifest_does_not_describe(parts, tmp_path):
    """Checksums that fit do not make features of another width usable."""
    other = tmp_path / "other"
    graph = ring(24, features=np.zeros((24, 1), np.float32))
    partition(graph, 2, other, method="random")
    manifest = json.loads((other / "manifest.json").read_text())
    theirs = json.loads((parts.path / "manifest.json").read_text())
    for part in (0, 1):
        name = f"part{part}/node_feat.dgl"
        shutil.copy(parts.path / name, other / name)
        manifest["files"][name] = theirs["files"][name]
        manifest["parts"][part]["bytes"] = sum(
            file.stat().st_size for file in (other / f"part{part}").iterdir()
        )
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not hold the rows that the manifest says"):
        load_parts(other)
