"""Scores of all nodes of each mask, one number over all trainers. Runs on trainer ranks."""

from collections.abc import Mapping

from torch import Tensor

from distsage.train import metrics
from distsage.train.collectives import Collectives
from distsage.train.metrics import Scores


def score_masks(
    logits: Tensor, labels: Tensor, masks: Mapping[str, Tensor], trainers: Collectives
) -> Scores:
    """Score this trainer's nodes together with everybody else's. Collective.

    Args:
        logits: `[n, C]` on the CPU, of the nodes that this trainer computed.
        labels: int64 `[n]`, -1 where there is none, or float32 `[n, C]`.
        masks: bool `[n]` for "train", "val" and "test".
        trainers: of the job; every node is one trainer's.

    Returns:
        Per mask: `accuracy`, with `roc_auc` for two classes; or `micro_f1` (multilabel). The same
        on every rank; NaN for a mask without nodes.
    """
    scores: Scores = {}
    for name, mask in masks.items():
        chosen, truth = logits[mask], labels[mask]
        value = metrics.score(trainers.sum(metrics.counts(chosen, truth)))
        if labels.ndim == 2:
            scores[name] = {"micro_f1": value}
            continue
        scores[name] = {"accuracy": value}
        if logits.shape[1] == 2:
            everyone = trainers.concatenate(chosen.contiguous()), trainers.concatenate(truth)
            scores[name]["roc_auc"] = metrics.roc_auc(*everyone)
    return scores
