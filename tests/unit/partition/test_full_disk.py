"""A disk that fills while a graph is partitioned: one sentence, and nothing half-written."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from distsage.cli import main

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
