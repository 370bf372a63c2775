"""`partition` within a bound on memory: graphs that are larger, and a bound too small."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from distsage.cli import main
from distsage.config import parse_bytes
from distsage.data import datasets
from distsage.limits import hold_to
from distsage.partitioning.parts import Parts
from tests.unit.data_files import tables, write
from tests.unit.memory_group import MemoryGroup

ROWS, COLUMNS = 65_536, 256  # 64 MiB in float32


def write_npz(path: Path, rows: np.ndarray) -> str:
    node = np.arange(len(rows))
    np.savez(
        path.with_suffix(".npz"),
        num_nodes=len(rows),
        edge_src=node,
        edge_dst=np.roll(node, 1),
        labels=node % 2,
        features=rows,
    )
    return str(path.with_suffix(".npz"))


# How it is written, of which type, and the MiB that may be used.
SOURCES: dict[str, tuple[Callable[[Path, np.ndarray], str], type[np.floating], int]] = {
    "mapped": (write_npz, np.float32, 20),
    "converted": (write_npz, np.float64, 20),
}


@pytest.mark.parametrize("source", SOURCES)
def test_features_larger_than_memory(source: str, tmp_path: Path) -> None:
    write, dtype, mebibytes = SOURCES[source]
    features = np.random.default_rng(0).random((ROWS, COLUMNS), np.float32)
    dataset = write(tmp_path / "large", features.astype(dtype))
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.unit.programs.partition_within", str(mebibytes)),
            *(write(tmp_path / "small", features[:40].astype(dtype)), dataset),
            str(tmp_path / "parts"),
        ],
        # What threads set aside counts: stacks of 8 MiB and arenas of 64 MiB, by default.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20)),
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "ARROW_DEFAULT_MEMORY_POOL": "system",
        },
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ended.returncode == 0, ended.stderr
    parts = Parts.open(tmp_path / "parts")
    original = parts.original_ids()
    for part, summary in enumerate(parts.manifest.parts):
        rows = parts.load_part(part)["features"]
        np.testing.assert_array_equal(rows, features[original[slice(*summary.nodes)]])
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_a_graph_larger_than_a_hard_limit(memory_group: MemoryGroup, tmp_path: Path) -> None:
    """Reading, KaMinPar and writing, each of which the kernel would kill beyond the limit."""
    most = 256 << 20
    num_nodes, num_columns = 100_000, 700
    folder = tmp_path / "g"
    folder.mkdir()
    node = np.arange(num_nodes, dtype=np.int32)
    src = np.random.default_rng(0).integers(0, num_nodes, 400_000, np.int32)
    np.save(folder / "edge_src.npy", src)
    np.save(folder / "edge_dst.npy", (src + np.roll(src, 1) % 99) % num_nodes)
    np.save(folder / "labels.npy", node % 5)
    rows = np.lib.format.open_memmap(
        folder / "features.npy", "w+", np.float32, (num_nodes, num_columns)
    )
    for start in range(0, num_nodes, 10_000):
        rows[start : start + 10_000] = node[start : start + 10_000, None]
    del rows
    assert (folder / "features.npy").stat().st_size > most
    memory_group.limit(most)
    words = ["partition", "--dataset", str(folder), "--undirected", "--split", "0.5/0.2/0.3"]
    # What is expected to be needed is counted generously.
    words += ["--num-parts", "4", "--force"]
    ended = subprocess.run(
        [
            *(*memory_group.within, sys.executable, "-m", "distsage", *words),
            *("--output", str(tmp_path / "limited")),
        ],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ended.returncode == 0, ended.stderr
    main([*words, "--output", str(tmp_path / "free")])
    manifests = [tmp_path / name / "manifest.json" for name in ("limited", "free")]
    # With the checksums of all files.
    assert manifests[0].read_bytes() == manifests[1].read_bytes()


@pytest.fixture
def unbound() -> Iterator[None]:
    """Later tests may use all memory again."""
    yield
    hold_to(None)


def run(*options: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["partition", "--num-parts", "2", *options])
    return int(str(ended.value.code))


@pytest.mark.usefixtures("unbound")
def test_too_small_a_limit_is_named_once_with_what_all_stages_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read, wherever names or headers tell how large the graph is."""
    packed = write_npz(tmp_path / "packed", np.ones((40, 3), np.float32))
    (tmp_path / "arrays").mkdir()
    with np.load(packed) as arrays:
        for name in arrays:
            np.save(tmp_path / "arrays" / f"{name}.npy", arrays[name])
    parquet = write(tmp_path / "parquet", *tables(), ".parquet")
    output = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_read", None)
        for dataset in (packed, str(tmp_path / "arrays"), parquet, "synthetic:3000:20"):
            options = ["--dataset", dataset, "--output", str(output)]
            assert run(*options, "--memory", "1M") == 2
            said = capsys.readouterr().err.splitlines()[-1]
            assert ": too little memory; give --memory " in said
    (least,) = (int(number) for number in re.findall(r"give --memory (\d+)M or more", said))
    # What earlier tests have imported counts; some more is to come.
    main(["partition", "--num-parts", "2", *options, "--memory", f"{least + 100}M"])
    assert Parts.open(output).num_parts == 2


@pytest.mark.parametrize("text", ["", "4", "0G", "-1G", "4GG", "four", "1e3G", "4 X"])
def test_sizes_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dataset", "synthetic", "--memory", text) == 2
    assert "such as 4G" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 << 30), ("1.5k", 1536), ("20MiB", 20 << 20), ("1TB", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size
