"""What a page shows: figures, each with its table; and those about runs. Runs on the login host.

A figure holds an option of ECharts as plain data; page/page.js draws it and adds units, colours and
keys. The same numbers stand in the figure's table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from distsage.limits import human_bytes
from distsage.train.records import Run

PHASES = {
    "wait_seconds": "waiting for batches",
    "forward_seconds": "forward",
    "backward_seconds": "backward",
    "all_reduce_seconds": "adding up gradients",
    "optimizer_seconds": "optimiser",
}
_ROWS = {
    "local_rows": "own part",
    "cached_rows": "cache",
    "missed_rows": "fetched from other hosts",
}


@dataclass(frozen=True)
class Table:
    """Cells for people, the first of each row its heading."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A picture and its table.

    Attributes:
        title: says what is seen.
        table: the same numbers.
        option: of ECharts; None for a table alone.
        unit: of the values: "", "s", "bytes", "%" or "time".
        note: how to read it.
        height: in pixels.
    """

    title: str
    table: Table
    option: Mapping[str, Any] | None = None
    unit: str = ""
    note: str = ""
    height: int = 300


@dataclass(frozen=True)
class Section:
    """Figures under one heading; those of several runs stand side by side."""

    title: str
    figures: list[Figure] = field(default_factory=list)


def sections(runs: Sequence[Run]) -> list[Section]:
    """All that a page about these runs shows, without what they have no records of."""
    many = len(runs) > 1
    found = [
        Section("Summary", [_summary(runs)]),
        Section("Learning", [figure for figure in (_losses(runs), _scores(runs)) if figure]),
    ]
    for title, makers in (
        ("Where the time went", (_epoch_times, _phases)),
        ("Who waited for whom", (_step_waits, _fetch_waits)),
        ("Traffic between hosts", (_traffic,)),
        ("Cache", (_rows,)),
        ("Memory and processors", (_memory, _processors, _energy)),
        ("Parts", (_parts,)),
        ("What happened", (_events,)),
    ):
        figures = []
        for make in makers:
            for run in runs:
                figure = make(run)
                if figure is not None:
                    name = f"{run.name}: {figure.title}" if many else figure.title
                    figures.append(Figure(**{**vars(figure), "title": name}))
        found.append(Section(title, figures))
    names, given = [run.name for run in runs], [run.config for run in runs]
    found.append(Section("Configuration", [options(names, given, "runs")]))
    return [section for section in found if section.figures]


def host_names(run: Run) -> list[str]:
    """The names of a run's hosts; numbered where several are alike, as emulated hosts may be."""
    known = run.hosts or [
        f"host {number}" for number in range(len(_last_hosts(run)) or _num_trainers(run))
    ]
    if len(set(known)) == len(known):
        return known
    return [f"{name} {number}" for number, name in enumerate(known)]


def seconds(value: float) -> str:
    """Seconds for people."""
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"


def moment(time: float) -> str:
    """Seconds since 1970 as local time."""
    return datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M:%S")


