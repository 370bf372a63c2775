"""A disk that fills while a graph is partitioned: one sentence, and nothing half-written."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from distsage.cli import main
from distsage.data import datasets, engine, tables
from distsage.partitioning import assignment, own_process, run, shares, stages
from tests.unit.data_files import tables as small_tables
from tests.unit.data_files import write

# 3,000 rows take 1.2 MB, 245,324 edges 1 MB, and 2 MB as partitioners read them.
DATASET = {
    "random": "synthetic:3000:20",
    "metis": "synthetic:3000:120",
    "kaminpar": "synthetic:3000:120",
}


@pytest.fixture(scope="module", autouse=True)
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a fresh tree, the cache of compiled code would be the first file that is too large."""
    for method in DATASET:
        output = tmp_path_factory.mktemp("warm-up") / "parts"
        words = ["--dataset", "synthetic:300:20", "--num-parts", "2", "--output", str(output)]
        main(["partition", "--part-method", method, *words])


@pytest.mark.parametrize(
    ("method", "num_parts", "largest"),
    [
        ("random", 2, 100),  # features, while they are read
        ("metis", 2, 1_205_000),  # what partitioners read
        ("kaminpar", 2, 1_205_000),
        ("random", 1, 1_220_000),  # the last rows of a part
    ],
)
def test_a_full_disk_is_a_sentence(
    method: str, num_parts: int, largest: int, tmp_path: Path
) -> None:
    # A limit on the size of files, in place of a disk that is full, stops all writers alike.
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "distsage", "partition", "--dataset", DATASET[method]),
            *(
                "--num-parts",
                str(num_parts),
                "--part-method",
                method,
                "--output",
                str(tmp_path / "parts"),
            ),
        ],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    sentence = ended.stderr.splitlines()[-1]
    assert sentence.startswith(f"distsage: cannot write {tmp_path / 'parts'}: ")
    assert sentence.endswith("another --output")
    assert list(tmp_path.iterdir()) == []


# The function at whose n-th call the disk is full. All have something more to write.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "the ends of edges": (tables, "_row_numbers", 1),
    "sorted edges": (engine, "_write_header", 1),
    "features": (datasets, "collect", 1),
    "the graph": (stages, "save_array", 1),
    "the graph's mark": (stages, "write_json", 2),
    "what the partitioner reads": (assignment, "undirected_file", 1),
    "what the partitioner finds": (own_process, "allocate", 1),
    "the assignment": (run, "order_parts", 1),
    "sources": (shares, "part_topology", 1),
    "the second part's graph": (shares, "write_graph", 2),
    "rows": (shares.Share, "_write_rows", 1),
    "what all parts share": (run, "_write_whole", 1),
    "the second ranking": (shares, "rank_remote", 2),
    "the report": (run, "write_json", 1),
    "the manifest": (run, "write_json", 2),
}


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "disk", str(path)]
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no small disk can be made here: {tried.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def disk(mounted: Path) -> Iterator[Path]:
    """The small disk, empty again after each test, however that ends."""
    yield mounted
    for entry in mounted.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    edges, nodes = small_tables()
    nodes["id"] = "n" + nodes["id"].astype(str)
    return write(tmp_path_factory.mktemp("data") / "g", "n" + edges.astype(str), nodes)


def partition(dataset: str, output: Path) -> None:
    main(["partition", "--dataset", dataset, "--num-parts", "3", "--output", str(output)])


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("whole") / "parts"
    partition(dataset, output)
    return content(output)


def fill(filler: Path) -> None:
    """Leave no room on the disk."""
    with suppress(OSError), open(filler, "wb", 0) as stream:
        while True:
            stream.write(bytes(1 << 16))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_is_full_at_any_stage(
    moment: str,
    disk: Path,
    dataset: str,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With room again, the same command gives the parts that it gives elsewhere."""
    holder, name, calls = MOMENTS[moment]
    function, count = getattr(holder, name), 0
    filler = disk / "filler"

    def fill_first(*arguments: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == calls:
            fill(filler)
        return function(*arguments, **named)

    monkeypatch.setattr(datasets, "sorting_bytes", lambda *_: 1 << 60)  # edges go to the disk
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, fill_first)
        with pytest.raises(SystemExit) as ended:
            partition(dataset, disk / "parts")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.splitlines()[-1] == (
        f"distsage: cannot write {disk / 'parts'}: No space left on device; make room there, or "
        "name another --output"
    )
    assert list(disk.iterdir()) == [filler]
    filler.unlink()
    partition(dataset, disk / "parts")
    assert content(disk / "parts") == whole
