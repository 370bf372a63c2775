"""The arrays of DGL's files: what DGL wrote is read, what is damaged is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dgl.data.utils import save_tensors

from distsage.data.npy import ArrayError
from distsage.partitioning.dgl_arrays import map_arrays

COLUMNS = 1000
ARRAYS = {
    "_N/train_mask": np.arange(6, dtype=np.uint8) % 2,
    "_N/features": np.arange(6 * COLUMNS, dtype=np.float32).reshape(6, COLUMNS),
    "_N/labels": np.arange(6),
    "nothing": np.empty((0, 3), np.float32),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node_feat.dgl"
    save_tensors(str(path), {name: torch.from_numpy(array) for name, array in ARRAYS.items()})
    return path


def test_what_dgl_wrote_is_read(file: Path) -> None:
    found = map_arrays(file)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def bytes_read() -> int:
    """What this process has asked for with calls to read, of caches as well."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_no_values_are_read_before_they_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "large.dgl"
    large = {name: torch.zeros(1 << 22) for name in ("a", "c")}
    save_tensors(str(path), {**large, "b": torch.ones(1000, dtype=torch.uint8)})
    before = bytes_read()
    assert map_arrays(path)["b"].sum() == 1000
    assert bytes_read() - before < 1 << 20 < path.stat().st_size


def test_damage_is_named(file: Path) -> None:
    content = file.read_bytes()
    for end in (*range(300), *range(300, len(content), 1009)):
        file.write_bytes(content[:end])
        with pytest.raises(ArrayError):
            map_arrays(file)


def test_no_byte_makes_it_take_more_than_the_file_holds(file: Path) -> None:
    """What the values are is not looked at: checksums see to that."""
    content = file.read_bytes()
    values = ARRAYS["_N/features"].tobytes()
    start = content.index(values)
    rng = np.random.default_rng(0)
    headers = [*range(start), *range(start + len(values), len(content))]
    for at in rng.choice(headers, 300):
        wrong = bytearray(content)
        wrong[at] ^= rng.integers(1, 256)
        file.write_bytes(wrong)
        try:
            found = map_arrays(file)
        except ArrayError:
            continue
        assert sum(array.nbytes for array in found.values()) <= len(content)
