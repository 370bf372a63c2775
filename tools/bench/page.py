"""docs/benchmarks.md: the figures of benchmarks.json as tables, with what they mean."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distsage.files import atomic_file

from .comparisons import ALL, BASELINE, CACHED, FP32, Comparison, LocalComparison
from .results import Measurement, Medians, Results

_HEAD = """\
# Benchmarks

Written by `make bench` from [benchmarks.json](benchmarks.json). distsage beside plain DGL 1.1.3:
the program that DGL's documentation tells people to write, as good as a careful user would have it
(`tools/bench/baseline_distributed.py`, `tools/bench/baseline_local.py`).

The hosts are emulated: four network namespaces on one machine share its cores, each with a server
and a trainer of one thread, so "epoch" is the time that all work takes on few cores, and
"CPU-seconds" is the more telling figure where the network is not limited. Programs take turns;
figures are medians over the measured epochs, which leave out the first epoch of each run and the
evaluation. Every program takes the same number of steps an epoch over the same seed nodes; DGL
deals the seeds out evenly, distsage leaves each to the host that has it. CPU-seconds are those of
all processes on the hosts, servers and daemons included, read from /proc; bytes are those that the
hosts' interfaces received; memory is the peak of the fullest host, shared pages counted once. "x"
is DGL's figure divided by ours.

"Other work" is the number of cores that anything else on the machine kept busy during the measured
epochs: epoch seconds next to more than a few tenths of a core were taken on a disturbed machine.

PyTorch Geometric's NeighborLoader is not compared: it needs pyg-lib or torch-sparse, and pip found
neither of them here.
"""


_LIMITS = Path(__file__).with_name("limits.md")
"""What keeps us from the goals, written by hand with the figures' commands."""

# Comparison, program, quantity (see Results.medians), goal in words and as a ratio.
_GOALS = [
    ("4-hosts", FP32, "cpu", "CPU-seconds of all ranks, same maths", 5.0),
    ("4-hosts", ALL, "cpu", "CPU-seconds of all ranks, everything on", 8.0),
    ("4-hosts", ALL, "seconds", "epoch seconds, everything on", 5.0),
    ("4-hosts-1gbit", ALL, "seconds", "epoch seconds, 1 Gbit/s per host, everything on", 6.0),
    ("4-hosts-100mbit", ALL, "seconds", "epoch seconds, 100 Mbit/s per host, everything on", 10.0),
    ("4-hosts", CACHED, "received", "bytes received, cache 0.2, same sampler", 2.0),
    ("4-hosts", ALL, "received", "bytes received, LABOR, float16, cache 0.5", 10.0),
    ("coauthor_cs", FP32, "cpu", "sparse features: CPU-seconds of all ranks", 20.0),
    ("coauthor_cs", FP32, "received", "sparse features: bytes received, cache 0.2", 40.0),
    ("coauthor_cs", FP32, "memory", "sparse features: memory of a host", 4.0),
    ("4-hosts-wide", FP32, "cpu", "768 dense features: CPU-seconds of all ranks", 5.0),
]
_LOCAL_GOALS = [
    ("local_fp32", "local run, epoch seconds, fp32", 3.0),
    ("local_bf16", "local run, epoch seconds, bf16", 4.5),
]


