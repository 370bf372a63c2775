"""What a page about parts shows: sizes, cut, balance, and what batches will fetch.

Runs on the login host, on directories that `distsage partition` wrote.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from distsage.limits import human_bytes
from distsage.partitioning.attempts import Attempt
from distsage.partitioning.parts import Parts
from distsage.partitioning.quality import QualityReport
from distsage.report.figures import Figure, Section, Table, balance, options, stack

# Points of the curve of remote rows.
_RATIOS = np.linspace(0, 1, 21)


class Partition:
    """A parts directory, and what the figures are made of.

    Args:
        path: of the directory.

    Raises:
        UserError: it is none, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        parts = Parts.open(path)
        self.name = path.name or str(path)
        self.manifest = parts.manifest
        curves = [_rows_left(parts.cache_probability(part)) for part in range(parts.num_parts)]
        self.rows_left = np.array(curves)
        """float64 `[parts, ratios]`: rows that a batch is expected to fetch, by cache ratio."""
        configuration = parts.manifest.configuration
        self.report = QualityReport.of(
            parts.manifest,
            self.rows_left[:, 0].tolist(),
            str(configuration.get("method_reason", configuration.get("method", "?"))),
            [Attempt(**attempt) for attempt in configuration.get("attempts", ())],
        )


def _rows_left(probability: np.ndarray) -> list[float]:
    """What a cache of each ratio leaves to be fetched; the likeliest rows come first."""
    sums = np.concatenate([[0.0], np.cumsum(probability, dtype=np.float64)])
    return [float(sums[-1] - sums[int(ratio * len(probability))]) for ratio in _RATIOS]


def sections(partitions: Sequence[Partition]) -> list[Section]:
    """All that a page about these directories shows."""
    many = len(partitions) > 1
    found = [Section("Summary", [_summary(partitions)])]
    for title, makers in (
        ("Balance", (_balance, _nodes, _edges)),
        ("What batches will fetch", (_remote_rows, _cache)),
        ("Attempts", (_attempts,)),
    ):
        figures = []
        for make in makers:
            for one in partitions:
                figure = make(one)
                if figure is not None:
                    name = f"{one.name}: {figure.title}" if many else figure.title
                    figures.append(replace(figure, title=name))
        found.append(Section(title, figures))
    found.append(Section("Configuration", [_configuration(partitions)]))
    return [section for section in found if section.figures]


def _summary(partitions: Sequence[Partition]) -> Figure:
    facts: list[tuple[str, Callable[[Partition], str]]] = [
        ("graph", lambda one: one.manifest.graph_name),
        ("nodes", lambda one: f"{one.manifest.num_nodes:,}"),
        ("directed edges", lambda one: f"{one.manifest.num_edges:,}"),
        ("features", lambda one: f"{one.manifest.num_features:,} {one.manifest.features.kind}"),
        ("classes", lambda one: f"{one.manifest.num_classes:,} ({one.manifest.task})"),
        ("parts", lambda one: str(len(one.manifest.parts))),
        ("trainers per host", lambda one: str(one.manifest.num_trainers_per_host)),
        ("assignment", lambda one: one.report.method),
        ("edge cut", _cut),
        ("halo nodes", lambda one: f"{one.report.halo_nodes:,}"),
        *(
            (f"largest part / mean part, {name.replace('_', ' ')}", _largest(name))
            for name in ("nodes", "edges", "train_nodes")
        ),
        ("remote rows expected in a batch", lambda one: f"{one.report.remote_rows:,.0f}"),
        ("size", lambda one: human_bytes(sum(part.bytes for part in one.manifest.parts))),
    ]
    rows = [[name, *(value(one) for one in partitions)] for name, value in facts]
    return Figure("Parts", Table(["", *(one.name for one in partitions)], rows))


def _largest(name: str) -> Callable[[Partition], str]:
    return lambda one: f"{one.report.balance[name]:.3f}"


def _cut(one: Partition) -> str:
    report = one.report
    return f"{report.edge_cut:,} directed edges ({report.edge_cut_percent:.2f} %)"


