"""`evaluate` says what the run noted of its best epoch."""

from pathlib import Path

import numpy as np
import pytest

from distsage.cli import main
from distsage.config import EvaluateConfig, LocalConfig
from distsage.partitioning.run import partition
from distsage.prediction.scores import evaluate
from distsage.train import local
from distsage.train.records import read_run
from tests.unit.partition_graphs import edges_of, random_directed

MASKS = ("train", "val", "test")
NUM_NODES = 300
DRAWN = np.random.default_rng(6)


@pytest.mark.parametrize("by", ["dataset", "parts"])
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (DRAWN.integers(0, 3, NUM_NODES), {"accuracy"}),
        (DRAWN.integers(0, 2, NUM_NODES), {"accuracy", "roc_auc"}),
        (DRAWN.integers(0, 2, (NUM_NODES, 3)), {"micro_f1"}),
    ],
    ids=["three", "two", "several"],
)
def test_the_scores_of_the_best_epoch(
    labels: np.ndarray, names: set[str], by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = labels.ndim == 2
    graph = random_directed(
        NUM_NODES,
        2000,
        labels=labels.astype(np.float32) if several else labels,
        num_classes=3 if several else int(labels.max()) + 1,
        features=np.random.default_rng(4).normal(size=(NUM_NODES, 6)).astype(np.float32),
    )
    src, dst = edges_of(graph.topology)
    arrays = {f"{mask}_mask": getattr(graph, f"{mask}_mask") for mask in MASKS}
    arrays |= {"edge_src": src, "edge_dst": dst, "features": graph.features, "labels": labels}
    np.savez(tmp_path / "small.npz", num_nodes=NUM_NODES, **arrays)
    where: dict[str, object] = {"dataset": str(tmp_path / "small.npz")}
    if by == "parts":
        partition(graph, 3, tmp_path / "parts", method="random")
        where = {"parts": tmp_path / "parts"}
    options = {"num_epochs": 6, "eval_every": 1, "num_hidden": 16, "fan_out": "3,3"}
    options |= {"batch_size": 40, "lr": 0.1, "num_workers": 0, "seed": 2}
    local.train(LocalConfig(run_dir=tmp_path / "run", **where, **options))

    scores, _ = evaluate(EvaluateConfig(run_dir=tmp_path / "run"))
    run = read_run(tmp_path / "run")
    assert all(set(scores[mask]) == names for mask in MASKS)
    assert scores == {mask: run.summary[mask] for mask in MASKS}
    best = run.epochs[run.summary["best_epoch"]]
    assert scores["val"] == best["val"]
    assert any(record["val"] != best["val"] for record in run.epochs)

    capsys.readouterr()
    main(["evaluate", "--run-dir", str(tmp_path / "run")])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"model of epoch {run.summary['best_epoch']}"
    for name, value in best["val"].items():
        assert f"val {name} {value:.4f} (in training {value:.4f})" in said
