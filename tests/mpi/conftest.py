"""Parts that the MPI tests share; each is made once a session."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distsage.data.csc import csc_from_edges
from distsage.data.graph import Graph
from distsage.partitioning.run import partition

Partitioned = Callable[..., Path]


def planted(
    name: str = "planted",
    num_nodes: int = 600,
    num_classes: int = 3,
    multilabel: bool = False,
    seed: int = 0,
    train_mask: np.ndarray | None = None,
) -> Graph:
    """Random graph whose edges mostly stay within a class; features tell little of it.

    The last 20 nodes have no edges; original ids are strings, in another order.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, num_classes, num_nodes)
    src = rng.integers(0, num_nodes - 20, 20 * num_nodes)
    dst = rng.integers(0, num_nodes - 20, 20 * num_nodes)
    kept = (kind[src] == kind[dst]) | (rng.random(len(src)) < 0.1)
    features = rng.normal(size=(num_nodes, 5)).astype(np.float32)
    features[np.arange(num_nodes), kind] += 0.5
    labels: np.ndarray = kind.astype(np.int64)
    if multilabel:
        labels = np.stack([kind == 0, kind != 1, kind == 2], 1).astype(np.float32)
    role = rng.choice(3, num_nodes, p=(0.5, 0.2, 0.3))
    if train_mask is not None:
        role = np.where(train_mask, 0, np.where(role == 0, 2, role))
    return Graph(
        name=name,
        topology=csc_from_edges(src[kept], dst[kept], num_nodes),
        features=features,
        labels=labels,
        num_classes=num_classes,
        train_mask=role == 0,
        val_mask=role == 1,
        test_mask=role == 2,
        original_ids=np.array([f"n{v}" for v in rng.permutation(num_nodes)]),
    )


@pytest.fixture(scope="session")
def partitioned(tmp_path_factory: pytest.TempPathFactory) -> Partitioned:
    """`partitioned(graph, num_parts)`: a directory of parts, made at its first use."""
    made: dict[tuple[bytes, int], Path] = {}

    def parts_of(graph: Graph, num_parts: int) -> Path:
        content = (graph.name, graph.topology.indices, graph.features, graph.labels)
        content += (graph.train_mask, graph.original_ids)
        key = (pickle.dumps(content), num_parts)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("parts") / f"{graph.name}-{num_parts}"
            partition(graph, num_parts, made[key])
        return made[key]

    return parts_of
