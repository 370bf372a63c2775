"""A trainer's batches: every row is its node's, whoever prepares it; errors come to the trainer."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from distsage.config import TrainConfig
from distsage.features.rows import PartRows
from distsage.model import layers
from distsage.model.backend import by_kernels
from distsage.model.layers import input_self_and_mean
from distsage.model.workspace import Workspace
from distsage.sampling.sampler import Sampler
from distsage.sampling.seeds import SeedPlan
from distsage.train.batches import Labels, prepare_ahead
from distsage.train.remote_batches import BatchSource
from tests.unit.graphs import random_topology

pytestmark = pytest.mark.levels

N, LOW, HIGH = 600, 200, 400
TOPOLOGY = random_topology(N, 9000)
X = torch.arange(N, dtype=torch.float32)[:, None] + torch.tensor([0.0, 1000.0])
CONFIG = TrainConfig(parts="unused", fan_out="3,4", batch_size=30, num_epochs=3, num_workers=0)


CPU = torch.device("cpu")


def source(num_workers=0, num_cached=0, pull=lambda gids: X[gids]):
    remote = np.r_[0:LOW, HIGH:N]
    cached_gid = np.random.default_rng(0).permutation(remote)[:num_cached]
    rows = PartRows(np.array([0, LOW, HIGH, N]), 1, X[LOW:HIGH], cached_gid, X[cached_gid], pull)
    plan = SeedPlan(np.arange(LOW, HIGH, 2), [100, 90], 30, 0, 0)
    samplers = [
        Sampler(TOPOLOGY, CONFIG.fan_outs, number_inputs=not layers.by_kernels(CPU))
        for _ in range(max(1, num_workers))
    ]
    labels = Labels(LOW, torch.arange(LOW, HIGH))
    config = replace(CONFIG, num_workers=num_workers)
    return BatchSource(config, plan, samplers, rows, labels, CPU)


def everything(batches: BatchSource):
    """What the model sees of every batch of every epoch."""
    seen = []
    for epoch in range(CONFIG.num_epochs):
        for batch in batches.epoch(epoch):
            edges = [
                t
                for block in batch.blocks
                for t in (torch.from_numpy(block.indptr), torch.from_numpy(block.indices))
            ]
            seen += [input_self_and_mean(batch.inputs, Workspace()), batch.labels, *edges]
    batches.close()
    return seen


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("num_cached", [0, 50, 400])
@pytest.mark.parametrize("kernels", [True, False])
def test_workers_and_cache_change_nothing(num_workers, num_cached, kernels, monkeypatch):
    monkeypatch.setattr(layers, "by_kernels", lambda device: kernels and by_kernels(device))
    expected = everything(source())
    assert len(expected) == 3 * 4 * 4  # epochs, steps, tensors
    found = everything(source(num_workers, num_cached))
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_counters_say_where_rows_came_from():
    for num_cached in (0, 50, 400):
        pulled = []
        batches = source(num_cached=num_cached, pull=lambda g, p=pulled: p.append(len(g)) or X[g])
        counters = [batch.counters for batch in batches.epoch(0)]
        assert [c["missed_rows"] for c in counters] == pulled
        for c in counters:
            parts = c["local_rows"] + c["cached_rows"] + c["missed_rows"]
            assert parts == c["input_nodes"]
            assert c["received_bytes"] == c["missed_rows"] * 8
            assert c["local_rows"] > 0
        if num_cached == 400:
            assert sum(pulled) == 0


def test_epochs_may_start_anywhere_and_again():
    batches = source(num_workers=1)
    labels = [[b.labels.tolist() for b in batches.epoch(epoch)] for epoch in (1, 2, 1)]
    assert labels[0] == labels[2] != labels[1]
    batches.close()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_what_goes_wrong_in_a_worker_reaches_the_trainer(num_workers):
    def pull(gids):
        raise ConnectionError("the server is gone")

    batches = source(num_workers, pull=pull)
    with pytest.raises(ConnectionError, match="the server is gone"):
        list(batches.epoch(0))
    batches.close()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_are_ahead_by_a_few_batches_only(num_workers):
    started = []

    def prepare(task):
        started.append(task)
        return task

    with ThreadPoolExecutor(num_workers) as workers:
        computed = []
        for batch in prepare_ahead(range(50), prepare, workers, num_workers):
            computed.append(batch)
            deadline = time.monotonic() + 0.02  # let the workers run as far as they may
            while time.monotonic() < deadline:
                assert len(started) <= len(computed) + 2 * num_workers
        assert computed == list(range(50))
