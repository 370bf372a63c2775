"""What fewer hosts than parts cost: `python -m tools.bench.grouping DATASET`. Writes nothing.

Prints the edge cut and the remote rows expected in a batch, of as many parts as hosts and of 16
parts that the hosts hold runs of.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from distsage.data.datasets import load_graph
from distsage.data.graph import Graph
from distsage.partitioning.assignment import assigner, choose
from distsage.partitioning.attempts import judged
from distsage.partitioning.host_parts import deal_out
from distsage.partitioning.part_order import order_parts

NUM_PARTS = 16


def main() -> None:
    """Print a line for each number of hosts."""
    options = argparse.ArgumentParser(description="What fewer hosts than parts cost.")
    options.add_argument("dataset", help="a name or a path, as `distsage partition` takes it")
    graph = load_graph(options.parse_args().dataset)
    part = _assigned(graph, NUM_PARTS)
    part = order_parts(graph.topology, part, NUM_PARTS)[part]
    sizes = np.bincount(part, minlength=NUM_PARTS).tolist()
    print("| hosts | cut, as many parts | cut, 16 parts | rows, as many parts | rows, 16 parts |")
    print("|---:|---:|---:|---:|---:|")
    for num_hosts in (2, 3, 4, 8):
        bounds = deal_out(sizes, num_hosts)
        grouped = np.searchsorted(bounds, part, side="right") - 1
        direct, runs = (
            judged(graph, one, num_hosts, seed=0, fan_out=(10, 25), batch_size=100)
            for one in (_assigned(graph, num_hosts), grouped)
        )
        cuts = [f"{100 * one.edge_cut / graph.topology.num_edges:.1f} %" for one in (direct, runs)]
        rows = [f"{one.remote_rows:,.0f}" for one in (direct, runs)]
        print(f"| {num_hosts} | {' | '.join([*cuts, *rows])} |")


def _assigned(graph: Graph, num_parts: int) -> np.ndarray:
    with (
        tempfile.TemporaryDirectory() as scratch,
        assigner(graph, num_parts, choose("kaminpar"), scratch=Path(scratch)) as assign,
    ):
        return assign(0)


if __name__ == "__main__":
    main()
