"""DGL's writer does not notice that the last bytes of a file did not fit; ours has to."""

from pathlib import Path

import numpy as np
import pytest
from partition_graphs import random_directed

from distsage.partition import dgl_format
from distsage.partition.run import partition


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
    with pytest.raises(OSError, match=f"bytes could be written.*{file}"):
        partition(
            random_directed(300, 2000, features=features), 2, tmp_path / "parts", method="random"
        )
    assert list(tmp_path.iterdir()) == []
