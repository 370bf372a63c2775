"""A trainer's batches: every row is its node's, whoever prepares it; errors come to the trainer."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch

from distsage.config import TrainConfig
from distsage.features.matrix import sparse_rows
from distsage.features.rows import PartRows
from distsage.features.slots import gather_rows
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


def source(num_workers=0, num_cached=0, pull=lambda gids: X[gids], **how):
    return source_of(X[LOW:HIGH], lambda gids: X[gids], pull, num_workers, num_cached, **how)


def source_of(own, rows_of, pull, num_workers, num_cached, **how):
    remote = np.r_[0:LOW, HIGH:N]
    cached_gid = np.random.default_rng(0).permutation(remote)[:num_cached]
    offsets = np.array([0, LOW, HIGH, N])
    rows = PartRows(offsets, 1, own, cached_gid, rows_of(cached_gid), pull, **how)
    plan = SeedPlan(np.arange(LOW, HIGH, 2), [100, 90], 30, 0, 0)
    samplers = [
        Sampler(
            TOPOLOGY,
            CONFIG.fan_outs,
            number_inputs=rows.numbers_inputs or not layers.by_kernels(CPU),
        )
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


SPARSE = sparse_rows(scipy.sparse.random(N, 50, 0.1, "csr", np.float32, random_state=0), "float32")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_cached", [0, 50, 400])
def test_sparse_rows_are_their_nodes_wherever_they_come_from(num_workers, num_cached):
    """As they are, and filled in; the counter says what was on the network."""

    def batches(**how):
        own = SPARSE.between(LOW, HIGH)
        arguments = own, SPARSE.take, SPARSE.take, num_workers, num_cached
        found = source_of(*arguments, **how)
        yield from found.epoch(0)
        found.close()

    for sparse, dense in zip(batches(multiplies=True), batches(), strict=True):
        (table,) = dense.inputs.tables
        assert torch.equal(sparse.inputs.rows.filled_in(), table)
        assert len(dense.inputs.dst_slots) == sparse.inputs.num_dst
        missed = sparse.counters["missed_rows"]
        assert (missed == 0) == (num_cached == 400)
        assert sparse.counters["received_bytes"] == dense.counters["received_bytes"]
        assert 4 * missed <= sparse.counters["received_bytes"] < 4 * 50 * max(missed, 1)
    (table,) = next(batches()).inputs.tables
    first = next(source().epoch(0))
    nodes = SPARSE.filled_in()[first_inputs(first)]
    assert torch.equal(table, nodes)


def first_inputs(batch):
    """The gids of a batch's inputs, from features that say them."""
    inputs = batch.inputs
    table = torch.cat(inputs.tables)[:, 0]
    gids = [
        table[torch.as_tensor(slots).long()].long() for slots in (inputs.dst_slots, inputs.slots)
    ]
    seen = dict.fromkeys(torch.cat(gids).tolist())
    return torch.tensor(list(seen))


@pytest.mark.parametrize("num_cached", [0, 50, 400])
def test_dense_rows_that_are_multiplied_first_are_the_same(num_cached):
    for multiplied, gathered in zip(
        source(num_cached=num_cached, multiplies=True, in_place=layers.by_kernels(CPU)).epoch(0),
        source(num_cached=num_cached, in_place=False).epoch(0),
        strict=True,
    ):
        (table,) = gathered.inputs.tables
        rows = multiplied.inputs.rows
        found = rows if isinstance(rows, torch.Tensor) else gather_rows(rows.tables, rows.slots)
        assert torch.equal(found, table)


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
