"""Scoring rows that are mapped takes no more memory than it says."""

import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import scipy.stats  # noqa: F401  so that no child has to
import sklearn.metrics
import torch

from distsage.model.graphsage import GraphSAGE
from distsage.train.collectives import Collectives
from distsage.train.evaluation import score_masks, scoring_bytes
from distsage.train.metrics import Scores


def mapped(path: Path, rows: np.ndarray) -> torch.Tensor:
    content = np.memmap(path, rows.dtype, "w+", shape=rows.shape)
    content[:] = rows
    return torch.from_numpy(content)


def scores_within(num_bytes: int, logits: torch.Tensor, labels: torch.Tensor) -> Scores:
    """By a child that the kernel gives so much private memory beside what it has."""
    mask = torch.arange(len(logits)) > 0
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            torch.set_num_threads(1)
            with open("/proc/self/status") as stream:
                (line,) = (line for line in stream if line.startswith("VmData:"))
            most = (int(line.split()[1]) << 10) + num_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
            os.write(
                writer, json.dumps(score_masks(logits, labels, {"m": mask}, Collectives())).encode()
            )
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    found: Scores = json.loads(said or "{}")
    return found


@pytest.mark.parametrize(
    ("num_nodes", "num_classes", "several"),
    [(100_000, 150, False), (100_000, 150, True), (1_500_000, 2, False)],
    ids=["many classes", "several labels", "two classes"],
)
def test_mapped_rows(num_nodes: int, num_classes: int, several: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((num_nodes, num_classes), np.float32)
    truth = (
        (rows + 1 > 0).astype(np.float32) if several else rng.integers(0, num_classes, num_nodes)
    )
    logits, labels = mapped(tmp_path / "rows", rows), mapped(tmp_path / "labels", truth)
    model = GraphSAGE(4, 8, num_classes, 2, 0.5, seed=0)
    found = scores_within(scoring_bytes(model, num_nodes), logits, labels)

    mask = np.arange(num_nodes) > 0
    rows, truth = rows[mask], truth[mask]
    expected = {"accuracy": (rows.argmax(1) == truth).mean()} if not several else {}
    if several:
        hit, said = ((rows > 0) & (truth > 0)).sum(), (rows > 0).sum() + (truth > 0).sum()
        expected = {"micro_f1": 2 * hit / said}
    elif num_classes == 2:
        expected["roc_auc"] = sklearn.metrics.roc_auc_score(truth, rows[:, 1] - rows[:, 0])
    assert found == {"m": pytest.approx(expected)}
