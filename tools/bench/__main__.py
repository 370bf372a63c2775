"""Compare distsage with plain DGL, on an emulated cluster of four hosts and on this machine alone.

Writes docs/benchmarks.json as it goes and docs/benchmarks.md at the end. The programs of a
comparison take turns, so that what else goes on here meets all of them; the figures are medians
over their epochs. DISTSAGE_KERNELS forces a level of kernels on all programs, DGL's included; the
figures of each level are kept beside those of the others. Needs root (for the emulated cluster).
"""

import argparse
import signal
import sys
from pathlib import Path

from distsage.kernels import level

from . import page
from .cluster import REPOSITORY, cluster
from .comparisons import FULL, QUICK, Comparison, LocalComparison, Program
from .results import Results
from .runs import Run, make_parts, run_baseline, run_distsage, run_local

_NUM_HOSTS = 4


def compare(comparison: Comparison, work_dir: Path, results: Results) -> None:
    """Run a comparison of distributed programs."""
    parts = make_parts(
        work_dir, comparison.graph.dataset, comparison.graph.partition_options, _NUM_HOSTS
    )
    with cluster(_NUM_HOSTS, comparison.rate) as hosts:
        for _ in range(comparison.rounds):
            for program in comparison.programs:
                if program.is_baseline:
                    run = run_baseline(hosts, work_dir, parts, comparison.workload)
                else:
                    run = run_distsage(hosts, work_dir, parts, comparison.workload, program.options)
                _note(results, comparison.name, program, run)


def compare_locally(comparison: LocalComparison, work_dir: Path, results: Results) -> None:
    """Run a comparison of local programs."""
    for _ in range(comparison.rounds):
        for program in comparison.programs:
            module = (
                ["tools.bench.baseline_local"] if program.is_baseline else ["distsage", "local"]
            )
            run = run_local(
                work_dir, module, comparison.graph.dataset, comparison.workload, program.options
            )
            _note(results, comparison.name, program, run)


def _note(results: Results, comparison: str, program: Program, run: Run) -> None:
    results.add(comparison, program.name, run)
    foreign = max(epoch.foreign / epoch.seconds for epoch in run.epochs)
    print(
        f"{comparison:22s} {program.name:28s} "
        f"epochs {' '.join(f'{epoch.seconds:.2f}' for epoch in run.epochs)} s  "
        f"CPU {' '.join(f'{epoch.cpu:.2f}' for epoch in run.epochs)} s  "
        f"received {run.epochs[-1].received / 1e6:.1f} MB  accuracy {run.accuracy:.4f}  "
        f"evaluation {run.evaluation_seconds:.1f} s  memory {run.memory / 2**30:.2f} GiB"
        + (f"  (other work took up to {foreign:.1f} cores)" if foreign > 0.2 else ""),
        flush=True,
    )


def main() -> None:
    """Read the command line and run the comparisons."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument(
        "comparisons", nargs="*", help=f"which: {', '.join(c.name for c in FULL)} (default: all)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="unlimited network and the local run only; prints lines `ratio NAME VALUE` and "
        "writes no page",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path.home() / ".cache" / "distsage" / "bench",
        help="parts are kept here from one run to the next; not below /tmp or /run, which the "
        "emulated hosts do not share",
    )
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs")
    args = parser.parse_args()
    known = {comparison.name: comparison for comparison in FULL}
    unknown = [name for name in args.comparisons if name not in known]
    if unknown or (args.quick and args.comparisons):
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "--quick has its own choice")
    chosen = QUICK if args.quick else [known[name] for name in args.comparisons] or FULL
    missing = [c.name for c in chosen if not c.graph.is_there()]
    if missing:
        parser.error(
            f"set DISTSAGE_DATA to the directory that has the graphs of {', '.join(missing)}, or "
            "name the comparisons to run"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is ended

    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.quick:
        results = Results(None, level.chosen())
    else:
        args.output.mkdir(parents=True, exist_ok=True)
        results = Results(args.output / "benchmarks.json", level.chosen())
    for comparison in chosen:
        results.begin(comparison.name)
        if isinstance(comparison, LocalComparison):
            compare_locally(comparison, args.work_dir, results)
        else:
            compare(comparison, args.work_dir, results)
    for name, value in results.ratios(results.level).items():
        print(f"ratio {name} {value:.2f}")
    if not args.quick:
        page.write(args.output / "benchmarks.md", results, FULL)


if __name__ == "__main__":
    main()
