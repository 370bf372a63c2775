"""What does partitioning take? `python -m tools.bench.partition` writes docs/partitioning-cost.md.

Side by side with DGL's `partition_graph` where that fits; alone on a graph of ogbn-products' size.
"""

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from distsage.data.datasets import load_graph
from distsage.files import atomic_file
from distsage.kernels.level import processor_name
from distsage.limits import human_bytes

from .processes import measured

NUM_PARTS = 4
SMALL, LARGE = "synthetic:400000:42:100", "synthetic:2400000:52:100"
_PAGE = """\
# What partitioning takes

From an .npz file, its edges in random order, to {num_parts} parts on disk: reading,
assigning, writing, and for distsage also
the ranking of remote nodes and checksums. Memory is the peak of all processes without pages of
files, looked at every few milliseconds. DGL 1.1.3 does it as its documentation says
(`tools/bench/baseline_partition.py`): the graph in memory, then `partition_graph` with METIS.
KaMinPar, which assigns for distsage, keeps to one thread, so that a seed gives the same parts every
time; writing, ranking and checksums take all cores.

`python -m tools.bench.partition`, {cores} cores of an {processor}, {date}.

| graph | program | seconds | CPU-seconds | memory |
|---|---|---:|---:|---:|
{table}
"""


def _store(dataset: str, path: Path) -> str:
    """Write a graph as an .npz file; return what it is, for people."""
    graph = load_graph(dataset)
    topology = graph.topology
    nodes = np.arange(graph.num_nodes, dtype=topology.indices.dtype)
    shuffled = np.random.default_rng(0).permutation(topology.num_edges)  # as data may come
    np.savez(
        path,
        num_nodes=graph.num_nodes,
        edge_src=topology.indices[shuffled],
        edge_dst=np.repeat(nodes, np.diff(topology.indptr))[shuffled],
        features=graph.features,
        labels=graph.labels,
        train_mask=graph.train_mask,
        val_mask=graph.val_mask,
        test_mask=graph.test_mask,
    )
    return f"{dataset} ({graph.num_nodes:,} nodes, {topology.num_edges:,} edges)"


def main() -> None:
    """Measure, write the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.partition", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/partitioning-cost.md"))
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        for dataset in (SMALL, LARGE):
            graph = Path(directory, "graph.npz")
            what = _store(dataset, graph)
            ours = ["-m", "distsage", "partition", "--dataset", str(graph)]
            theirs = ["-m", "tools.bench.baseline_partition", "--graph", str(graph)]
            programs = {"distsage": ours, "distsage, `--memory 2500M`": [*ours, "--memory=2500M"]}
            if dataset == SMALL:
                programs = {"DGL": theirs, "distsage": ours}
            first = None
            for number, (program, words) in enumerate(programs.items()):
                output = Path(directory, f"{Path(dataset).name}-{number}")
                words = [*words, "--num-parts", str(NUM_PARTS), "--output", str(output)]
                started = time.monotonic()
                cpu, peak = measured([sys.executable, *words])
                took = time.monotonic() - started, cpu, peak
                first = first or took
                texts = [f"{took[0]:.1f}", f"{took[1]:.1f}", human_bytes(took[2])]
                if dataset == SMALL and took is not first:
                    texts = [
                        f"{text} ({before / now:.1f}x)"
                        for text, before, now in zip(texts, first, took, strict=True)
                    ]
                lines.append(f"| {what} | {program} | {' | '.join(texts)} |")
                print(lines[-1], flush=True)
    with atomic_file(args.output, "w") as stream:
        stream.write(
            _PAGE.format(
                num_parts=NUM_PARTS,
                cores=os.cpu_count(),
                processor=processor_name(),
                date=datetime.date.today(),
                table="\n".join(lines),
            )
        )


if __name__ == "__main__":
    main()
