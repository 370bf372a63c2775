"""What a checkpoint costs: the trainer that copies the tensors, and the thread that writes them.

`python -m tools.bench.checkpoint [--num-features 100 ...] [--directory DIR]` takes a model of
ogbn-products' shape by default, writes checkpoints of it to DIR, and prints the medians and their
share of ten minutes, the time from one checkpoint to the next.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from distsage.config import LocalConfig
from distsage.limits import human_bytes
from distsage.model.graphsage import GraphSAGE
from distsage.train.checkpoint import Best, Checkpoint, Origin, optimizer_state, weights_of
from distsage.train.run_directory import RunDirectory

_INTERVAL_SECONDS = 600.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--num-features", type=int, default=100)
    parser.add_argument("--num-hidden", type=int, default=256)
    parser.add_argument("--num-classes", type=int, default=47)
    parser.add_argument("--num-layers", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()

    model = GraphSAGE(
        args.num_features, args.num_hidden, args.num_classes, args.num_layers, dropout=0.5
    )
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    origin = Origin("local", "", "cpu", model.shape, "", "", {}, "", 1, {}, {})
    copying, writing, thread = [], [], []
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        run = RunDirectory.begin(Path(directory) / "run", LocalConfig(dataset="none"))
        for number in range(args.rounds):
            began = time.perf_counter()
            checkpoint = Checkpoint(
                origin=origin,
                epoch=number,
                step=0,
                attempts={},
                seconds=0.0,
                elapsed=0.0,
                loss_sums=torch.zeros(1, dtype=torch.float64),
                counters=torch.zeros(1, 0, dtype=torch.float64),
                counter_names=(),
                weights=weights_of(model),
                optimizer=optimizer_state(model, optimizer),
                best=Best(0, 0.0, {"val": {}}, weights_of(model)),
            )
            copied, computed = time.perf_counter(), time.thread_time()
            run.save_checkpoint(checkpoint)
            copying.append(copied - began)
            writing.append(time.perf_counter() - copied)
            thread.append(time.thread_time() - computed)
        size = run.checkpoint_files()[0].stat().st_size
    copy, write, cpu = map(statistics.median, (copying, writing, thread))
    print(f"checkpoint of {human_bytes(size)}")
    print(f"the trainer copies for {1e3 * copy:.2f} ms: {copy / _INTERVAL_SECONDS:.6%} of 10 min")
    print(
        f"a thread writes for {1e3 * write:.1f} ms, of which {1e3 * cpu:.1f} ms are computing: "
        f"{cpu / _INTERVAL_SECONDS:.6%} of 10 min"
    )


if __name__ == "__main__":
    main()
