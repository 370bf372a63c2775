"""Time one local training step of distsage beside DGL's, alternating in one process, one thread.

`python -m tools.bench.step` prints the median milliseconds of each phase and `ratio NAME VALUE`
lines (DGL's median divided by ours). Graph: synthetic, skewed degrees, 400k nodes, 17M edges.
"""

import argparse
import itertools
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import dgl
import dgl.nn.pytorch as dglnn
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from distsage.data.graph import Topology
from distsage.kernels import level
from distsage.train.allocator import keep_freed_memory
from tools.bench.local_step import (
    DROPOUT,
    HIDDEN,
    LR,
    NUM_CLASSES,
    Step,
    laps,
    make_topology,
    our_step,
)
from tools.bench.options import numbers


class DglModel(nn.Module):
    """What DGL's examples have: SAGEConv layers, ReLU and dropout between them."""

    def __init__(self, in_features: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_features, *[HIDDEN] * (num_layers - 1), NUM_CLASSES]
        self.layers = nn.ModuleList(
            dglnn.SAGEConv(a, b, "mean") for a, b in itertools.pairwise(widths)
        )

    def forward(self, blocks: list, h: Tensor) -> Tensor:
        """Logits of the seeds."""
        for i, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            h = layer(block, h)
            if i < len(self.layers) - 1:
                h = functional.dropout(functional.relu(h), DROPOUT, self.training)
        return h


def dgl_step(
    topology: Topology, x: Tensor, y: Tensor, seeds: list[np.ndarray], fan_outs: list[int]
) -> Step:
    """DGL's sampler on an int64 graph, gathered features, SAGEConv, Adam as everybody writes it."""
    indptr = torch.from_numpy(topology.indptr)
    indices = torch.from_numpy(topology.indices.astype(np.int64))
    graph = dgl.graph(("csc", (indptr, indices, torch.empty(0, dtype=torch.int64))))
    sampler = dgl.dataloading.NeighborSampler(fan_outs)
    model = DglModel(x.shape[1], len(fan_outs))
    optimiser = torch.optim.Adam(model.parameters(), lr=LR)

    def step(i: int) -> dict[str, float]:
        marks = [time.perf_counter()]
        input_nodes, output_nodes, blocks = sampler.sample_blocks(graph, torch.from_numpy(seeds[i]))
        marks.append(time.perf_counter())
        rows = x[input_nodes]
        marks.append(time.perf_counter())
        loss = functional.cross_entropy(model(blocks, rows), y[output_nodes])
        marks.append(time.perf_counter())
        optimiser.zero_grad()
        loss.backward()
        marks.append(time.perf_counter())
        optimiser.step()
        marks.append(time.perf_counter())
        return laps(marks, "sample gather forward backward optimiser")

    return step


def main() -> None:
    """Run both, alternating, and print medians and the ratio."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.step", description=__doc__)
    parser.add_argument("--num-nodes", type=int, default=400_000)
    parser.add_argument("--num-edges", type=int, default=17_000_000)
    parser.add_argument("--num-features", type=int, default=100)
    parser.add_argument("--fan-out", type=numbers, default="10,25")
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()

    topology = make_topology(args.num_nodes, args.num_edges)
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((args.num_nodes, args.num_features), "f4"))
    y = torch.from_numpy(rng.integers(0, NUM_CLASSES, args.num_nodes))
    count = min(args.batch_size, args.num_nodes)
    warm_up = 3
    seeds = [rng.choice(args.num_nodes, count, replace=False) for _ in range(warm_up + args.steps)]
    steps = {
        "dgl": dgl_step(topology, x, y, seeds, args.fan_out),
        "fp32": our_step(topology, x, y, seeds, args.fan_out, torch.float32),
        "bf16": our_step(topology, x, y, seeds, args.fan_out, torch.bfloat16),
    }
    times: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for i in range(len(seeds)):
        for name, step in steps.items():
            lap = step(i)
            if i >= warm_up:
                times[name].append(lap)
    median = {
        name: {phase: statistics.median(t[phase] for t in ts) for phase in ts[0]}
        for name, ts in times.items()
    }
    print(f"kernels {level.chosen()} ({level.processor_name()})")
    for name, phases in median.items():
        print(f"{name:6s}", "  ".join(f"{p} {ms:.1f}" for p, ms in phases.items()), "ms")
    for name, phases in median.items():
        if name != "dgl":
            print(f"ratio {name} {median['dgl']['all'] / phases['all']:.2f}")


if __name__ == "__main__":
    main()
