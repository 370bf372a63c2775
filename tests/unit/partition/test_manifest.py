"""A manifest is believed only where it can be true, and names no file but those of its parts."""

import hashlib
import json
import os
import shutil

import pytest

from distsage.data.encoding import Encoding
from distsage.errors import UserError
from distsage.launch.stage import stage_parts, staged_path, sweep_staged
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from tests.unit.partition_graphs import random_directed


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "parts"
    partition(random_directed(60, 400), 2, path, method="random")
    return path


@pytest.fixture
def parts(written, tmp_path):
    return shutil.copytree(written, tmp_path / "shared" / "parts")


def change(parts, edit) -> None:
    """Edit the manifest in place, as its object."""
    path = parts / "manifest.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def refuse(parts, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        Parts.open(parts)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("target", ["../../victim", "{tmp}/victim", "part0/../../victim", "victim"])
def test_staging_writes_the_parts_files_and_no_other(parts, tmp_path, target):
    """A file of the manifest's own, whose name leads to one of the user's."""
    name = target.format(tmp=tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    evil = b"evil"
    place = parts / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.resolve() != victim:
        place.write_bytes(evil)
    entry = {"bytes": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
    change(parts, lambda value: value["files"].update({name: entry}))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        stage_parts(
            HostParts.deal(Parts.open(parts), ["a", "b"]),
            0,
            staged_path(tmp_path / "scratch", "job", 0),
        )
    assert victim.read_text() == "precious"
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    "name", ["../other", "/tmp/other", "manifest", "quality", "a/b", "", ".", "a\nb", "a" * 300, 7]
)
def test_odd_graph_names(parts, name):
    change(parts, lambda value: value.update(graph_name=name))
    refuse(parts, "manifest.json is damaged", "name")


def part(value, index=0, **changes):
    value["parts"][index].update(changes)


def file(value, name, **changes):
    value["files"][name].update(changes)


WRONG = {
    "a file missing": lambda v: v["files"].pop("original_ids.npy"),
    "a part's file missing": lambda v: v["files"].pop("part1/graph.dgl"),
    "a file of no part": lambda v: v["files"].update({"part2/graph.dgl": v["files"]["small.json"]}),
    "a file without checksum": lambda v: v["files"]["small.json"].pop("sha256"),
    "a checksum that is none": lambda v: file(v, "small.json", sha256="0" * 63),
    "a checksum in capitals": lambda v: file(v, "small.json", sha256="A" * 64),
    "a negative size": lambda v: file(v, "quality.json", bytes=-1),
    "a size that is a boolean": lambda v: file(v, "quality.json", bytes=True),
    "a size with a fraction": lambda v: file(v, "quality.json", bytes=1.5),
    "a huge size": lambda v: file(v, "quality.json", bytes=1 << 62),
    "a topology of another length": lambda v: file(v, "topology/indptr.npy", bytes=100),
    "edges of another length": lambda v: file(v, "topology/indices.npy", bytes=1 << 40),
    "too small a table": lambda v: file(v, "part0/node_feat.dgl", bytes=10),
    "a gap between parts": lambda v: part(v, nodes=[0, 29]),
    "an overlap of parts": lambda v: part(v, nodes=[0, 31]),
    "a range that runs backwards": lambda v: (part(v, nodes=[0, 70]), part(v, 1, nodes=[70, 60])),
    "a range that starts late": lambda v: part(v, nodes=[1, 30]),
    "edges that are not contiguous": lambda v: part(v, edges=[0, 1]),
    "a range of three": lambda v: part(v, nodes=[0, 30, 60]),
    "a range of booleans": lambda v: part(v, nodes=[False, 30]),
    "more nodes than parts have": lambda v: v.update(num_nodes=61),
    "more edges than parts have": lambda v: v.update(num_edges=401),
    "a huge graph": lambda v: (v.update(num_nodes=1 << 40), part(v, 1, nodes=[30, 1 << 40])),
    "too many halo nodes": lambda v: part(v, halo_nodes=31),
    "more cut edges than edges": lambda v: part(v, cut_edges=401),
    "another edge cut": lambda v: v.update(edge_cut=v["edge_cut"] + 1),
    "more train nodes than nodes": lambda v: part(v, train_nodes=31),
    "a part of another size": lambda v: part(v, bytes=1),
    "no part": lambda v: v.update(parts=[]),
    "parts that are no list": lambda v: v.update(parts={"0": v["parts"][0]}),
    "an unknown field of a part": lambda v: part(v, name="x"),
    "an unknown field": lambda v: v.update(run="x"),
    "a missing field": lambda v: v.pop("versions"),
    "no feature": lambda v: v.update(num_features=0),
    "no class": lambda v: v.update(num_classes=0),
    "classes that are text": lambda v: v.update(num_classes="3"),
    "no trainer": lambda v: v.update(num_trainers_per_host=0),
    "another task": lambda v: v.update(task="regression"),
    "a task that is no text": lambda v: v.update(task=[]),
    "a configuration that is none": lambda v: v.update(configuration=3),
    "an encoding that is none": lambda v: v["configuration"].update(encoding={"names": 7}),
    "an encoding of more features": lambda v: v["configuration"].update(
        encoding=Encoding(v["num_features"] + 1).to_json()
    ),
}


@pytest.mark.parametrize("row", WRONG)
def test_numbers_that_contradict_each_other(parts, row):
    change(parts, WRONG[row])
    refuse(parts, "manifest.json is damaged", "partition the graph again")


def test_a_format_version_that_is_no_number(parts):
    change(parts, lambda value: value.update(format_version=True))
    refuse(parts, "format version True")


DGL_JSON = {
    "features elsewhere": lambda v: v["part-1"].update(node_feats="/tmp/stranger.dgl"),
    "a graph elsewhere": lambda v: v["part-0"].update(part_graph="../part0/graph.dgl"),
    "a part too many": lambda v: v.update({"part-2": v["part-1"]}),
    "a part too few": lambda v: v.pop("part-1"),
    "an entry of its own": lambda v: v.update(chunks=[]),
    "a fraction": lambda v: v.update(num_nodes=60.0),
    "a boolean": lambda v: v.update(halo_hops=True),
    "another type of node": lambda v: v.update(ntypes={"_N": 0, "b": 1}),
    "another method": lambda v: v.update(part_method="../"),
}


@pytest.mark.parametrize("row", DGL_JSON)
def test_dgls_json_leads_nowhere_else(parts, row):
    path = parts / "small.json"
    value = json.loads(path.read_text())
    DGL_JSON[row](value)
    path.write_text(json.dumps(value))
    refuse(parts, "small.json and manifest.json beside it do not belong together")


def test_a_pipe_is_not_waited_for(parts):
    for name in ("manifest.json", "small.json"):
        (parts / name).rename(parts / "kept")
        os.mkfifo(parts / name)
        refuse(parts, f"cannot read {parts / name}", "no regular file")
        (parts / name).unlink()
        (parts / "kept").rename(parts / name)
    opened = Parts.open(parts)
    (parts / "quality.json").unlink()
    os.mkfifo(parts / "quality.json")
    with pytest.raises(UserError, match=r"quality\.json: it is no regular file"):
        opened.check_sizes()


def test_json_that_is_nested_or_long(parts):
    (parts / "manifest.json").write_text("[" * 200_000)
    refuse(parts, "manifest.json", "nested too deeply")
    (parts / "manifest.json").write_text('{"num_nodes": ' + "9" * 5000 + "}")
    refuse(parts, "manifest.json")
    with open(parts / "manifest.json", "wb") as stream:
        stream.truncate(1 << 27)
    refuse(parts, "manifest.json is longer than 64 MiB")


def test_a_loop_of_links(tmp_path):
    (tmp_path / "parts").symlink_to(tmp_path / "parts")
    refuse(tmp_path / "parts", "there is no parts directory")


# --- staging


def test_a_copy_can_be_read_by_its_owner_only(parts, tmp_path):
    target = staged_path(tmp_path / "scratch", "job", 0)
    stage_parts(HostParts.deal(Parts.open(parts), ["a", "b"]), 0, target)
    assert target.stat().st_mode & 0o777 == 0o700


def test_staging_does_not_follow_what_lies_at_its_target(parts, tmp_path):
    """Its place may be anybody's, such as /tmp, and its name can be guessed in part."""
    target = staged_path(tmp_path / "scratch", "job", 0)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "home").mkdir()
    target.symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match="cannot write to --stage"):
        stage_parts(HostParts.deal(Parts.open(parts), ["a", "b"]), 0, target)
    assert list((tmp_path / "home").iterdir()) == []


def test_a_manifest_that_changes_meanwhile_is_noticed(parts, tmp_path):
    opened = Parts.open(parts)
    change(parts, lambda value: value["versions"].update(dgl="0"))
    with pytest.raises(UserError, match="changed while it was copied"):
        stage_parts(
            HostParts.deal(opened, ["a", "b"]), 0, staged_path(tmp_path / "scratch", "job", 0)
        )
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user")
def test_sweeping_leaves_what_others_put_there(tmp_path):
    theirs, link = staged_path(tmp_path, "theirs", 0), staged_path(tmp_path, "link", 0)
    theirs.mkdir()
    (theirs / ".lock").touch()
    os.chown(theirs, 1234, 1234)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".lock").touch()
    link.symlink_to(tmp_path / "home")
    assert sweep_staged(tmp_path) == []
    assert theirs.exists()
    assert (tmp_path / "home" / ".lock").exists()
