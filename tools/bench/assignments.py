"""Which partitioner leaves the fewest remote rows? Assigns graphs, writes no parts, trains nothing.

`python -m tools.bench.assignments` compares METIS, KaMinPar and random parts. The real graphs are
those of $DISTSAGE_DATA. Writes docs/partitioners.md.
"""

import argparse
import contextlib
import multiprocessing
import os
import resource
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from distsage.config import PartMethod
from distsage.data.datasets import load_graph
from distsage.files import atomic_file
from distsage.limits import human_bytes
from distsage.partitioning.assignment import assigner, choose
from distsage.partitioning.attempts import Attempt, best_of, judged

_POLL_SECONDS = 0.01
NUM_PARTS = 4
FAN_OUT = (10, 25)
ATTEMPTS = 8
# Name, options of reading, seed nodes per batch: small graphs would be in one batch as a whole.
GRAPHS: list[tuple[str, dict[str, int], int]] = [
    ("coauthor_cs", {}, 100),
    ("tolokers", {}, 100),
    ("synthetic:400000:42", {}, 1000),
]
METHODS: list[tuple[str, PartMethod, int]] = [
    ("random", "random", 1),
    ("METIS", "metis", 1),
    ("KaMinPar", "kaminpar", 1),
    (f"KaMinPar, the best of {ATTEMPTS}", "kaminpar", ATTEMPTS),
]

_PAGE = """\
# Partitioners

What {num_parts} parts by each partitioner cost those who train on them: the edges between parts,
and the rows of other parts that a batch is expected to need, without a cache (vertex-inclusion
probability, fan-out {fan_out}; the mean over the batches of all parts). Seconds are CPU-seconds
of the partitioner's process, for one attempt; memory is its peak, looked at every {poll:.0f} ms,
without pages of files (both map the graph's file). METIS takes no seed here. Both balance the
number of nodes, to 3 %; in-edges are those of the part that has most, beside the mean.

`python -m tools.bench.assignments`, one core of an AMD EPYC, 2026-11-26, on a machine with other
work.

{table}

The worst of KaMinPar's {attempts} attempts needs more remote rows than the best by:
{spread}.
"""


@dataclass(frozen=True)
class Outcome:
    """What a partitioner did with a graph.

    Attributes:
        attempts: what each cost.
        num_edges: directed, of the graph.
        edge_balance: in-edges of the part that has most / of a part on average, of what is kept.
        cpu: seconds of the partitioner's processes, per attempt.
        memory: the peak of one of them, in bytes, pages of files not counted; 0 without a process.
    """

    attempts: list[Attempt]
    num_edges: int
    edge_balance: float
    cpu: float
    memory: int

    @property
    def best(self) -> Attempt:
        """The attempt that is kept."""
        return min(self.attempts, key=lambda attempt: attempt.remote_rows)


def assign(
    dataset: str, reading: dict[str, int], batch_size: int, method: PartMethod, attempts: int
) -> Outcome:
    """Let a partitioner split a graph. Needs a process that has had no other child yet."""
    graph = load_graph(dataset, **reading)  # type: ignore[arg-type]
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(_POLL_SECONDS):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    # Until it is a partitioner, a child shows this process's own memory.
                    if any("distsage.partitioning" in word for word in child.cmdline()):
                        memory = child.memory_info()
                        peak = max(peak, memory.rss - memory.shared)

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    with (
        tempfile.TemporaryDirectory() as scratch,
        assigner(graph, NUM_PARTS, choose(method), scratch=Path(scratch)) as draw,
    ):
        kept, made = best_of(
            draw,
            range(attempts),
            lambda part, seed: judged(
                graph, part, NUM_PARTS, seed=seed, fan_out=FAN_OUT, batch_size=batch_size
            ),
        )
    done.set()
    watcher.join()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (used.ru_utime + used.ru_stime) / attempts
    edges = np.bincount(kept, np.diff(graph.topology.indptr))
    balance = float(edges.max() / edges.mean())
    return Outcome(made, graph.topology.num_edges, balance, cpu, peak)


def _row(graph: str, batch_size: int, name: str, outcome: Outcome, metis: Outcome) -> str:
    best = outcome.best
    return (
        f"| {graph} | {batch_size} | {name} "
        f"| {100 * best.edge_cut / outcome.num_edges:.2f} % | {best.remote_rows:,.0f} "
        f"| {best.remote_rows / metis.best.remote_rows:.3f} | {outcome.edge_balance:.2f} "
        + (f"| {outcome.cpu:.1f} | {human_bytes(outcome.memory)} |" if outcome.memory else "| | |")
    )


def main() -> None:
    """Read the command line, assign, write the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.assignments", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/partitioners.md"))
    args = parser.parse_args()
    if "DISTSAGE_DATA" not in os.environ:
        parser.error("$DISTSAGE_DATA names no directory with the real graphs")
    lines = [
        "| graph | batch | parts by | edge cut | remote rows | beside METIS's | in-edges "
        "| seconds | memory |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    spreads = []
    for name, reading, batch_size in GRAPHS:
        dataset = name if ":" in name else os.path.join(os.environ["DISTSAGE_DATA"], f"{name}.npz")
        outcomes = {}
        for label, method, attempts in METHODS:
            # A process of its own, so that its children's memory is one partitioner's.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                words = (dataset, reading, batch_size, method, attempts)
                outcomes[label] = pool.apply(assign, words)
        for label, outcome in outcomes.items():
            lines.append(_row(name, batch_size, label, outcome, outcomes["METIS"]))
            print(lines[-1], flush=True)
        rows = [attempt.remote_rows for attempt in outcomes[METHODS[-1][0]].attempts]
        spreads.append(f"{name} {100 * (max(rows) / min(rows) - 1):.1f} %")
    page = _PAGE.format(
        num_parts=NUM_PARTS,
        attempts=ATTEMPTS,
        poll=1000 * _POLL_SECONDS,
        fan_out=",".join(map(str, FAN_OUT)),
        table="\n".join(lines),
        spread=", ".join(spreads),
    )
    with atomic_file(args.output, "w") as stream:
        stream.write(page)


if __name__ == "__main__":
    main()
