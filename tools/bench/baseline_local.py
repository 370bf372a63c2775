"""The local baseline: dgl.dataloading.DataLoader, NeighborSampler and SAGEConv, as documented.

int64 ids, for which DGL's sampler is right. The graph comes from the same loader as distsage's.
"""

import argparse
import json
import os
import time

import dgl
import numpy as np
import torch
from torch.nn import functional

from distsage.data.datasets import load_graph

from .baseline_model import SAGE
from .options import add_training_options


def main() -> None:
    """Train, append a record per epoch to --records, and evaluate after the last epoch."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.baseline_local", description=__doc__
    )
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--num-workers", type=int, required=True)
    add_training_options(parser)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    dgl.seed(args.seed)

    data = load_graph(args.dataset)
    indptr = torch.from_numpy(data.topology.indptr)
    indices = torch.from_numpy(data.topology.indices.astype(np.int64))
    graph = dgl.graph(("csc", (indptr, indices, torch.empty(0, dtype=torch.int64))))
    dense = data.features if isinstance(data.features, np.ndarray) else data.features.toarray()
    features = torch.from_numpy(dense)
    labels = torch.from_numpy(data.labels)
    train_nodes, val_nodes = (
        torch.from_numpy(np.flatnonzero(mask)) for mask in (data.train_mask, data.val_mask)
    )
    loader = dgl.dataloading.DataLoader(
        graph,
        train_nodes,
        dgl.dataloading.NeighborSampler(args.fan_out),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=False,
        num_workers=args.num_workers,
        persistent_workers=args.num_workers > 0,
    )
    widths = [features.shape[1], *[args.num_hidden] * (len(args.fan_out) - 1), data.num_classes]
    model = SAGE(widths, args.dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

    for epoch in range(args.num_epochs):
        started = time.perf_counter()
        model.train()
        loss_sum, steps = 0.0, 0
        for input_nodes, seeds, blocks in loader:
            loss = functional.cross_entropy(model(blocks, features[input_nodes]), labels[seeds])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            steps += 1
        record: dict[str, object] = {
            "epoch": epoch,
            "loss": loss_sum / steps,
            "seconds": time.perf_counter() - started,
            "steps": steps,
        }
        if epoch + 1 == args.num_epochs:
            evaluation_started = time.perf_counter()
            model.eval()
            with torch.no_grad():
                h = features
                for i, layer in enumerate(model.layers):
                    h = layer(graph, h)
                    if i < len(model.layers) - 1:
                        h = functional.relu(h)
            right = h[val_nodes].argmax(1) == labels[val_nodes]
            record["val"] = {"accuracy": right.double().mean().item()}
            record["eval_seconds"] = time.perf_counter() - evaluation_started
        with open(args.records, "a") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


if __name__ == "__main__":
    main()