def _goals(results: Results) -> str:
    """What we want to reach, and what was reached, as far as it is measured."""
    levels = results.levels()
    ratios = {level: _reached(results, level) for level in levels}
    columns = [f"reached{_kernels(level)}" for level in levels]
    lines = [
        "## Goals",
        "",
        "Plain DGL's figure divided by distsage's, medians:",
        "",
        f"| | goal | {' | '.join(columns)} |",
        f"|---|---:|{'---:|' * len(columns)}",
    ]
    for what, goal in [(what, goal) for *_, what, goal in (*_GOALS, *_LOCAL_GOALS)]:
        if any(what in ratios[level] for level in levels):
            cells = [
                f"{ratios[level][what]:.1f}x" if what in ratios[level] else "" for level in levels
            ]
            lines.append(f"| {what} | {goal:g}x | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _reached(results: Results, level: str | None) -> dict[str, float]:
    """What was reached at a level of kernels: a ratio for each goal that was measured."""
    reached = {}
    for comparison, program, quantity, what, _ in _GOALS:
        measured = results.find(comparison, level)
        if measured and {program.name, BASELINE.name} <= measured.programs.keys():
            base, ours = (measured.medians(p.name) for p in (BASELINE, program))
            reached[what] = base[quantity] / ours[quantity]
    ratios = results.ratios(level)
    return reached | {what: ratios[name] for name, what, _ in _LOCAL_GOALS if name in ratios}


def _kernels(level: str | None) -> str:
    """What is said of a level; nothing of one that was not recorded."""
    return f", kernels {level}" if level else ""


def write(path: Path, results: Results, known: Sequence[Comparison | LocalComparison]) -> None:
    """Write the page, as far as there are results."""
    sections = [_HEAD, _goals(results), _LIMITS.read_text()]
    for comparison in known:
        measured = [results.find(comparison.name, level) for level in results.levels()]
        if any(measured):
            sections.append(f"## {comparison.name}\n")
        sections += [_section(comparison, each) for each in measured if each]
    with atomic_file(path, "w") as stream:
        stream.write("\n".join(sections))


def _section(comparison: Comparison | LocalComparison, measured: Measurement) -> str:
    workload = comparison.workload
    where = "This machine alone"
    if isinstance(comparison, Comparison):
        where = f"4 hosts, {comparison.rate or 'network not limited'}"
    lines = [
        f"{where}; {comparison.graph.what}; fan-out {workload.fan_out}, batch "
        f"{workload.batch_size}, hidden {workload.num_hidden}. {measured.date}, "
        f"{measured.machine}{_kernels(measured.level)}.",
        "",
        *_table({name: measured.medians(name) for name in measured.programs}),
        "",
        *_accounting(measured.programs),
        "<details><summary>Commands</summary>",
        "",
        *(f"- {name}: `{runs[0]['command']}`" for name, runs in measured.programs.items()),
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)


def _table(medians: dict[str, Medians]) -> list[str]:
    """One row per program; the first one is what the others are compared with."""
    base = next(iter(medians.values()))

    def against(row: Medians, key: str, text: str) -> str:
        return f"{text} ({base[key] / row[key]:.1f}x)" if row is not base and row[key] else text

    rows = [
        "| program | epoch s | CPU-s | received MB | val accuracy | evaluation s | memory GiB "
        "| other work | epochs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in medians.items():
        cells = [
            name,
            against(row, "seconds", f"{row['seconds']:.2f}"),
            against(row, "cpu", f"{row['cpu']:.2f}"),
            against(row, "received", f"{row['received'] / 1e6:.1f}"),
            f"{row['accuracy']:.4f}",
            f"{row['evaluation_seconds']:.1f}",
            f"{row['memory'] / 2**30:.2f}",
            f"{row['other_cores']:.1f}",
            f"{row['epochs']:.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


_PHASES = ("sample", "fetch", "wait", "forward", "backward", "all_reduce", "optimizer")
_ROWS = ("local_rows", "cached_rows", "missed_rows")


def _accounting(programs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Where distsage's trainers spend an epoch, by their own clocks; means over the trainers."""
    table = []
    for name, runs in programs.items():
        records = [epoch["record"] for run in runs for epoch in run["epochs"]]
        if "steps" not in records[0] or not isinstance(records[0]["steps"], dict):
            continue

        def median(counter: str, records: list[dict[str, Any]] = records) -> str:
            values = [statistics.fmean(r[counter]["per_trainer"]) for r in records if counter in r]
            if not values:
                return ""
            number = statistics.median(values)
            return f"{number:.3f}" if counter.endswith("seconds") else f"{number:,.0f}"

        cells = [name, *(median(f"{phase}_seconds") for phase in _PHASES), *map(median, _ROWS)]
        table.append(f"| {' | '.join(cells)} |")
    if not table:
        return []
    columns = [*(phase.replace("_", "-") for phase in _PHASES), "local", "cached", "missed rows"]
    return [
        "Seconds and feature rows per trainer and epoch:",
        "",
        f"| program | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
        *table,
        "",
    ]
