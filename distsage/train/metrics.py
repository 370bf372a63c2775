"""Accuracy, micro-F1 and ROC-AUC from logits.

Runs on trainer ranks and in the local run. `counts` of several ranks are added (all-reduce) before
`score` turns them into one number; ROC-AUC needs all scores in one place.
"""

import torch
from torch import Tensor

Scores = dict[str, dict[str, float]]
"""Per mask (train, val, test): the numbers by name."""


def counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Count what the score of some nodes needs.

    Args:
        logits: `[n, C]`, n may be 0.
        labels: int64 `[n]` in [0, C), or float32 `[n, C]` of zeros and ones (multilabel).

    Returns:
        int64: `[right, n]` (multiclass) or `[true positives, false positives, false negatives]`
        over all classes (multilabel; a class is predicted where its logit is positive). Sums over
        disjoint sets of nodes are the counts of their union.
    """
    if labels.ndim == 1:
        right = (logits.argmax(1) == labels).sum()
        return torch.stack((right, torch.full_like(right, len(labels))))
    predicted = logits > 0
    actual = labels > 0.5
    return torch.stack(
        ((predicted & actual).sum(), (predicted & ~actual).sum(), (~predicted & actual).sum())
    )


def score(total: Tensor) -> float:
    """Accuracy or micro-F1 in [0, 1] of summed `counts`; NaN where there is nothing to score.

    Micro-F1 = 2 tp / (2 tp + fp + fn).
    """
    if len(total) == 2:
        right, n = total.tolist()
        return right / n if n else float("nan")
    tp, fp, fn = total.tolist()
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else float("nan")


def selection_score(scores: dict[str, float]) -> float:
    """The number that decides which epoch is best: ROC-AUC or micro-F1 where there is one."""
    for name in ("roc_auc", "micro_f1"):
        if name in scores:
            return scores[name]
    return scores["accuracy"]


def roc_auc(logits: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of a two-class task; NaN where one class is missing.

    The probability that a node of class 1 scores above one of class 0, ties counting half (the
    Mann-Whitney U statistic divided by n1 * n0).

    Args:
        logits: `[n, 2]` of all nodes to score; the score of a node is logit 1 - logit 0.
        labels: int64 `[n]` of zeros and ones.
    """
    import scipy.stats  # takes long to import, and only this score needs it

    positive = labels.cpu().numpy() == 1
    num_positive = int(positive.sum())
    pairs = num_positive * (len(positive) - num_positive)
    if pairs == 0:
        return float("nan")
    difference = (logits[:, 1].double() - logits[:, 0].double()).cpu().numpy()
    rank_sum = scipy.stats.rankdata(difference)[positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / pairs)
