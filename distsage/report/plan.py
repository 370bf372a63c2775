"""A plan as text, as JSON and as a page. Runs on the login host."""

import json
from dataclasses import replace
from pathlib import Path

from distsage.files import atomic_file, explain_write_errors
from distsage.limits import human_bytes
from distsage.plan.estimate import LIMITS
from distsage.plan.run import HostsPlan, Plan
from distsage.report.figures import Figure, Section, Table, heat_map, seconds, stack
from distsage.report.html import write_page
from distsage.report.text import align


def write_plan(plan: Plan, *, json_file: Path | None, page: Path | None) -> None:
    """Write a plan to the files that are asked for; each appears whole or not at all.

    Raises:
        UserError: one cannot be written.
    """
    if json_file is not None:
        with explain_write_errors(json_file, "--json"), atomic_file(json_file, "w") as stream:
            json.dump(plan.to_json(), stream, indent=1)
            stream.write("\n")
    if page is not None:
        write_page([f"plan for {plan.graph['name']}"], plan_sections(plan), page)


def plan_text(plan: Plan) -> str:
    """For the terminal: a table of the numbers of hosts, the recommendation, what would change."""
    graph = plan.graph
    lines = [
        f"{graph['name']}: {graph['nodes']:,} nodes, {graph['edges']:,} edges, "
        f"{graph['features']:,} features, {graph['parts']} parts",
        f"seconds {plan.machine.source}; a host has {plan.cores:g} cores, " + _network(plan),
        "",
        align([_HEAD, *(_row(each) for each in plan.hosts)]),
        "",
        *(_sample(each) for each in plan.hosts),
    ]
    for section in plan_sections(plan):
        if section.title in ("Memory", "Traffic", "Cache"):
            for figure in section.figures:
                rows = [list(figure.table.head), *map(list, figure.table.rows)]
                lines += ["", figure.title, align(rows)]
    lines += ["", _recommendation(plan)]
    if plan.bound:
        lines.append(plan.bound)
    if plan.request is not None:
        lines += ["", f"  {plan.request}"]
    if plan.changes:
        lines += ["", align([_CHANGES, *_change_rows(plan)])]
    return "\n".join(lines)


_HEAD = [
    "hosts", "memory a host", "fits", "received an epoch", "an epoch", "band", "limited by",
    "evaluation", "run", "core-hours",
]  # fmt: skip
_CHANGES = ["what would change", "an epoch", "received", "memory"]


def _row(each: HostsPlan) -> list[str]:
    took = each.seconds
    return [
        str(each.num_hosts),
        human_bytes(each.wanted),
        {None: "?", True: "yes", False: "no"}[each.fits],
        human_bytes(round(each.received)),
        seconds(took.epoch),
        f"{took.low:.3g}-{took.high:.3g} s",
        LIMITS[took.limit] if each.fits is not False else "memory",
        seconds(took.evaluation),
        seconds(each.run_seconds),
        f"{each.core_hours:.3g}",
    ]


def _sample(each: HostsPlan) -> str:
    return (
        f"{each.num_hosts} hosts: {each.sampled} of {each.steps} batches of each trainer sampled, "
        f"error {100 * each.error:.1f} %; {each.topology_note}"
    )


def _network(plan: Plan) -> str:
    if plan.network is None:
        return "the network is taken as unlimited"
    return f"its network carries {8 * plan.network / 1e9:g} Gbit/s each way"


def _recommendation(plan: Plan) -> str:
    if plan.recommended is None:
        return plan.why
    hosts = "host" if plan.recommended == 1 else "hosts"
    return f"recommended: {plan.recommended} {hosts}: {plan.why}"


def _change_rows(plan: Plan) -> list[list[str]]:
    def percent(factor: float) -> str:
        return f"{100 * (factor - 1):+.0f} %"

    return [
        [each.option, percent(each.epoch), percent(each.received), percent(each.memory)]
        for each in plan.changes
    ]


