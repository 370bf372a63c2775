"""Accuracy on real graphs, distributed, beside a reference: `make accuracy`.

Reads the graphs of $DISTSAGE_DATA, trains on each in 1, 2 and 4 parts with one mpirun of emulated
hosts, and once on the features alone; prints the table and writes it to docs/accuracy.md.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distsage import __version__
from distsage.data.datasets import load_graph
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.files import atomic_file
from distsage.kernels.level import processor_name
from distsage.partitioning.run import partition
from tools.mpirun import launcher

NUM_PARTS = (1, 2, 4)
FAST_PARTS = 2
EVERY_TECHNIQUE = (
    *("--sampler", "labor"),
    *("--feat-dtype", "float16"),
    *("--precision", "bf16"),
    *("--cache-ratio", "0.5"),
    *("--num-workers", "1"),
)
"""What makes a run faster, all at once; measured in `FAST_PARTS` parts."""
# Seed nodes per step over all trainers, so that the number of parts does not change the training.
_GLOBAL_BATCH = 252
_STEP_SECONDS = 900


@dataclass(frozen=True)
class RealGraph:
    """One graph of $DISTSAGE_DATA and how it is trained.

    Attributes:
        name: of its file.
        metric: the score that counts.
        reference: test score of full-graph GraphSAGE in plain PyTorch, percent.
        reference_without_graph: the same of the features alone.
        options: what differs from graph to graph.
    """

    name: str
    metric: str
    reference: float
    reference_without_graph: float
    options: Mapping[str, object]

    def arguments(self, num_trainers: int) -> list[str]:
        """The training options of `distsage train` and `distsage local`."""
        options = {
            "num-hidden": 64,
            "fan-out": "10,25",
            "lr": 0.01,
            "batch-size": _GLOBAL_BATCH // num_trainers,
            **self.options,
        }
        return [word for name, value in options.items() for word in (f"--{name}", str(value))]

    def load(self, directory: Path) -> Graph:
        """Read it; row-normalised where the file says that the features are bags of words."""
        return load_graph(str(directory / f"{self.name}.npz"))

    def score(self, run_dir: Path) -> float:
        """Test score of a finished run, percent, at its best validation epoch."""
        summary = json.loads((run_dir / "summary.json").read_text())
        return 100 * float(summary["test"][self.metric])


# 60 train nodes, as in every Planetoid split: they need many epochs, and the weight decay that is
# customary there.
PUBMED = {"num-epochs": 100, "eval-every": 5, "weight-decay": 5e-4}
GRAPHS = (
    RealGraph("pubmed", "accuracy", 78.0, 73.0, PUBMED),
    RealGraph("amazon_photo", "accuracy", 95.5, 89.0, {"num-epochs": 30, "eval-every": 5}),
    RealGraph("coauthor_cs", "accuracy", 96.0, 95.7, {"num-epochs": 3, "eval-every": 1}),
    RealGraph("tolokers", "roc_auc", 80.6, 73.0, {"num-epochs": 40, "eval-every": 5}),
)


def data_directory() -> Path:
    """$DISTSAGE_DATA.

    Raises:
        UserError: it is not set, or a graph is not there.
    """
    directory = Path(os.environ.get("DISTSAGE_DATA") or "")
    missing = [g.name for g in GRAPHS if not (directory / f"{g.name}.npz").is_file()]
    if missing:
        raise UserError(
            f"set DISTSAGE_DATA to the directory of the real graphs; {directory}/ has no "
            f"{', '.join(f'{name}.npz' for name in missing)}"
        )
    return directory


def main() -> None:
    """Measure and write; a failure ends with one sentence and a status other than 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.accuracy", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/accuracy.md"),
        help="file to write; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all runs; default: %(default)s")
    args = parser.parse_args()
    try:
        directory = data_directory()
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="distsage-accuracy-") as scratch:
            rows = [measure(graph, directory, Path(scratch), args.seed) for graph in GRAPHS]
        text = page(rows, args.seed, time.monotonic() - started)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.output, "w") as stream:
            stream.write(text)
    except UserError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"\n{text}\nwritten to {args.output}")


@dataclass(frozen=True)
class Row:
    """What one graph came to: test scores in percent.

    Attributes:
        graph: this one.
        by_parts: by number of parts.
        fast: in `FAST_PARTS` parts with `EVERY_TECHNIQUE`.
        without_graph: on the features alone.
    """

    graph: RealGraph
    by_parts: Mapping[int, float]
    fast: float
    without_graph: float


