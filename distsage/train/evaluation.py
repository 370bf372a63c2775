"""Scores of all nodes of each mask, one number over all trainers. Runs on trainer ranks."""

from collections.abc import Mapping

from torch import Tensor

from distsage.data.raw import rows_per_chunk
from distsage.model.graphsage import GraphSAGE
from distsage.train import metrics
from distsage.train.collectives import Collectives
from distsage.train.metrics import Scores

_PIECE_BYTES = 3 << 24
"""What scoring some rows takes: them, their labels, and what is made of both; about."""
_BYTES_PER_RANKED_NODE = 120
"""Of two classes, all scores are ranked in one place."""


def scoring_bytes(model: GraphSAGE, num_nodes: int) -> int:
    """Memory that `score_masks` takes beside its arguments; about.

    Args:
        model: that gives the logits.
        num_nodes: of all trainers.
    """
    ranked = num_nodes if len(model.layers[-1].weight) == 2 else 0
    return _PIECE_BYTES + _BYTES_PER_RANKED_NODE * ranked


def score_masks(
    logits: Tensor, labels: Tensor, masks: Mapping[str, Tensor], trainers: Collectives
) -> Scores:
    """Score this trainer's nodes together with everybody else's. Collective.

    Some rows are looked at after the other, so that mapped ones are never in memory as a whole;
    those of two classes are.

    Args:
        logits: `[n, C]` on the CPU, of the nodes that this trainer computed.
        labels: int64 `[n]`, -1 where there is none, or float32 `[n, C]`.
        masks: bool `[n]`, by name; of labels `[n]` only nodes that have one.
        trainers: of the job; every node is one trainer's.

    Returns:
        Per mask: `accuracy`, with `roc_auc` for two classes; or `micro_f1` (multilabel). The same
        on every rank; NaN for a mask without nodes.
    """
    scores: Scores = {}
    for name, mask in masks.items():
        value = metrics.score(trainers.sum(_counts(logits, labels, mask)))
        if labels.ndim == 2:
            scores[name] = {"micro_f1": value}
            continue
        scores[name] = {"accuracy": value}
        if logits.shape[1] == 2:
            chosen = trainers.concatenate(logits[mask]), trainers.concatenate(labels[mask])
            scores[name]["roc_auc"] = metrics.roc_auc(*chosen)
    return scores


def _counts(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """`metrics.counts` of the nodes in a mask, added up over pieces."""
    step = rows_per_chunk(logits[:1].nbytes)
    total = metrics.counts(logits[:0], labels[:0])
    for begin in range(0, len(mask), step):
        rows = slice(begin, begin + step)
        chosen = mask[rows]
        total += metrics.counts(logits[rows][chosen], labels[rows][chosen])
    return total
