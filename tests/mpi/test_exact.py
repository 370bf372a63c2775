"""Training over several hosts is the training of one process on the union of the trainers' seeds.

The reference is dense and plain: whole neighbourhoods as a matrix, torch's own layers, loss and
Adam, one process. Without sampling and dropout the distributed run has to agree with it to float
tolerance, whatever the trainers' numbers of train nodes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import Partitioned, planted
from jobs import epochs, summary, train
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from distsage.data.graph import Graph
from distsage.model.graphsage import GraphSAGE
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.parts import Parts
from distsage.partitioning.verify import load_parts
from distsage.sampling.seeds import SeedPlan

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900), pytest.mark.levels]

HIDDEN = 16
LEARNING_RATE = 0.02
HOSTS, TRAINERS_PER_HOST = 2, 2
NUM_PARTS = 16
EXACT = ("--fan-out", "-1,-1", "--dropout", 0, "--num-hidden", HIDDEN, "--lr", LEARNING_RATE)
EXACT += ("--eval-every", 1, "--seed", 5)


@dataclass
class Epoch:
    """What the reference knows after one epoch."""

    loss: float
    accuracy: dict[str, float]
    weights: dict[str, np.ndarray]


def trainers_nodes(parts: Parts, hosts: int, per_host: int) -> list[slice]:
    """The gids of each trainer: what a host holds, shared evenly among its trainers."""
    slices = []
    for low, high in HostParts.deal(parts, ["host"] * hosts).ranges:
        cuts = [low + (high - low) * k // per_host for k in range(per_host + 1)]
        slices += [slice(a, b) for a, b in itertools.pairwise(cuts)]
    return slices


def plans(graph: Graph, trainers: list[slice], batch_size: int) -> list[SeedPlan]:
    """Every trainer's seed nodes."""
    nodes = [np.flatnonzero(graph.train_mask[own]) + own.start for own in trainers]
    counts = [len(own) for own in nodes]
    return [SeedPlan(own, counts, batch_size, 5, rank) for rank, own in enumerate(nodes)]


def reference(graph: Graph, plans: list[SeedPlan], num_epochs: int) -> Iterator[Epoch]:
    """Train in one process on dense matrices; each step on the union of the trainers' seeds."""
    size = graph.num_nodes
    dst = np.repeat(np.arange(size), np.diff(graph.topology.indptr))
    mean_of = torch.zeros(size, size)
    mean_of.index_put_(
        (torch.from_numpy(dst), torch.from_numpy(graph.topology.indices.astype(np.int64))),
        torch.ones(len(dst)),
        accumulate=True,
    )
    mean_of /= mean_of.sum(1, keepdim=True).clamp(min=1)
    x, labels = torch.from_numpy(graph.features), torch.from_numpy(graph.labels)
    start = GraphSAGE(graph.num_features, HIDDEN, graph.num_classes, 2, 0.0, 5).state_dict()
    weights = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=LEARNING_RATE)

    def logits() -> torch.Tensor:
        h = x
        for layer in range(2):
            w, b = weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"]
            h = torch.cat((h, mean_of @ h), 1) @ w.t() + b
            h = h.relu() if layer == 0 else h
        return h

    for epoch in range(num_epochs):
        losses = []
        for seeds in zip(*(plan.batches(epoch) for plan in plans), strict=True):
            union = torch.from_numpy(np.concatenate(seeds))
            if labels.ndim == 1:
                loss = cross_entropy(logits()[union], labels[union])
            else:
                loss = binary_cross_entropy_with_logits(logits()[union], labels[union])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            predicted = logits().argmax(1).numpy()
        accuracy = {}
        for name in ("train", "val", "test") if labels.ndim == 1 else ():
            mask = getattr(graph, f"{name}_mask")
            accuracy[name] = float((predicted == graph.labels)[mask].mean())
        copies = {name: value.detach().numpy().copy() for name, value in weights.items()}
        yield Epoch(float(np.mean(losses)), accuracy, copies)


def check(
    parts: Path,
    run_dir: Path,
    batch_size: int,
    num_epochs: int,
    hosts: int = HOSTS,
    per_host: int = TRAINERS_PER_HOST,
) -> list[SeedPlan]:
    """Train both ways and compare; returns the trainers' plans."""
    options = (*EXACT, "--batch-size", batch_size, "--num-epochs", num_epochs)
    train(2 * hosts * per_host, parts, run_dir, *options, hosts=hosts)
    graph, _ = load_parts(parts)
    seed_plans = plans(graph, trainers_nodes(Parts.open(parts), hosts, per_host), batch_size)
    expected = list(reference(graph, seed_plans, num_epochs))
    records = epochs(run_dir)
    np.testing.assert_allclose(
        [record["loss"] for record in records], [epoch.loss for epoch in expected], rtol=2e-5
    )
    for record, epoch in zip(records, expected, strict=True):
        for mask, accuracy in epoch.accuracy.items():
            assert record[mask]["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    weights = safetensors.numpy.load_file(run_dir / "model.safetensors")
    best = expected[summary(run_dir)["best_epoch"]].weights
    assert set(weights) == set(best)
    for name, array in weights.items():
        np.testing.assert_allclose(array, best[name], rtol=1e-3, atol=1e-4)
    return seed_plans


@pytest.mark.own_level
def test_step_by_step(partitioned: Partitioned, tmp_path: Path) -> None:
    """One step an epoch, so that every record is a step's. At lower levels, several steps do."""
    (plan, *_) = check(partitioned(planted(), HOSTS), tmp_path, batch_size=500, num_epochs=20)
    assert plan.num_steps == 1


@pytest.mark.parametrize(
    "hosts", [3, *(pytest.param(n, marks=pytest.mark.own_level) for n in (1, 2, 4))]
)
def test_any_number_of_hosts(hosts: int, partitioned: Partitioned, tmp_path: Path) -> None:
    """A host holds several parts; the trainers of three hosts have unequal shares."""
    parts = partitioned(planted(), NUM_PARTS)
    check(parts, tmp_path, batch_size=60, num_epochs=2, hosts=hosts, per_host=1)


def test_unequal_trainers_and_one_without_train_nodes(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    """Several steps an epoch; shares of the loss that are not weighted right would show."""
    graph = planted()
    parts = Parts.open(partitioned(graph, HOSTS))
    position = {name: v for v, name in enumerate(graph.original_ids.tolist())}
    place = np.array([position[name] for name in parts.original_ids().tolist()])
    train_mask = np.zeros(graph.num_nodes, bool)
    trainers = trainers_nodes(parts, HOSTS, TRAINERS_PER_HOST)
    for own, count in zip(trainers, (7, 0, 100, 41), strict=True):
        train_mask[place[own][:count]] = True
    changed = planted(train_mask=train_mask)
    path = partitioned(changed, HOSTS)  # assigning does not look at the masks
    seed_plans = check(path, tmp_path, batch_size=30, num_epochs=6)
    assert seed_plans[0].counts == [7, 0, 100, 41]
    assert seed_plans[0].num_steps == 4


@pytest.mark.own_level  # labels are for PyTorch, whatever the level of kernels
def test_several_labels_per_node(partitioned: Partitioned, tmp_path: Path) -> None:
    graph = planted(multilabel=True)
    check(partitioned(graph, HOSTS), tmp_path, batch_size=50, num_epochs=4)
