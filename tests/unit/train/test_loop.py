"""The training loop: which epoch counts as the best."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distsage.config import LocalConfig
from distsage.features.slots import local_input
from distsage.model.graphsage import GraphSAGE
from distsage.sampling.sampler import Sampler
from distsage.train.batches import Batch
from distsage.train.collectives import Collectives
from distsage.train.loop import Trainer
from tests.unit.graphs import random_topology
from tests.unit.runs import origin

NAN = float("nan")
CONFIG = LocalConfig(dataset="none", fan_out="3,4", eval_every=1)


def batches(*_: object):
    sampled = Sampler(random_topology(60, 300), CONFIG.fan_outs).sample(
        np.arange(10), np.uint64(1), np.uint64(2)
    )
    inputs = local_input(sampled, torch.ones(60, 5))
    yield Batch(inputs, sampled.blocks, sampled.key, torch.arange(10) % 3, 10)


@pytest.mark.parametrize(
    ("val", "best"),
    [
        ([0.2, 0.5, 0.4], 1),
        ([0.5, 0.5], 0),
        ([NAN, 0.2, 0.5, 0.4], 2),
        ([0.2, NAN, 0.1], 0),
        ([NAN, 0.2, NAN], 1),
        ([NAN, NAN, NAN], 2),  # no validation nodes
    ],
    ids=str,
)
def test_a_number_beats_nan_and_nan_beats_no_number(val, best):
    scores = iter([{"val": {"accuracy": value}} for value in val])
    model = GraphSAGE(5, 8, 3, 2, 0.0, 0)
    config = replace(CONFIG, num_epochs=len(val))
    trainer = Trainer(config, model, Collectives(), None, origin(config, model), num_steps=1)
    result = trainer.fit(batches, lambda: next(scores))
    assert result["best_epoch"] == best
