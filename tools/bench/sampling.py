"""Time the samplers alone, one thread, on the graph of tools/bench/step.py.

`python -m tools.bench.sampling` alternates between the methods, batch by batch in one process, and
prints the CPU milliseconds of a batch: of each batch the least of all rounds, and the mean of
these. So it says something on a machine that is not quiet, too. Caches are emptied in between, as
the rest of a step would do.
"""

import argparse
import os
import time
from typing import get_args

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from distsage.kernels import level
from distsage.kernels.rng import Purpose, stream_key
from distsage.sampling.sampler import Method, Sampler
from tools.bench.local_step import make_topology
from tools.bench.options import numbers

_CACHES = 32 << 20
"""Bytes that are written between two batches."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.sampling", description=__doc__)
    parser.add_argument("--num-nodes", type=int, default=400_000)
    parser.add_argument("--num-edges", type=int, default=17_000_000)
    parser.add_argument("--fan-out", type=numbers, default="10,25")
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()

    topology = make_topology(args.num_nodes, args.num_edges)
    rng = np.random.default_rng(1)
    seeds = [
        rng.choice(args.num_nodes, args.batch_size, replace=False) for _ in range(args.batches)
    ]
    keys = [stream_key(0, 0, 0, i, Purpose.SAMPLE) for i in range(args.batches)]
    samplers = {
        method: Sampler(topology, args.fan_out, method=method) for method in get_args(Method)
    }
    least = {method: np.full(args.batches, np.inf) for method in samplers}
    caches = np.zeros(_CACHES, np.uint8)
    for _ in range(args.rounds):
        for i in range(args.batches):
            for method, sampler in samplers.items():
                caches += 1
                begin = time.thread_time()
                sampler.sample(seeds[i], keys[i], np.uint64(0))
                least[method][i] = min(least[method][i], time.thread_time() - begin)
    print(f"kernels {level.chosen()} ({level.processor_name()})")
    for method, seconds in least.items():
        print(f"{method:12s} {1e3 * seconds.mean():.2f} ms")


if __name__ == "__main__":
    main()
