"""Partitioning as DGL's documentation has it: a graph in memory, then `partition_graph`.

Run by `python -m tools.bench.partition`, beside `distsage partition`.
"""

import argparse
from pathlib import Path

import dgl
import numpy as np
import torch


def main() -> None:
    """Read a graph in distsage's layout of an .npz file, and write parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--num-parts", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    with np.load(args.graph) as file:
        graph = dgl.graph(
            (torch.from_numpy(file["edge_src"]).long(), torch.from_numpy(file["edge_dst"]).long()),
            num_nodes=int(file["num_nodes"]),
        )
        for name in ("features", "labels", "train_mask", "val_mask", "test_mask"):
            graph.ndata[name] = torch.from_numpy(file[name])
    dgl.distributed.partition_graph(
        graph, args.graph.stem, args.num_parts, str(args.output), part_method="metis"
    )


if __name__ == "__main__":
    main()
