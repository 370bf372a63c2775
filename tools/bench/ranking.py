"""How good is the partitioner's cache ranking? Counts the rows that caches of several sizes miss.

`python -m tools.bench.ranking` samples the batches of some epochs, trains nothing, and compares
rankings of the remote nodes. Writes docs/cache-ranking.md.
"""

import argparse
from pathlib import Path

import numpy as np

from distsage.config import TrainConfig, parse_fan_out
from distsage.data.graph import Topology
from distsage.files import atomic_file
from distsage.kernels.rng import Purpose, stream_key
from distsage.partitioning.parts import Parts
from distsage.sampling.sampler import Sampler
from distsage.sampling.seeds import SeedPlan

from .comparisons import SYNTHETIC
from .runs import make_parts

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
SCORED = range(4)
COUNTED = range(4, 204)
_BATCH_SIZE = 1000
_CLOSE = 1.05

_PAGE = """\
# The cache ranking

Feature rows that a host has to fetch from others, with caches of several sizes (in parts of the
other hosts' nodes), in percent of what it fetches without a cache. The cache holds the remote
nodes that come first by

- VIP: their vertex-inclusion probability, the ranking that `distsage partition` writes;
- degree: their in-degree in the whole graph;
- halo: the number of edges they have into the host's part, then their degree;
- measured: the number of batches that they were an input of, in {counted} other epochs. Counts of
  rarely sampled nodes are few, so this is a little short of the best that a ranking can do, and
  VIP may be the better one.

Graph: {graph}, {num_nodes:,} nodes, {num_edges:,} edges, {num_parts} hosts with a trainer each.
Fan-out {fan_out} (the ranking was made for {ranked_for}), batch size {batch_size}, {scored} epochs
of distsage's own batches, {fetched:,.0f} rows an epoch without a cache.
`{command}`, 2 cores of an AMD EPYC, 2026-11-22.

{table}

{verdict}
"""


def input_counts(
    topology: Topology, plan: SeedPlan, fan_outs: tuple[int, ...], epochs: range
) -> np.ndarray:
    """int64 `[N]`: of how many batches of a trainer's epochs each node is an input."""
    sampler = Sampler(topology, fan_outs, number_inputs=True)
    counts = np.zeros(topology.num_nodes, np.int64)
    for epoch in epochs:
        for step, seeds in enumerate(plan.batches(epoch)):
            where = (plan.seed, epoch, plan.trainer_rank, step)
            sample, dropout = (stream_key(*where, p) for p in (Purpose.SAMPLE, Purpose.DROPOUT))
            counts[sampler.sample(seeds, sample, dropout).input_gid] += 1  # distinct nodes
    return counts


