"""Readers of a parts directory: what they refuse, and what they leave unread."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distsage.errors import UserError
from distsage.partitioning.attempts import Attempt
from distsage.partitioning.manifest import MANIFEST
from distsage.partitioning.parts import Parts
from distsage.partitioning.quality import QualityReport
from distsage.partitioning.run import partition
from distsage.partitioning.verify import verify
from tests.unit.partition_graphs import random_directed


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "parts"
    partition(random_directed(60, 400), 2, path, method="random")
    return path


@pytest.fixture
def parts(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(written, tmp_path / "parts")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_opens_by_directory_and_by_dgl_json(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts.open(written)
    parts.check_sizes()
    verify(parts)
    assert Parts.open(str(written / "small.json")) == parts
    monkeypatch.chdir(written)
    assert Parts.open("small.json") == parts
    assert Parts.open(".") == parts
    assert parts.dgl_config == written / "small.json"
    np.testing.assert_array_equal(parts.offsets, [0, 30, 60])


def test_opening_imports_neither_dgl_nor_torch(written: Path) -> None:
    program = (
        "import sys; from distsage.partitioning.parts import Parts; "
        "from distsage.partitioning.verify import verify; "
        "parts = Parts.open(sys.argv[1]); parts.topology(); parts.original_ids(); verify(parts); "
        "print({'dgl', 'torch', 'numba'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(written)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"


def test_no_parts_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no parts directory"):
        Parts.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no parts directory"):
        Parts.open(tmp_path / "nowhere" / "graph.json")
    with pytest.raises(UserError, match="no directory that `distsage partition` wrote"):
        Parts.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="there is no parts directory"):
        Parts.open(tmp_path / "file")


def test_another_format_version(parts: Path) -> None:
    edit(parts / MANIFEST, format_version=99)
    with pytest.raises(UserError, match="format version 99"):
        Parts.open(parts)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 1}', "\ud83d"])
def test_unreadable_manifest(parts: Path, content: str) -> None:
    (parts / MANIFEST).write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"manifest\.json"):
        Parts.open(parts)


@pytest.mark.parametrize("field", ["parts", "files", "num_nodes"])
@pytest.mark.parametrize("value", [None, "x", [1], [{"nodes": 3}], {"a": 1}])
def test_damaged_manifest(parts: Path, field: str, value: object) -> None:
    edit(parts / MANIFEST, **{field: value})
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Parts.open(parts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_parts", 3),
        ("num_nodes", 61),
        ("num_edges", 1),
        ("graph_name", "other"),
        ("node_map", {"_N": [[0, 31], [31, 60]]}),
    ],
)
def test_manifest_and_dgl_json_of_different_runs(parts: Path, key: str, value: object) -> None:
    edit(parts / "small.json", **{key: value})
    with pytest.raises(UserError, match=f"differ in {key}"):
        Parts.open(parts)


def test_dgl_json_missing_or_broken_or_another(parts: Path) -> None:
    with pytest.raises(UserError, match=r"quality\.json is not the DGL configuration"):
        Parts.open(parts / "quality.json")
    (parts / "small.json").write_text("{")
    with pytest.raises(UserError, match=r"small\.json is no JSON"):
        Parts.open(parts)
    (parts / "small.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*small\.json: No such file"):
        Parts.open(parts)


FILES = [
    "part1/node_feat.dgl",
    "part1/graph.dgl",
    "part1/edge_feat.dgl",
    "part1/cache_ranking.npy",
    "topology/indptr.npy",
    "topology/indices.npy",
    "original_ids.npy",
    "quality.json",
]


@pytest.mark.parametrize("name", FILES)
def test_truncated_file(parts: Path, name: str) -> None:
    content = (parts / name).read_bytes()
    (parts / name).write_bytes(content[:-1])
    opened = Parts.open(parts)
    for check in (opened.check_sizes, lambda: verify(opened), lambda: verify(opened, [1])):
        with pytest.raises(UserError, match=f"{name} has {len(content) - 1} bytes"):
            check()


@pytest.mark.parametrize("name", FILES)
def test_missing_file(parts: Path, name: str) -> None:
    (parts / name).unlink()
    opened = Parts.open(parts)
    for check in (opened.check_sizes, lambda: verify(opened), lambda: verify(opened, [1])):
        with pytest.raises(UserError, match=f"cannot read .*{name}: No such file"):
            check()


@pytest.mark.parametrize("name", FILES)
def test_changed_byte(parts: Path, name: str) -> None:
    content = bytearray((parts / name).read_bytes())
    content[len(content) // 2] ^= 1
    (parts / name).write_bytes(content)
    opened = Parts.open(parts)
    opened.check_sizes()
    for check in (lambda: verify(opened), lambda: verify(opened, [1])):
        with pytest.raises(UserError, match=f"{name} has changed"):
            check()


def test_verifying_one_part_leaves_the_others_unread(parts: Path) -> None:
    shutil.rmtree(parts / "part1")
    opened = Parts.open(parts)
    verify(opened, [0])
    with pytest.raises(UserError, match="part1"):
        verify(opened, [1])
    with pytest.raises(UserError, match="part1"):
        verify(opened)


def test_readers_name_the_file(parts: Path) -> None:
    opened = Parts.open(parts)
    for name, read in (
        ("topology/indices.npy", opened.topology),
        ("original_ids.npy", opened.original_ids),
        ("part0/cache_ranking.npy", lambda: opened.cache_ranking(0)),
        ("part0/node_feat.dgl", lambda: opened.load_part(0)),
        ("part0/node_feat.dgl", lambda: opened.map_part(0)),
    ):
        content = (parts / name).read_bytes()
        (parts / name).write_bytes(content[:-8])
        with pytest.raises(UserError, match=name):
            read()


def test_array_that_is_no_array(parts: Path) -> None:
    size = (parts / "original_ids.npy").stat().st_size
    (parts / "original_ids.npy").write_bytes(b"x" * size)
    with pytest.raises(UserError, match=r"cannot read .*original_ids\.npy"):
        Parts.open(parts).original_ids()


def test_quality_report(written: Path) -> None:
    manifest = Parts.open(written).manifest
    attempts = [Attempt(7, 50, 12.0), Attempt(8, 60, 20.0)]
    report = QualityReport.of(manifest, [10, 30], "KaMinPar, which is quick", attempts)
    first, second = manifest.parts
    assert report.edge_cut == first.cut_edges + second.cut_edges
    assert report.edge_cut_percent == pytest.approx(100 * report.edge_cut / 400)
    assert report.balance["nodes"] == 1
    assert report.balance["edges"] == pytest.approx(
        max(first.num_edges, second.num_edges) / (400 / 2)
    )
    lines = str(report).splitlines()
    assert lines[0].split() == [
        *("part", "nodes", "halo", "edges", "cut", "train", "val", "test", "size")
    ]
    assert lines[1].split()[:4] == ["0", "30", str(first.halo_nodes), str(first.num_edges)]
    assert len({len(line) for line in lines[:3]}) == 1
    assert f"edge cut: {report.edge_cut} directed edges" in lines[3]
    trains = first.train_nodes, second.train_nodes
    assert report.remote_rows == pytest.approx((10 * trains[0] + 30 * trains[1]) / sum(trains))
    assert lines[5].startswith("remote rows expected in a batch: ")
    assert lines[6:] == [
        "assignment: KaMinPar, which is quick",
        "seed 7: edge cut 50, 12 remote rows expected in a batch",
        "seed 8: edge cut 60, 20 remote rows expected in a batch",
    ]
