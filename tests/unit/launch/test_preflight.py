"""Preflight: each check fails with the host and the remedy; checksums are remembered."""

import mmap
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distsage.config import PreflightConfig
from distsage.errors import UserError
from distsage.launch import preflight
from distsage.launch.stage import stage_parts, staged_path, sweep_staged
from distsage.limits import SHARED_MEMORY
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from distsage.partitioning.verify import verify
from tests.unit.partition_graphs import ring


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    partition(ring(24), 2, tmp_path / "parts", method="random")
    return on_two_hosts(Parts.open(tmp_path / "parts"))


def on_two_hosts(parts):
    return HostParts.deal(parts, ["a", "b"])


def test_versions():
    same = {"torch": "1", "dgl": "1"}
    preflight.check_versions({"a": same, "b": dict(same)})
    with pytest.raises(UserError, match="b has dgl 2 but a has 1"):
        preflight.check_versions({"a": same, "b": {"torch": "1", "dgl": "2"}})
    assert set(preflight.versions()) >= {"distsage", "Python", "torch", "dgl"}


def test_clocks():
    preflight.check_clocks({"a": 1000.0, "b": 1003.0})
    with pytest.raises(UserError, match="clock of b is 100 s ahead of that of a"):
        preflight.check_clocks({"a": 1000.0, "b": 1100.0})


def test_reach():
    with preflight.reachable_ports("127.0.0.1", "job") as ports:
        assert len(set(ports)) == 2
        preflight.check_reach("a", {"b": ("127.0.0.1", ports)})
    with pytest.raises(UserError, match="a cannot reach b at 127.0.0.1"):
        preflight.check_reach("a", {"b": ("127.0.0.1", ports)})


def options(**chosen):
    return PreflightConfig(parts="unused", **chosen)


@pytest.mark.parametrize("checked", ["shared memory", "memory"])
def test_memory_at_the_boundary(parts, monkeypatch, checked):
    config, ranks = options(), 4
    need = {
        "shared memory": sum(preflight.shared_memory_need(parts, p, config) for p in (0, 1)),
        "memory": sum(preflight.memory_need(parts, p, config, ranks) for p in (0, 1)),
    }
    free = dict.fromkeys(need, 1 << 40) | {checked: need[checked]}
    monkeypatch.setattr(preflight, "free_shared_memory", lambda: free["shared memory"])
    monkeypatch.setattr(preflight, "free_memory", lambda: free["memory"])
    preflight.check_memory(parts, [0, 1], config, ranks)
    free[checked] -= 1
    sentence = "/dev/shm has .* free but part 0, part 1 needs"
    if checked == "memory":
        sentence = "of memory are left for this job but part 0, part 1 needs .* ask for more"
    with pytest.raises(UserError, match=sentence):
        preflight.check_memory(parts, [0, 1], config, ranks)
    preflight.check_memory(parts, [0], config, ranks)


def test_shared_memory_counts_the_features_type_and_the_cache(tmp_path):
    width, nodes = 10, 24
    features = np.ones((nodes, width), np.float32)
    partition(ring(nodes, features=features), 2, tmp_path / "wide", method="random")
    parts = on_two_hosts(Parts.open(tmp_path / "wide"))
    own, remote = parts.manifest.parts[0].num_nodes, parts.manifest.parts[1].num_nodes

    def need(**chosen):
        return preflight.shared_memory_need(parts, 0, options(**chosen))

    bare = need(cache_ratio=0)
    assert bare - need(cache_ratio=0, feat_dtype="bfloat16") == own * width * 2
    assert bare - need(cache_ratio=0, feat_dtype="int8") == own * width * 3
    ranked = len(parts.parts.cache_ranking(0))
    assert 0 < ranked <= remote
    assert need(cache_ratio=1) - bare == ranked * width * 4  # no more rows than were ranked
    assert (
        need(cache_bytes=3 * width * 2, feat_dtype="float16")
        - need(cache_ratio=0, feat_dtype="float16")
        == 3 * width * 2
    )