def _numbers(one: Partition) -> list[str]:
    return [str(number) for number in range(len(one.manifest.parts))]


def _balance(one: Partition) -> Figure:
    counts = {
        "nodes": [part.num_nodes for part in one.manifest.parts],
        "edges": [part.num_edges for part in one.manifest.parts],
        "train nodes": [part.train_nodes for part in one.manifest.parts],
        "val nodes": [part.val_nodes for part in one.manifest.parts],
        "test nodes": [part.test_nodes for part in one.manifest.parts],
    }
    sizes = [part.bytes for part in one.manifest.parts]
    return balance(counts, sizes, "percent of the mean part")


def _nodes(one: Partition) -> Figure | None:
    parts = one.manifest.parts
    figure = stack(
        "Own nodes and halo",
        "part",
        _numbers(one),
        {
            "own": [part.num_nodes for part in parts],
            "halo": [part.halo_nodes for part in parts],
        },
        "",
        _count,
    )
    note = "halo: nodes of other parts that a part's edges reach, read in every evaluation"
    return figure and replace(figure, note=note)


def _edges(one: Partition) -> Figure | None:
    parts = one.manifest.parts
    figure = stack(
        "Inner edges and cut edges",
        "part",
        _numbers(one),
        {
            "inner": [part.num_edges - part.cut_edges for part in parts],
            "cut": [part.cut_edges for part in parts],
        },
        "",
        _count,
    )
    return figure and replace(figure, note=f"in-edges of a part's nodes; edge cut {_cut(one)}")


def _remote_rows(one: Partition) -> Figure | None:
    rows = {"rows": one.rows_left[:, 0].tolist()}
    figure = stack("Remote rows of a batch", "part", _numbers(one), rows, "", _count)
    note = "feature rows of other parts that a batch is expected to need, without a cache"
    return figure and replace(figure, note=note)


def _cache(one: Partition) -> Figure | None:
    if len(one.manifest.parts) < 2:
        return None
    ratios = [f"{ratio:.2f}" for ratio in _RATIOS]
    series = [(f"part {number}", rows.tolist()) for number, rows in enumerate(one.rows_left)]
    if len(series) > 8:  # more lines than colours
        series = [
            ("least", one.rows_left.min(0).tolist()),
            ("mean", one.rows_left.mean(0).tolist()),
            ("most", one.rows_left.max(0).tolist()),
        ]
    return Figure(
        "Remote rows of a batch by cache ratio",
        Table(
            ["cache ratio", *(name for name, _ in series)],
            [
                [ratio, *(_count(values[row]) for _, values in series)]
                for row, ratio in enumerate(ratios)
            ],
        ),
        {
            "xAxis": {"type": "category", "name": "cache ratio", "data": ratios},
            "yAxis": {"type": "value"},
            "series": [
                {"type": "line", "name": name, "data": values, "showSymbol": True}
                for name, values in series
            ],
        },
        note="what is left to fetch; the knee of the curve is a good --cache-ratio",
    )


def _attempts(one: Partition) -> Figure | None:
    attempts = one.report.attempts
    if not attempts:
        return None
    seeds = [str(attempt.seed) for attempt in attempts]
    rows = [attempt.remote_rows for attempt in attempts]
    return Figure(
        "Remote rows of a batch by attempt",
        Table(
            ["seed", "remote rows", "edge cut"],
            [
                [str(each.seed), _count(each.remote_rows), _count(each.edge_cut)]
                for each in attempts
            ],
        ),
        {
            "xAxis": {"type": "category", "name": "seed", "data": seeds},
            "yAxis": {"type": "value"},
            "series": [{"type": "bar", "name": "rows", "data": rows}],
        },
        note="the attempt with the fewest is kept",
    )


def _configuration(partitions: Sequence[Partition]) -> Figure:
    # What columns became is long, and no option; attempts have a figure.
    given = [
        {
            name: value
            for name, value in one.manifest.configuration.items()
            if name not in ("encoding", "attempts", "method_reason")
        }
        for one in partitions
    ]
    return options([one.name for one in partitions], given, "directories")


def _count(value: float) -> str:
    return f"{value:,.0f}"
