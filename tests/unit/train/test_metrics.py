"""Metrics against scikit-learn, in one piece and summed over ranks."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from distsage.train.metrics import counts, roc_auc, score


def test_accuracy():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((100, 4), "f4"))
    labels = torch.from_numpy(rng.integers(0, 4, 100))
    total = sum(counts(logits[a:b], labels[a:b]) for a, b in ((0, 0), (0, 30), (30, 100)))
    expected = sklearn.metrics.accuracy_score(labels, logits.argmax(1))
    assert score(total) == pytest.approx(expected)
    assert math.isnan(score(counts(logits[:0], labels[:0])))


def test_micro_f1():
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.standard_normal((100, 6), "f4") - 0.5)
    labels = torch.from_numpy((rng.random((100, 6)) < 0.3).astype("f4"))
    total = sum(counts(logits[a:b], labels[a:b]) for a, b in ((0, 0), (0, 30), (30, 100)))
    expected = sklearn.metrics.f1_score(labels, logits > 0, average="micro")
    assert score(total) == pytest.approx(expected)
    assert math.isnan(score(counts(logits[:0], labels[:0])))


def test_roc_auc():
    rng = np.random.default_rng(2)
    labels = torch.from_numpy(rng.integers(0, 2, 300))
    logits = torch.from_numpy(rng.integers(0, 8, (300, 2)).astype("f4"))  # many ties
    logits[:, 1] += labels
    expected = sklearn.metrics.roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    assert roc_auc(logits, labels) == pytest.approx(expected)
    assert math.isnan(roc_auc(logits, torch.zeros(300, dtype=torch.int64)))
