"""Scores of a trained model, as its run computed them. Runs on one machine and on trainer ranks."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distsage.config import EvaluateConfig
from distsage.prediction.rooms import BoundedRooms
from distsage.prediction.run import load_graph_of, load_model, prepare, rows_of
from distsage.prediction.selection import choose
from distsage.prediction.trained import EVALUATION
from distsage.train.collectives import Collectives
from distsage.train.evaluation import score_masks, scoring_bytes
from distsage.train.metrics import Scores


def evaluate(config: EvaluateConfig) -> tuple[Scores, Mapping[str, Any]]:
    """Score a run's model on one machine, without MPI.

    Rows that do not fit into memory are in files of the run directory meanwhile.

    Returns:
        The scores of each set of nodes, and what the model says of itself.

    Raises:
        UserError: there is no such run, its graph is not to be found or does not fit its model, or
            there is too little memory.
    """
    model = load_model(config.run_dir)
    folder = config.run_dir / EVALUATION / "rows"
    with BoundedRooms(folder, "evaluating", "--run-dir") as rooms:
        subject = load_graph_of(config, model.description, rooms)
        prepare(rooms, model, subject, scoring_bytes(model.network, subject.num_nodes))
        labels = subject.labels(rooms)
        masks = masks_of(config.nodes, subject.ids, labels, subject.mask)
        rows = rows_of(model, subject, len(model.network.layers), rooms)
        return score_masks(rows, labels, masks, Collectives()), model.description


def masks_of(
    nodes: str | None,
    ids: np.ndarray,
    labels: Tensor,
    mask: Callable[[str], np.ndarray],
    everyone: Callable[[np.ndarray], np.ndarray] = lambda found: found,
) -> dict[str, Tensor]:
    """What is scored, by name: bool `[n]` each; nodes without a label are not in it.

    Args:
        nodes: as `--nodes` names them; None: each of the three masks.
        ids, mask, everyone: as for `choose`.
        labels: `[n]` or `[n, C]`.
    """
    names = ("train", "val", "test") if nodes is None else (nodes,)
    chosen = {name: torch.from_numpy(choose(name, ids, mask, everyone)) for name in names}
    if labels.ndim == 2:
        return chosen
    return {name: those & (labels >= 0) for name, those in chosen.items()}


def lines(scores: Scores, description: Mapping[str, Any]) -> str:
    """The scores for people, beside those that the run noted of the same epoch."""
    noted = {"val": description.get("val", {})}
    said = [f"model of epoch {description['epoch']}"]
    for name, values in scores.items():
        for score, value in values.items():
            before = noted.get(name, {}).get(score)
            beside = "" if before is None else f" (in training {before:.4f})"
            said.append(f"{name} {score} {value:.4f}{beside}")
    return "\n".join(said)
