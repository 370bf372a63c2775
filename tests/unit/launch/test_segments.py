"""Shared memory is made by this job and read by this user only; nothing in it is executed."""

import json
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distsage.limits import SHARED_MEMORY
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from tests.unit.partition_graphs import ring

PROGRAM = Path(__file__).parents[1] / "programs" / "segments_program.py"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "parts"
    partition(ring(20), 2, path)
    return path


@pytest.fixture
def prefix() -> Iterator[str]:
    # Not named as a job's: other tests on this machine look for what jobs leave behind.
    prefix = f"test-segments.{uuid.uuid4().hex[:8]}.1."
    yield prefix
    for segment in SHARED_MEMORY.glob(f"{prefix}*"):
        segment.unlink()


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(PROGRAM.parents[3]), "DGLBACKEND": "pytorch"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object) -> tuple[int, str, str]:
    with start(*arguments) as program:
        out, err = program.communicate(timeout=120)
        return program.returncode, out, err


@contextmanager
def served(parts: Path, prefix: str) -> Iterator[list[str]]:
    """The segments of a server, while it holds them."""
    with start(parts, prefix, "serve") as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())
        server.communicate(timeout=120)


def test_segments_are_ones_own_and_hold_no_partition_book(parts: Path, prefix: str) -> None:
    manifest = Parts.open(parts).manifest
    with served(parts, prefix) as names:
        assert names == [f"{prefix}rows-kvdata-"]
        for name in names:
            found = (SHARED_MEMORY / name).stat()
            assert (found.st_uid, found.st_mode & 0o777) == (os.getuid(), 0o600)
        status, out, err = run(parts, prefix, "read")
        assert status == 0, err
        rows, (part, metadata, owners) = json.loads(out)
        assert rows == [0, 1, 2]
        assert part == 1
        assert [one["num_nodes"] for one in metadata] == [p.num_nodes for p in manifest.parts]
        assert [one["num_edges"] for one in metadata] == [p.num_edges for p in manifest.parts]
        low = manifest.parts[1].nodes[0]
        assert owners == [int(node >= low) for node in range(20)]


def test_a_segment_that_somebody_has_made_before_is_refused(parts: Path, prefix: str) -> None:
    planted = SHARED_MEMORY / f"{prefix}rows-kvdata-"
    planted.write_bytes(b"another user's")
    status, _, err = run(parts, prefix, "serve")
    assert status != 0
    assert f"FileExistsError: [Errno 17] File exists: '{planted}'" in err
    assert planted.read_bytes() == b"another user's"


def open_to_others(segment: Path) -> None:
    segment.chmod(0o606)


def of_another_user(segment: Path) -> None:
    os.chown(segment, 65534, 65534)


def a_link(segment: Path) -> None:
    target = segment.with_name(f"{segment.name}.target")
    segment.rename(target)
    segment.symlink_to(target)


@pytest.mark.parametrize("swap", [open_to_others, of_another_user, a_link])
def test_a_segment_of_somebody_else_is_not_opened(
    swap: Callable[[Path], None], parts: Path, prefix: str
) -> None:
    if swap is of_another_user and os.geteuid() != 0:
        pytest.skip("only root can give a segment to another user")
    with served(parts, prefix):
        segment = SHARED_MEMORY / f"{prefix}rows-kvdata-"
        swap(segment)
        status, _, err = run(parts, prefix, "read")
        assert status != 0
        assert f"PermissionError: {segment} is " in err


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


def test_a_pickle_in_place_of_the_partition_book_is_not_read(
    parts: Path, prefix: str, tmp_path: Path
) -> None:
    """DGL reads seven numbers of eight bytes, then so many bytes, each as a number of eight."""
    harm = tmp_path / "harm"
    payload = pickle.dumps(Harm(harm))
    planted = {
        "small_node_meta": [1, 0, 0, 2, 1, len(payload), len(payload)],
        "small_node_node_map": payload,
        "small_edge_edge_map": payload,
    }
    with served(parts, prefix):
        for name, numbers in planted.items():
            data = b"".join(int(number).to_bytes(8, "little") for number in numbers)
            descriptor = os.open(SHARED_MEMORY / f"{prefix}{name}", os.O_CREAT | os.O_RDWR, 0o600)
            os.write(descriptor, data)
            os.close(descriptor)
        status, out, err = run(parts, prefix, "read")
        assert status == 0, err
        assert json.loads(out)[1][0] == 1
    assert not harm.exists()
