"""A plan beside what a run then took. Runs on the login host."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distsage.errors import UserError
from distsage.files import read_json
from distsage.limits import human_bytes
from distsage.plan.run import SCHEMA
from distsage.report.figures import Figure, Table, seconds
from distsage.train.records import Run

PLAN = "plan.json"
"""Beside a run's records, where people have put it."""


def plan_figures(runs: Sequence[Run]) -> list[Figure]:
    """A table for each run whose directory holds a plan.

    Raises:
        UserError: a plan cannot be read.
    """
    found = [(run, run.path / PLAN) for run in runs]
    return [_figure(run, path, many=len(runs) > 1) for run, path in found if path.exists()]


def _figure(run: Run, path: Path, *, many: bool) -> Figure:
    try:
        planned = _of_hosts(read_json(path), max(len(run.hosts), 1))
        rows = _rows(run, planned)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} is no plan for {max(len(run.hosts), 1)} hosts as this distsage writes them; "
            "remove it, or write it anew with `distsage plan --json`"
        ) from error
    title = "Planned and taken"
    return Figure(
        f"{run.name}: {title}" if many else title,
        Table(["", "planned", "taken", "difference"], rows),
        note="epochs after the first; memory of the host that took most, without pages of files",
    )


def _of_hosts(value: dict[str, Any], num_hosts: int) -> dict[str, Any]:
    """What a plan says of a number of hosts."""
    if value["schema"] != SCHEMA:
        raise ValueError("another schema")
    (found,) = (each for each in value["hosts"] if each["num_hosts"] == num_hosts)
    assert isinstance(found, dict)
    return found


def _rows(run: Run, planned: dict[str, Any]) -> list[list[str]]:
    epochs = run.epochs[1:] or run.epochs
    took = planned["seconds"]
    rows = []

    def add(name: str, expected: float, taken: float, text: Any, band: str = "") -> None:
        difference = f"{100 * (taken / expected - 1):+.0f} %" if expected else ""
        rows.append([name, f"{text(expected)}{band}", text(taken), difference])

    if epochs:
        band = f" ({took['low']:.3g}-{took['high']:.3g} s)"
        median = statistics.median(epoch["seconds"] for epoch in epochs)
        add("seconds an epoch", took["epoch"], median, seconds, band)
        for name, count in (("edges", "edges"), ("rows from other hosts", "missed_rows")):
            each = planned["batch"]["edges" if count == "edges" else "from other hosts"]
            expected = each * planned["steps"] * planned["trainers"]
            mean = statistics.fmean(epoch[count]["total"] for epoch in epochs)
            add(f"{name}, an epoch", expected, mean, lambda value: f"{value:,.0f}")
    evaluated = [epoch["eval_seconds"] for epoch in run.epochs if "eval_seconds" in epoch]
    if evaluated:
        add("an evaluation", took["evaluation"], statistics.median(evaluated), seconds)
    records = [epoch["hosts"] for epoch in run.epochs if "hosts" in epoch]
    if records:
        kinds = ("trainer_bytes", "server_bytes", "shared_bytes")
        memory = max(sum(host[kind] for kind in kinds) for hosts in records for host in hosts)
        expected = max(
            sum(host["shared"].values()) + max(sum(host["own"].values()), host["loading"])
            for host in planned["memory"]
        )
        add("memory of a host", expected, memory, lambda value: human_bytes(round(value)))
    return rows