def plan_sections(plan: Plan) -> list[Section]:
    """All that a page about a plan shows."""
    summary = [Figure("Numbers of hosts", Table(_HEAD, [_row(each) for each in plan.hosts]))]
    facts = [
        ["recommended", _recommendation(plan)],
        ["request", plan.request or "none"],
        *([["more hosts", plan.bound]] if plan.bound else []),
        ["figures", plan.machine.source],
        ["network", _network(plan)],
        ["checkpoint", human_bytes(plan.checkpoint_bytes)],
        *(["sample", _sample(each)] for each in plan.hosts),
    ]
    summary.append(Figure("Recommendation", Table(["", ""], facts)))
    if plan.changes:
        summary.append(Figure("What would change the answer", Table(_CHANGES, _change_rows(plan))))
    found = [
        Section("Summary", summary),
        Section("Memory", [_memory(each, plan.mem) for each in plan.hosts]),
        Section("Time", [_limits(plan)]),
        Section("Traffic", [_traffic(each) for each in plan.hosts if each.num_hosts > 1]),
        Section("Cache", [_curve(plan)] if plan.hosts[-1].num_hosts > 1 else []),
        Section("Batches", [_batches(plan)]),
        Section("Options", [_options(plan)]),
    ]
    return [section for section in found if section.figures]


def _memory(each: HostsPlan, mem: int | None) -> Figure:
    hosts = [f"host {number}" for number in range(each.num_hosts)]
    parts = {
        **{name: [host.shared[name] for host in each.memory] for name in each.memory[0].shared},
        **{name: [host.own[name] for host in each.memory] for name in each.memory[0].own},
        "loading, beyond": [max(host.loading - sum(host.own.values()), 0) for host in each.memory],
        "topology (pages of files)": [host.files for host in each.memory],
    }
    against = "" if mem is None else f", against {human_bytes(mem)}"
    figure = stack(
        f"Memory of a host, of {each.num_hosts}",
        "host",
        hosts,
        parts,
        "bytes",
        lambda value: human_bytes(round(value)),
    )
    assert figure is not None
    return replace(figure, note="at the peak; rows, labels and cache are in /dev/shm" + against)


def _limits(plan: Plan) -> Figure:
    names = [f"{each.num_hosts} hosts" for each in plan.hosts]
    return Figure(
        "Seconds an epoch of each limit, were it alone",
        Table(
            ["", *LIMITS.values()],
            [
                [name, *(seconds(each.seconds.limits[limit]) for limit in LIMITS)]
                for name, each in zip(names, plan.hosts, strict=True)
            ],
        ),
        {
            "xAxis": {"type": "category", "data": names},
            "yAxis": {"type": "value"},
            "series": [
                {
                    "type": "bar",
                    "name": words,
                    "data": [each.seconds.limits[name] for each in plan.hosts],
                }
                for name, words in LIMITS.items()
            ],
        },
        "s",
        "they work at the same time; the longest limits",
    )


def _traffic(each: HostsPlan) -> Figure:
    hosts = [f"host {number}" for number in range(each.num_hosts)]
    return heat_map(
        (f"Bytes received an epoch, {each.num_hosts} hosts", "receives", "from"),
        hosts,
        each.traffic,
        "bytes",
        lambda value: human_bytes(round(value)),
        "feature rows, and picks where the topology is partitioned; gradients are not in it",
    )


def _curve(plan: Plan) -> Figure:
    several = [each for each in plan.hosts if each.num_hosts > 1]
    ratios = [ratio for ratio, _ in several[0].curve]
    knees = ", ".join(f"{each.knee:g} with {each.num_hosts} hosts" for each in several)
    return Figure(
        "Bytes an epoch by cache ratio",
        Table(
            ["cache ratio", *(f"{each.num_hosts} hosts" for each in several)],
            [
                [f"{ratio:g}", *(human_bytes(round(each.curve[row][1])) for each in several)]
                for row, ratio in enumerate(ratios)
            ],
        ),
        {
            "xAxis": {"type": "category", "name": "cache ratio", "data": ratios},
            "yAxis": {"type": "value"},
            "series": [
                {
                    "type": "line",
                    "name": f"{each.num_hosts} hosts",
                    "data": [count for _, count in each.curve],
                }
                for each in several
            ],
        },
        "bytes",
        f"knee at {knees}",
    )


def _batches(plan: Plan) -> Figure:
    names = list(plan.hosts[0].batch)
    rows = [
        [
            name,
            *(
                human_bytes(round(each.batch[name]))
                if "bytes" in name
                else f"{each.batch[name]:,.0f}"
                for each in plan.hosts
            ),
        ]
        for name in names
    ]
    return Figure("A mean batch", Table(["", *(f"{e.num_hosts} hosts" for e in plan.hosts)], rows))


def _options(plan: Plan) -> Figure:
    rows = [[name.replace("_", "-"), str(value)] for name, value in plan.options.items()]
    return Figure("Options that are not the defaults", Table(["option", "value"], rows))