def measure(graph: RealGraph, directory: Path, scratch: Path, seed: int) -> Row:
    """Train on one graph in every number of parts, and without its edges."""
    print(graph.name, flush=True)
    data = graph.load(directory)
    by_parts = {}
    for num_parts in NUM_PARTS:
        parts = scratch / f"{graph.name}-{num_parts}"
        partition(data, num_parts, parts)
        by_parts[num_parts] = _score(graph, num_parts, parts, seed)
        print(f"  {num_parts} parts: {by_parts[num_parts]:.1f} %", flush=True)
    parts = scratch / f"{graph.name}-{FAST_PARTS}"
    fast = _score(graph, FAST_PARTS, parts, seed, *EVERY_TECHNIQUE)
    print(f"  {FAST_PARTS} parts, every technique: {fast:.1f} %", flush=True)
    run_dir = scratch / f"{graph.name}-without-graph"
    command = [sys.executable, "-m", "distsage", "local", "--ignore-edges", "--run-dir"]
    command += [str(run_dir), "--dataset", str(directory / f"{graph.name}.npz")]
    _run([*command, "--seed", str(seed), *graph.arguments(1)], dict(os.environ))
    without_graph = graph.score(run_dir)
    print(f"  features alone: {without_graph:.1f} %", flush=True)
    return Row(graph, by_parts, fast, without_graph)


def _score(graph: RealGraph, num_parts: int, parts: Path, seed: int, *more: str) -> float:
    """Test score of one distributed run."""
    run_dir = parts.with_name(f"{parts.name}-run{'-fast' if more else ''}")
    mpirun, environment = launcher(2 * num_parts)
    command = [*mpirun, sys.executable, "-m", "mpi4py", "-m", "distsage", "train"]
    command += ["--parts", str(parts), "--emulated-hosts", str(num_parts)]
    command += ["--run-dir", str(run_dir), "--seed", str(seed), *graph.arguments(num_parts), *more]
    _run(command, environment)
    return graph.score(run_dir)


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Run one training.

    Raises:
        UserError: it failed, or took too long.
    """
    try:
        ended = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_STEP_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{' '.join(command)} has not ended after {_STEP_SECONDS} s") from error
    if ended.returncode != 0:
        raise UserError(f"{' '.join(command)} failed:\n{ended.stdout}")


def page(rows: list[Row], seed: int, seconds: float) -> str:
    """The page as Markdown."""
    lines = [
        "# Accuracy on real graphs",
        "",
        "Test score in percent at the best validation epoch: accuracy, for tolokers ROC-AUC. One "
        "run each.",
        "",
        f"| graph | {' | '.join(_parts(n) for n in NUM_PARTS)} | {_parts(FAST_PARTS)}, every "
        "technique | reference | features alone | reference |",
        f"|---|{'---:|' * (len(NUM_PARTS) + 4)}",
    ]
    for row in rows:
        scores = [row.by_parts[n] for n in NUM_PARTS] + [row.fast, row.graph.reference]
        scores += [row.without_graph, row.graph.reference_without_graph]
        lines.append(f"| {row.graph.name} | {' | '.join(f'{score:.1f}' for score in scores)} |")
    settings = [f"`{row.graph.name}`: `{_shown(row.graph.options)}`" for row in rows]
    lines += [
        "",
        "- Parts are hosts: one mpirun of a server and a trainer per part, emulated on one "
        "machine, with neighbour sampling. The reference is full-graph GraphSAGE in plain "
        f"PyTorch. Every technique: `{' '.join(EVERY_TECHNIQUE)}`. `features alone` is the same "
        "model without neighbours (`distsage local --ignore-edges`).",
        f"- All: `{_shown({'num-hidden': 64, 'fan-out': '10,25', 'lr': 0.01})}`, dropout 0.5, "
        f"{_GLOBAL_BATCH} seed nodes a step over all trainers, seed {seed}.",
        *(f"- {line}" for line in settings),
        "- coauthor_cs is there for its 6,805 sparse features: its neighbours add little.",
        "",
        f"Measured with `make accuracy` on {datetime.date.today().isoformat()}, distsage "
        f"{__version__}, Python {platform.python_version()}, {os.cpu_count()} cores "
        f"({processor_name()}), in {seconds / 60:.0f} minutes.",
    ]
    return "\n".join(lines) + "\n"


def _parts(number: int) -> str:
    return f"{number} part" if number == 1 else f"{number} parts"


def _shown(options: Mapping[str, object]) -> str:
    return " ".join(f"--{name} {value}" for name, value in options.items())


if __name__ == "__main__":
    main()
