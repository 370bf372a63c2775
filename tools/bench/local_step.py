"""One local training step of distsage on a synthetic graph, timed phase by phase.

What tools/bench/step.py and tools/bench/threads.py measure.
"""

import time
from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

from distsage.data.graph import Topology
from distsage.features.slots import local_input
from distsage.kernels.rng import Purpose, stream_key
from distsage.model.graphsage import GraphSAGE
from distsage.sampling.sampler import Sampler

Step = Callable[[int], dict[str, float]]
"""Takes a step on the batch with this number; gives milliseconds by phase."""

HIDDEN, NUM_CLASSES, DROPOUT, LR = 256, 47, 0.5, 0.003


def make_topology(num_nodes: int, num_edges: int, seed: int = 0) -> Topology:
    """Undirected, power-law degrees, most edges between nodes that are close in their ids."""
    rng = np.random.default_rng(seed)
    weight = (1 - rng.random(num_nodes)) ** (-1 / 1.8)
    cdf = np.cumsum(weight / weight.sum())
    half = num_edges // 2
    a = np.searchsorted(cdf, rng.random(half))
    near = (a + rng.integers(1, 4000, half)) % num_nodes
    b = np.where(rng.random(half) < 0.7, near, np.searchsorted(cdf, rng.random(half)))
    a, b = np.minimum(a, num_nodes - 1), np.minimum(b, num_nodes - 1)
    ones = np.ones(2 * half, np.int8)
    csr = scipy.sparse.coo_matrix((ones, (np.r_[a, b], np.r_[b, a])), (num_nodes,) * 2).tocsr()
    return Topology(csr.indptr.astype(np.int64), csr.indices.astype(np.int32))


def laps(marks: list[float], names: str) -> dict[str, float]:
    """Milliseconds between successive marks, and of all."""
    out = {n: 1e3 * (b - a) for n, a, b in zip(names.split(), marks, marks[1:], strict=False)}
    return out | {"all": 1e3 * (marks[-1] - marks[0])}


def our_step(
    topology: Topology,
    x: Tensor,
    y: Tensor,
    seeds: list[np.ndarray],
    fan_outs: list[int],
    precision: torch.dtype,
) -> Step:
    """The same maths by distsage, with features stored in the precision of the model."""
    x = x.to(precision)
    sampler = Sampler(topology, fan_outs, in_line=True)
    model = GraphSAGE(x.shape[1], HIDDEN, NUM_CLASSES, len(fan_outs), DROPOUT, 0, precision)
    optimiser = torch.optim.Adam(model.parameters(), lr=LR, fused=True)

    def step(i: int) -> dict[str, float]:
        marks = [time.perf_counter()]
        keys = [stream_key(0, 0, 0, i, p) for p in (Purpose.SAMPLE, Purpose.DROPOUT)]
        batch = sampler.sample(seeds[i], *keys)
        marks.append(time.perf_counter())
        logits = model(local_input(batch, x), batch.blocks, batch.key)
        loss = functional.cross_entropy(logits, y[torch.from_numpy(batch.seed_gid)])
        marks.append(time.perf_counter())
        optimiser.zero_grad()
        loss.backward()
        marks.append(time.perf_counter())
        optimiser.step()
        marks.append(time.perf_counter())
        return laps(marks, "sample forward backward optimiser")

    return step
