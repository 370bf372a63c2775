"""Pieces of run directories for the tests."""

from dataclasses import asdict
from typing import Any

from distsage.model.graphsage import GraphSAGE
from distsage.train.checkpoint import Best, Origin, weights_of
from distsage.train.run_directory import plain


def origin(config: Any, model: GraphSAGE, **changes: Any) -> Origin:
    """What a run says of itself."""
    facts = {
        "command": "train",
        "kernels": "avx2",
        "device": "cpu",
        "model": model.shape,
        "task": "multiclass",
        "graph": "g",
        "content": {"nodes": 80},
        "checksum": "c",
        "trainers": 1,
        "versions": {"torch": "2"},
        "config": plain(asdict(config)),
    }
    return Origin(**{**facts, **changes})


def best_of(model: GraphSAGE, epoch: int = 3) -> Best:
    """An evaluation in which this model was the best."""
    return Best(epoch, 0.5, {"val": {"accuracy": 0.5}}, weights_of(model))