def rankings(
    topology: Topology, low: int, high: int, vip: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Remote nodes of the part [low, high), the best first, by the name of the ranking.

    Args:
        topology: of the whole graph.
        low, high: the part's gids.
        vip: as the partitioner wrote it, the only ranking that may leave nodes out.
        counts: `input_counts` of the part's trainer.
    """
    gid = np.arange(topology.num_nodes)
    is_remote = (gid < low) | (gid >= high)
    remote = gid[is_remote]
    degree = np.diff(topology.indptr)[remote]
    into_part = topology.indices[topology.indptr[low] : topology.indptr[high]]
    edges = np.bincount(into_part, minlength=len(gid))[remote]
    is_remote[vip] = False
    every_vip = np.concatenate((vip, gid[is_remote]))
    return {
        "VIP": vip,
        "degree": remote[np.argsort(-degree, kind="stable")],
        "halo": remote[np.lexsort((-degree, -edges))],
        "measured": every_vip[np.argsort(-counts[every_vip], kind="stable")],
    }


def misses(counts: np.ndarray, low: int, high: int, cached: np.ndarray) -> int:
    """Rows fetched for batches with these `input_counts`, on the host of the part [low, high)."""
    return int(counts.sum() - counts[low:high].sum() - counts[cached].sum())


def compare(
    parts: Parts, fan_outs: tuple[int, ...], batch_size: int
) -> tuple[int, dict[float, dict[str, int]]]:
    """Rows fetched in the scored epochs by all hosts: uncached, and by ratio and ranking."""
    topology, summaries = parts.topology(), parts.manifest.parts
    uncached = 0
    fetched: dict[float, dict[str, int]] = {ratio: {} for ratio in RATIOS}
    for host, summary in enumerate(summaries):
        low, high = summary.nodes
        train_gid = low + np.flatnonzero(parts.load_part(host)["train_mask"])
        plan = SeedPlan(train_gid, [part.train_nodes for part in summaries], batch_size, 0, host)
        scored = input_counts(topology, plan, fan_outs, SCORED)
        counted = input_counts(topology, plan, fan_outs, COUNTED)
        uncached += misses(scored, low, high, np.empty(0, np.int64))
        vip = np.asarray(parts.cache_ranking(host))
        for name, ranking in rankings(topology, low, high, vip, counted).items():
            for ratio, row in fetched.items():
                config = TrainConfig(parts=parts.path, cache_ratio=ratio)
                rows = config.cache_rows(topology.num_nodes - summary.num_nodes)
                row[name] = row.get(name, 0) + misses(scored, low, high, ranking[:rows])
    return uncached, fetched


def _table(uncached: int, fetched: dict[float, dict[str, int]]) -> str:
    lines = ["| cache ratio | VIP | degree | halo | measured | VIP / measured |"]
    lines.append("|---|---|---|---|---|---|")
    for ratio, row in fetched.items():
        cells = [f"{100 * count / uncached:.2f}" for count in row.values()]
        quotient = f"{row['VIP'] / row['measured']:.4f}" if row["measured"] else "none missed"
        lines.append(f"| {ratio} | {' | '.join(cells)} | {quotient} |")
    return "\n".join(lines)


def _verdict(fetched: dict[float, dict[str, int]]) -> str:
    rows = fetched.values()
    best = all(row["VIP"] < min(row["degree"], row["halo"]) for row in rows)
    close = all(row["VIP"] <= _CLOSE * row["measured"] for row in rows)
    return (
        f"Goals: VIP better than degree and halo at every ratio: {'yes' if best else 'NO'}; "
        f"VIP within 5 % of measured at every ratio: {'yes' if close else 'NO'}."
    )


def main() -> None:
    """Read the command line, sample, write the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.ranking", description=__doc__)
    parser.add_argument("--parts", type=Path, help="default: those of `make bench`, 400k nodes")
    parser.add_argument("--fan-out", default="10,25")
    parser.add_argument("--output", type=Path, default=Path("docs/cache-ranking.md"))
    args = parser.parse_args()
    work_dir = Path.home() / ".cache" / "distsage" / "bench"
    work_dir.mkdir(parents=True, exist_ok=True)
    parts = Parts.open(
        args.parts or make_parts(work_dir, SYNTHETIC.dataset, SYNTHETIC.partition_options, 4)
    )
    manifest = parts.manifest
    uncached, fetched = compare(parts, parse_fan_out(args.fan_out), _BATCH_SIZE)
    if uncached == 0:
        parser.error(f"no batch on {parts.path} has a remote node")
    made_for = manifest.configuration
    page = _PAGE.format(
        graph=manifest.graph_name,
        num_nodes=manifest.num_nodes,
        num_edges=manifest.num_edges,
        num_parts=parts.num_parts,
        fan_out=args.fan_out,
        ranked_for=f"{','.join(map(str, made_for['fan_out']))} and {made_for['batch_size']}",
        batch_size=_BATCH_SIZE,
        scored=len(SCORED),
        counted=len(COUNTED),
        fetched=uncached / len(SCORED),
        command="python -m tools.bench.ranking"
        + (f" --parts {args.parts.name}" if args.parts else "")
        + f" --fan-out {args.fan_out}",
        table=_table(uncached, fetched),
        verdict=_verdict(fetched),
    )
    with atomic_file(args.output, "w") as stream:
        stream.write(page)
    print(page)


if __name__ == "__main__":
    main()
