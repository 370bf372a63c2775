"""What more threads give a training step of distsage, on a quiet machine and on a busy one.

`python -m tools.bench.threads [--threads 1,2,4] [--busy 1]` alternates between the numbers of
threads, step by step in one process, and prints the median milliseconds of each phase, the speedup,
and the serial share that Amdahl's law finds in it. `--busy N` has N other processes compute at the
same time. Graph and model are those of tools/bench/step.py.
"""

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from distsage.kernels import level
from distsage.model.backend import set_threads
from distsage.train.allocator import keep_freed_memory
from tools.bench.local_step import NUM_CLASSES, make_topology, our_step
from tools.bench.options import numbers


def _spin() -> None:
    while True:
        sum(range(100_000))


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Other processes that compute all the time."""
    others = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.threads", description=__doc__)
    parser.add_argument("--threads", type=numbers, default="1,2")
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--num-nodes", type=int, default=400_000)
    parser.add_argument("--num-edges", type=int, default=17_000_000)
    parser.add_argument("--num-features", type=int, default=100)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    set_threads(torch.device("cpu"))
    keep_freed_memory()

    topology = make_topology(args.num_nodes, args.num_edges)
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((args.num_nodes, args.num_features), "f4"))
    y = torch.from_numpy(rng.integers(0, NUM_CLASSES, args.num_nodes))
    warm_up = 3
    count = warm_up + args.steps
    seeds = [rng.choice(args.num_nodes, 1000, replace=False) for _ in range(count)]
    precision = torch.float32 if args.precision == "fp32" else torch.bfloat16
    step = our_step(topology, x, y, seeds, [10, 25], precision)
    times: dict[int, list[dict[str, float]]] = {n: [] for n in args.threads}
    with busy(args.busy):
        for i in range(count):
            for n in args.threads:
                os.environ["OMP_NUM_THREADS"] = str(n)
                lap = step(i)
                if i >= warm_up:
                    times[n].append(lap)
    print(
        f"kernels {level.chosen()} ({level.processor_name()}, {os.cpu_count()} cores), "
        f"{args.precision}, {args.busy} other processes"
    )
    one = statistics.median(t["all"] for t in times[args.threads[0]])
    for n, laps in times.items():
        phases = {phase: statistics.median(t[phase] for t in laps) for phase in laps[0]}
        line = "  ".join(f"{phase} {ms:.1f}" for phase, ms in phases.items())
        speedup = one / phases["all"]
        print(f"{n:3d} threads  {line} ms  speedup {speedup:.2f}", end="")
        ratio = n / args.threads[0]
        if ratio > 1:  # Amdahl: 1 / speedup = serial + (1 - serial) / ratio
            print(f"  serial share {(1 / speedup - 1 / ratio) / (1 - 1 / ratio):.3f}", end="")
        print()


if __name__ == "__main__":
    main()
