"""The baseline: distributed GraphSAGE as DGL's documentation tells people to write it.

Plain DGL 1.1.3 on a directory that `distsage partition` wrote; nothing of distsage is imported. One
process per role, started as DGL's own launcher starts them: the DGL_* variables say who is a server
and who a trainer, and trainers have the variables of torch.distributed besides.

What a careful user adds to the documentation's program, so that the comparison is fair: seeds dealt
out evenly, so that no trainer waits; layer-wise evaluation on all nodes with one accuracy over all
trainers; a mask that does not leave out node 0; int64 ids, for which DGL's sampler is right.
"""

import argparse
import json
import os
import time

import dgl
import torch
import torch.distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from .baseline_model import SAGE
from .options import add_training_options


@torch.no_grad()
def inference(
    model: SAGE, graph: dgl.distributed.DistGraph, widths: list[int]
) -> dgl.distributed.DistTensor:
    """Logits of all nodes, layer by layer, each trainer its share. Collective."""
    everyone = torch.ones(graph.num_nodes(), dtype=torch.bool)
    nodes = dgl.distributed.node_split(everyone, graph.get_partition_book(), force_even=True)
    x = graph.ndata["features"]
    for i, layer in enumerate(model.layers):
        y = dgl.distributed.DistTensor(
            (graph.num_nodes(), widths[i + 1]), torch.float32, f"h{i}", persistent=True
        )
        loader = dgl.dataloading.DistNodeDataLoader(
            graph,
            nodes,
            dgl.dataloading.NeighborSampler([-1]),
            batch_size=100_000,
            shuffle=False,
            drop_last=False,
        )
        for input_nodes, output_nodes, blocks in loader:
            h = layer(blocks[0], x[input_nodes])
            y[output_nodes] = functional.relu(h) if i < len(model.layers) - 1 else h
        graph.barrier()
        x = y
    return x


def accuracy(graph: dgl.distributed.DistGraph, logits: dgl.distributed.DistTensor) -> float:
    """The share of the val nodes that are classified right, over all trainers. Collective."""
    nodes = dgl.distributed.node_split(
        graph.ndata["val_mask"], graph.get_partition_book(), force_even=True
    )
    right = (logits[nodes].argmax(1) == graph.ndata["labels"][nodes]).sum()
    counts = torch.stack((right, torch.tensor(len(nodes))))
    dist.all_reduce(counts)
    return counts[0].item() / counts[1].item()


def main() -> None:
    """Serve or train; trainer 0 appends a record per epoch to --records."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.baseline_distributed", description=__doc__
    )
    parser.add_argument("--ip-config", required=True)
    parser.add_argument("--part-config", required=True)
    parser.add_argument("--num-classes", type=int, required=True)
    add_training_options(parser)
    args = parser.parse_args()

    dgl.distributed.initialize(args.ip_config)  # a server stays in here
    dist.init_process_group("gloo")
    torch.manual_seed(args.seed)
    dgl.seed(args.seed + dist.get_rank())
    with open(args.part_config) as stream:
        graph_name = json.load(stream)["graph_name"]
    graph = dgl.distributed.DistGraph(graph_name, part_config=args.part_config)
    train_nodes = dgl.distributed.node_split(
        graph.ndata["train_mask"], graph.get_partition_book(), force_even=True
    )
    loader = dgl.dataloading.DistNodeDataLoader(
        graph,
        train_nodes,
        dgl.dataloading.NeighborSampler(args.fan_out),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=False,
    )
    in_features = graph.ndata["features"].shape[1]
    widths = [in_features, *[args.num_hidden] * (len(args.fan_out) - 1), args.num_classes]
    model = SAGE(widths, args.dropout)
    replica = DistributedDataParallel(model)
    torch.manual_seed(args.seed + dist.get_rank())  # weights are alike, dropout is not
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

    for epoch in range(args.num_epochs):
        started = time.perf_counter()
        seconds = dict.fromkeys(("sample", "fetch", "forward", "backward", "optimizer"), 0.0)
        lap = started

        def split(name: str, seconds: dict[str, float] = seconds) -> None:
            nonlocal lap
            now = time.perf_counter()
            seconds[name] += now - lap
            lap = now

        model.train()
        loss_sum, steps, input_rows = 0.0, 0, 0
        with replica.join():
            for input_nodes, seeds, blocks in loader:
                split("sample")
                features = graph.ndata["features"][input_nodes]
                labels = graph.ndata["labels"][seeds]
                split("fetch")
                loss = functional.cross_entropy(replica(blocks, features), labels)
                split("forward")
                optimizer.zero_grad()
                loss.backward()
                split("backward")
                optimizer.step()
                split("optimizer")
                loss_sum += loss.item()
                steps += 1
                input_rows += len(input_nodes)
        record: dict[str, object] = {
            "epoch": epoch,
            "loss": loss_sum / steps,
            "seconds": time.perf_counter() - started,
            "steps": steps,
            "input_rows": input_rows,
            **{f"{name}_seconds": value for name, value in seconds.items()},
        }
        if epoch + 1 == args.num_epochs:
            evaluation_started = time.perf_counter()
            model.eval()
            record["val"] = {"accuracy": accuracy(graph, inference(model, graph, widths))}
            record["eval_seconds"] = time.perf_counter() - evaluation_started
        if dist.get_rank() == 0:
            with open(args.records, "a") as stream:
                stream.write(json.dumps(record) + "\n")
                stream.flush()
                os.fsync(stream.fileno())


if __name__ == "__main__":
    main()
