"""A disk that fills while a graph is partitioned: one sentence, and nothing half-written.

DGL's writer does not notice that the last bytes of a file did not fit; ours has to.
"""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distsage.config import PartMethod
from distsage.data.datasets import load_graph
from distsage.errors import UserError
from distsage.partitioning import dgl_format
from distsage.partitioning.run import partition
from tests.unit.partition_graphs import random_directed


@pytest.mark.parametrize("file", ["graph.dgl", "node_feat.dgl", "edge_feat.dgl"])
@pytest.mark.parametrize("lost", [1, 81])
def test_a_short_file_is_noticed(
    file: str, lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = dgl_format._check_whole

    def after_a_loss(path: Path, expected: int) -> None:
        if path.name == file:
            content = path.read_bytes()
            path.write_bytes(content[: max(len(content) - lost, 0)])
        check(path, expected)

    monkeypatch.setattr(dgl_format, "_check_whole", after_a_loss)
    features = np.zeros((300, 8), np.float32)
    with pytest.raises(UserError, match="only .* bytes could be written; make room there"):
        partition(
            random_directed(300, 2000, features=features), 2, tmp_path / "parts", method="random"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "largest"),
    [("metis", 10_000), ("kaminpar", 10_000), ("random", 100), ("random", 200_000)],
)
def test_a_full_disk_is_a_sentence(method: PartMethod, largest: int, tmp_path: Path) -> None:
    # Kernels are compiled, and kept in files, before there is a limit.
    partition(load_graph("synthetic:3000:20"), 2, tmp_path / "warm", method=method)
    shutil.rmtree(tmp_path / "warm")
    # A limit on the size of files, in place of a disk that is full, stops all writers alike:
    # those of the undirected graph, DGL's, and our own.
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "distsage", "partition", "--dataset", "synthetic:3000:20"),
            *("--num-parts", "2", "--part-method", method, "--output", str(tmp_path / "parts")),
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