def differing_options(given: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the options that all have, but not with one value; without the directory's."""
    return [
        name
        for name in (given[0] if given else ())
        if name != "run_dir"
        and all(name in one for one in given)
        and len({str(one[name]) for one in given}) > 1
    ]


def _summary(runs: Sequence[Run]) -> Figure:
    facts: list[tuple[str, Callable[[Run], str]]] = [
        ("state", lambda run: ": ".join(run.state)),
        ("command", lambda run: str(run.about.get("command", "?"))),
        ("graph", lambda run: str(run.about.get("graph", {}).get("name", "?"))),
        ("hosts", lambda run: str(len(run.hosts) or run.summary.get("hosts", "?"))),
        ("trainers", lambda run: str(_num_trainers(run))),
        ("epochs", lambda run: f"{len(run.epochs)} of {run.config.get('num_epochs', '?')}"),
        ("last loss", lambda run: f"{run.epochs[-1]['loss']:.4f}" if run.epochs else ""),
        ("validation", lambda run: _score(run, "val")),
        ("test", lambda run: _score(run, "test")),
        ("seconds an epoch, median", lambda run: _median([e["seconds"] for e in run.epochs])),
        ("edge cut", _cut),
        ("processor", lambda run: str(_environment(run).get("processor", "?"))),
        ("kernels", lambda run: str(_environment(run).get("kernels", "?"))),
        ("started", lambda run: moment(run.about["started"]) if "started" in run.about else "?"),
    ]
    rows = [[name, *(value(run) for run in runs)] for name, value in facts]
    return Figure("Runs", Table(["", *(run.name for run in runs)], rows))


def _losses(runs: Sequence[Run]) -> Figure | None:
    series = [(run.name, {e["epoch"] + 1: e["loss"] for e in run.epochs}) for run in runs]
    return _curves("Loss", series, "mean over all seed nodes of an epoch")


def _scores(runs: Sequence[Run]) -> Figure | None:
    series = []
    for run in runs:
        for mask, name in (("val", "validation"), ("test", "test")):
            points = {
                epoch["epoch"] + 1: next(reversed(epoch[mask].values()))
                for epoch in run.epochs
                if epoch.get(mask)
            }
            series.append((f"{run.name} {name}" if len(runs) > 1 else name, points))
    return _curves("Scores", series, "over all nodes of the mask, from whole neighbourhoods")


def _curves(title: str, series: list[tuple[str, dict[int, float]]], note: str) -> Figure | None:
    epochs = sorted({epoch for _, points in series for epoch in points})
    if not epochs:
        return None
    return Figure(
        title,
        Table(
            ["epoch", *(name for name, _ in series)],
            [[str(e), *(f"{p[e]:.4f}" if e in p else "" for _, p in series)] for e in epochs],
        ),
        {
            "xAxis": {"type": "category", "name": "epoch", "data": epochs},
            "yAxis": {"type": "value", "scale": True},
            "series": [
                {
                    "type": "line",
                    "name": name,
                    "data": [points.get(epoch) for epoch in epochs],
                    "connectNulls": True,
                    "showSymbol": len(epochs) < 60,
                }
                for name, points in series
            ],
        },
        note=note,
    )


def _epoch_times(run: Run) -> Figure | None:
    if not run.epochs:
        return None
    epochs = [epoch["epoch"] + 1 for epoch in run.epochs]
    parts = {
        "steps": [epoch["seconds"] for epoch in run.epochs],
        "evaluation": [epoch.get("eval_seconds", 0.0) for epoch in run.epochs],
    }
    return stack("Seconds of each epoch", "epoch", list(map(str, epochs)), parts, "s", seconds)


def _phases(run: Run) -> Figure | None:
    """Of the trainers' own time: what workers do meanwhile is not in it."""
    hosts = host_names(run)
    parts = {
        name: _per_host(run, counter, len(hosts))
        for counter, name in PHASES.items()
        if any(counter in epoch for epoch in run.epochs)
    }
    figure = stack("Seconds by host and phase", "host", hosts, parts, "s", seconds)
    return figure and Figure(
        **{**vars(figure), "note": "all epochs; the trainers of a host added up"}
    )


def _step_waits(run: Run) -> Figure | None:
    return _matrix(
        run,
        "step_wait_seconds_for",
        ("Waiting for trainers", "waits", "for"),
        "s",
        seconds,
        "seconds that a host's trainers waited for the one that came last to the sum of gradients",
    )


def _fetch_waits(run: Run) -> Figure | None:
    return _matrix(
        run,
        "fetch_wait_seconds_for",
        ("Waiting for servers", "waits", "for"),
        "s",
        seconds,
        "seconds that a host's workers waited for rows; each wait is the last answering host's",
    )


def _traffic(run: Run) -> Figure | None:
    return _matrix(
        run,
        "received_bytes_from",
        ("Bytes received", "receives", "from"),
        "bytes",
        lambda value: human_bytes(int(value)),
        "rows, labels and picks from servers, halo rows from trainers; gradients are not in it",
    )


def _rows(run: Run) -> Figure | None:
    hosts = host_names(run)
    parts = {
        name: _per_host(run, counter, len(hosts))
        for counter, name in _ROWS.items()
        if any(counter in epoch for epoch in run.epochs)
    }
    return stack(
        "Where feature rows came from", "host", hosts, parts, "", lambda value: f"{value:,.0f}"
    )


def _memory(run: Run) -> Figure | None:
    names = {
        "trainer_bytes": "trainers",
        "server_bytes": "servers",
        "shared_bytes": "/dev/shm",
    }
    records = [epoch["hosts"] for epoch in run.epochs if "hosts" in epoch]
    hosts = host_names(run)
    parts = {
        name: [max(record[host][key] for record in records) for host in range(len(hosts))]
        for key, name in names.items()
        if records
    }
    return stack(
        "Memory by host, at most", "host", hosts, parts, "bytes", lambda v: human_bytes(int(v))
    )


def _processors(run: Run) -> Figure | None:
    names = {"trainer_cpu_seconds": "trainers", "server_cpu_seconds": "servers"}
    records = [epoch["hosts"] for epoch in run.epochs if "hosts" in epoch]
    hosts = host_names(run)
    parts = {
        name: [sum(record[host][key] for record in records) for host in range(len(hosts))]
        for key, name in names.items()
        if records
    }
    return stack("CPU-seconds by host", "host", hosts, parts, "s", seconds)


def _energy(run: Run) -> Figure | None:
    hosts = host_names(run)
    joules = [
        [host.get("energy_joules") for host in epoch.get("hosts", ())] for epoch in run.epochs
    ]
    parts = {
        name: [of_epoch[at] for of_epoch in joules]
        for at, name in enumerate(hosts)
        if all(len(of_epoch) > at and of_epoch[at] is not None for of_epoch in joules)
    }
    epochs = [str(epoch["epoch"] + 1) for epoch in run.epochs]
    figure = stack("Joules by epoch", "epoch", epochs, parts, "", lambda value: f"{value:,.0f}")
    note = "of the hosts' processors and memory, as the kernel counts them"
    return figure and replace(figure, note=note)


def _parts(run: Run) -> Figure | None:
    report = run.about.get("partition")
    if not report:
        return None
    parts = report["parts"]
    counts = {
        name.replace("_", " "): [part[name] for part in parts]
        for name in ("nodes", "edges", "halo_nodes", "cut_edges", "train_nodes")
    }
    note = f"percent of the mean part; the edge cut is {_cut(run)}"
    return balance(counts, [part["bytes"] for part in parts], note)


def balance(counts: Mapping[str, Sequence[int]], sizes: Sequence[int], note: str) -> Figure:
    """How even parts are.

    Args:
        counts: of each part, by what is counted.
        sizes: of each part, in bytes.
        note: as a figure's.
    """
    shares = {
        name: [100 * count * len(sizes) / max(sum(values), 1) for count in values]
        for name, values in counts.items()
    }
    return Figure(
        "Balance of the parts",
        Table(
            ["part", *counts, "size"],
            [
                [str(part), *(f"{values[part]:,}" for values in counts.values()), human_bytes(size)]
                for part, size in enumerate(sizes)
            ],
        ),
        {
            "xAxis": {"type": "category", "name": "part", "data": list(range(len(sizes)))},
            "yAxis": {"type": "value"},
            "series": [
                {"type": "bar", "name": name, "data": values} for name, values in shares.items()
            ],
        },
        "%",
        note,
    )


def _events(run: Run) -> Figure | None:
    if not run.events:
        return None
    kinds = list(dict.fromkeys(event["event"] for event in run.events))
    facts = [
        ", ".join(
            f"{name} {value}" for name, value in event.items() if name not in ("time", "event")
        )
        for event in run.events
    ]
    return Figure(
        "Events",
        Table(
            ["when", "what", ""],
            [
                [moment(event["time"]), event["event"], fact]
                for event, fact in zip(run.events, facts, strict=True)
            ],
        ),
        {
            "xAxis": {"type": "time"},
            "yAxis": {"type": "category", "data": kinds},
            "series": [
                {
                    "type": "scatter",
                    "name": "event",
                    "symbolSize": 12,
                    "data": [
                        {"value": [1000 * event["time"], event["event"]], "name": fact}
                        for event, fact in zip(run.events, facts, strict=True)
                    ],
                }
            ],
        },
        "time",
        height=120 + 30 * len(kinds),
    )


def options(titles: Sequence[str], given: Sequence[Mapping[str, Any]], what: str) -> Figure:
    """A table of options, those that differ first.

    Args:
        titles: of the columns.
        given: the options of each.
        what: they are options of, in the plural.
    """
    differing = set(differing_options(given))
    names = dict.fromkeys(name for one in given for name in one)
    rows = [
        [
            f"{name.replace('_', '-')}{' *' if name in differing else ''}",
            *(str(one.get(name, "")) for one in given),
        ]
        for name in sorted(names, key=lambda name: name not in differing)
    ]
    note = f"* differs between the {what}" if len(given) > 1 else ""
    return Figure("Options", Table(["option", *titles], rows), note=note)


def stack(
    title: str,
    what: str,
    labels: list[str],
    parts: Mapping[str, Sequence[float]],
    unit: str,
    text: Callable[[float], str],
) -> Figure | None:
    """Stacked bars, one for each label; None if there is nothing to draw.

    Args:
        title: of the figure.
        what: the labels are.
        labels: of the bars.
        parts: of each bar, from below: their name and a value for each label.
        unit: as a figure's.
        text: a value for people.
    """
    if not parts or not labels:
        return None
    return Figure(
        title,
        Table(
            [what, *parts],
            [
                [label, *(text(values[row]) for values in parts.values())]
                for row, label in enumerate(labels)
            ],
        ),
        {
            "xAxis": {"type": "category", "name": what, "data": labels},
            "yAxis": {"type": "value"},
            "series": [
                {"type": "bar", "stack": "all", "name": name, "data": list(values)}
                for name, values in parts.items()
            ],
        },
        unit,
    )


def _matrix(
    run: Run,
    key: str,
    words: tuple[str, str, str],
    unit: str,
    text: Callable[[float], str],
    note: str,
) -> Figure | None:
    records = [epoch["hosts"] for epoch in run.epochs if "hosts" in epoch]
    hosts = host_names(run)
    if not records or len(hosts) < 2:
        return None
    many = range(len(hosts))
    sums = [
        [sum(record[row][key][column] for record in records) for column in many] for row in many
    ]
    return heat_map(words, hosts, sums, unit, text, note)


def heat_map(
    words: tuple[str, str, str],
    hosts: list[str],
    values: Sequence[Sequence[float]],
    unit: str,
    text: Callable[[float], str],
    note: str,
) -> Figure:
    """Values from host to host.

    Args:
        words: the title, what hosts do in rows, and what in columns.
        hosts: their names.
        values: `[row][column]`.
        unit: as a figure's.
        text: a value for people.
        note: as a figure's.
    """
    many = range(len(hosts))
    title, row_word, column_word = words
    return Figure(
        title,
        Table(
            [f"{row_word} \\ {column_word}", *hosts],
            [[hosts[row], *(text(values[row][column]) for column in many)] for row in many],
        ),
        {
            "xAxis": {"type": "category", "name": column_word, "data": hosts},
            "yAxis": {"type": "category", "name": row_word, "data": hosts, "inverse": True},
            "visualMap": {"max": max(max(max(row) for row in values), 1e-9)},
            "series": [
                {
                    "type": "heatmap",
                    "name": title,
                    "data": [[column, row, values[row][column]] for row in many for column in many],
                }
            ],
        },
        unit,
        note,
        height=160 + 44 * len(hosts),
    )


def _per_host(run: Run, counter: str, num_hosts: int) -> list[float]:
    """A counter of the trainers, over all epochs, added up host by host."""
    totals = [0.0] * num_hosts
    for epoch in run.epochs:
        values = epoch.get(counter, {}).get("per_trainer", [])
        for trainer, value in enumerate(values):
            totals[trainer * num_hosts // len(values)] += value
    return totals


def _last_hosts(run: Run) -> list[dict[str, Any]]:
    return next((epoch["hosts"] for epoch in reversed(run.epochs) if "hosts" in epoch), [])


def _num_trainers(run: Run) -> int:
    steps = run.epochs[-1].get("steps", {}) if run.epochs else {}
    return int(run.about.get("trainers", len(steps.get("per_trainer", [0]))))


def _environment(run: Run) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.about.get("environment", run.summary)
    return found


def _score(run: Run, mask: str) -> str:
    score = run.score(mask)
    return "" if score is None else f"{score:.4f}"


def _median(values: list[float]) -> str:
    return seconds(sorted(values)[len(values) // 2]) if values else ""


def _cut(run: Run) -> str:
    report = run.about.get("partition")
    if not report:
        return "none: one piece" if run.about else "?"
    share = 100 * report["edge_cut"] / max(report["edges"], 1)
    return f"{report['edge_cut']:,} of {report['edges']:,} directed edges ({share:.1f} %)"