def test_nodes_that_cannot_be_numbered(parts):
    """A manifest of a large graph, without the graph; its rankings have 12 nodes at most."""
    ranked = len(parts.parts.cache_ranking(1))
    assert ranked > 0

    def check(nodes, own, **chosen):
        manifest = parts.manifest
        summary = replace(manifest.parts[1], nodes=(nodes - own, nodes))
        first = replace(manifest.parts[0], nodes=(0, nodes - own))
        large = replace(manifest, num_nodes=nodes, parts=(first, summary))
        preflight.check_num_nodes(
            on_two_hosts(Parts(parts.parts.path, large)), 1, options(**chosen)
        )

    most = 2**31 - 1
    check(most - 1000, 1000, cache_ratio=0)
    check(most - 1000 - ranked, 1000, cache_ratio=1)
    with pytest.raises(UserError, match=f"a cache of {ranked} rows .* at most {ranked - 1} can be"):
        check(most - 1000 - ranked + 1, 1000, cache_ratio=1)
    for nodes in (most - 999, 2**31, 2**33):
        with pytest.raises(UserError, match=rf"has {nodes:,} nodes .* 2,147,483,647 .* more hosts"):
            check(nodes, 1000, cache_ratio=0)


def test_leftovers_are_swept_and_live_segments_are_not():
    prefix = f"distsage.{os.getuid()}.test.{os.getpid()}"
    names = ("dead", "mapped", "opened")
    dead, mapped, opened = (SHARED_MEMORY / f"{prefix}.{name}" for name in names)
    for path in (dead, mapped, opened):
        path.write_bytes(b"x" * mmap.PAGESIZE)
    try:
        with open(mapped, "r+b") as stream:
            mapping = mmap.mmap(stream.fileno(), 0)
        # As a job's that has just made it and not yet mapped it, however old it may be.
        os.utime(opened, (1, 1))
        with mapping, open(opened, "rb"):
            preflight.sweep_leftovers()
            assert not dead.exists()
            assert mapped.exists()
            assert opened.exists()
        preflight.sweep_leftovers()
        assert not mapped.exists()
        assert not opened.exists()
    finally:
        for path in (dead, mapped, opened):
            path.unlink(missing_ok=True)


def test_only_own_segments_of_mpich_lose_their_names():
    """They stay mapped, and vanish with the process; MPICH removes them only at a good end."""
    name = f"{preflight.MPICH_SEGMENT}test-{os.getpid()}"
    own, other = (SHARED_MEMORY / f"{name}.{whose}" for whose in ("own", "other"))
    for path in (own, other):
        path.write_bytes(b"x" * mmap.PAGESIZE)
    try:
        with open(own, "r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
            preflight.release_mpich_segments()
            assert (own.exists(), other.exists()) == (False, True)
            assert memory[:1] == b"x"
    finally:
        other.unlink()


def test_a_staged_copy_is_whole_and_holds_one_part(parts, tmp_path):
    target = staged_path(tmp_path / "scratch", "job", 1)
    copy = stage_parts(parts, 1, target)
    copy.parts.check_sizes([1])
    verify(copy.parts, [1])
    assert copy.parts.path == target
    assert not (target / "part0").exists()
    assert sweep_staged(tmp_path / "scratch") == []  # this process is alive and holds its lock


def test_staging_refuses_a_damaged_file_and_leaves_nothing(parts, tmp_path):
    path = parts.parts.path / "part1" / "graph.dgl"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="part1/graph.dgl"):
        stage_parts(parts, 1, staged_path(tmp_path / "scratch", "job", 1))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_dead_jobs_copies_are_swept(tmp_path):
    left = staged_path(tmp_path, "dead", 0)
    left.mkdir()
    (left / ".lock").touch()
    assert sweep_staged(tmp_path) == [left.name]
    assert not left.exists()


def test_staging_where_nothing_can_be_written(parts):
    with pytest.raises(UserError, match="cannot write to --stage /proc/nowhere"):
        stage_parts(parts, 0, staged_path(Path("/proc/nowhere"), "job", 0))


def test_an_own_port_is_really_open():
    with preflight.reachable_ports("127.0.0.1", "job") as ports:
        for port in ports:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
