"""What a run was expected to take beside what it then took. Runs on the login host."""

import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from distsage.config import TrainConfig
from distsage.errors import UserError
from distsage.files import read_json
from distsage.limits import human_bytes
from distsage.partitioning.kept_plans import Expectation, decides
from distsage.plan.run import expectations
from distsage.report.figures import Figure, Table, seconds
from distsage.train.records import Run

PLAN = "plan.json"
"""Beside a run's records, where people have put it; it goes before what the run has noted."""

_MEMORY = ("trainer_bytes", "server_bytes", "shared_bytes")


def plan_figures(runs: Sequence[Run]) -> list[Figure]:
    """A table for each run of `distsage train`, and for others that people have put a plan to.

    Raises:
        UserError: a plan cannot be read.
    """
    of_train = [
        run for run in runs if run.about.get("command") == "train" or (run.path / PLAN).exists()
    ]
    return [_figure(run, many=len(runs) > 1) for run in of_train]


def _figure(run: Run, *, many: bool) -> Figure:
    expected = _expectation(run)
    note = "epochs after the first; memory of the host that took most, without pages of files"
    if expected is not None:
        note += f"; planned: {expected.by}"
    if expected is None or expected.epoch_seconds is None:
        note += f"; to plan the next one: {_command(run)}"
    title = "Planned and taken"
    return Figure(
        f"{run.name}: {title}" if many else title,
        Table(["", "planned", "taken", "difference"], _rows(run, expected)),
        note=note,
    )


def _expectation(run: Run) -> Expectation | None:
    """By the plan beside the run's records, or by these."""
    path, num_hosts = run.path / PLAN, max(len(run.hosts), 1)
    if path.exists():
        try:
            return expectations(read_json(path))[num_hosts]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is no plan for {num_hosts} hosts as this distsage writes them; remove it, "
                "or write it anew with `distsage plan --json`"
            ) from error
    noted = run.about.get("expected")
    try:
        return None if noted is None else Expectation.from_json(noted)
    except ValueError as error:
        raise UserError(f"{run.path / 'run.json'} is damaged: expected has {error}") from error


def _command(run: Run) -> str:
    """The command that plans for a run like this one."""
    place = "parts" if run.config.get("parts") else "conf_file"
    num_hosts = max(len(run.hosts), 1)
    given = {place: run.config.get(place), "hosts": num_hosts}
    pairs = int(run.about.get("trainers", num_hosts)) // num_hosts
    if pairs > 1:
        given["pairs_per_host"] = pairs
    for field in fields(TrainConfig):
        value = run.config.get(field.name, field.default)
        if decides(field.name) and value != field.default:
            given[field.name] = value
    words = ["python", "-m", "distsage", "plan"]
    for name, value in given.items():
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else [str(value)]
    return shlex.join(words)


def _rows(run: Run, expected: Expectation | None) -> list[list[str]]:
    planned: dict[str, Any] = {} if expected is None else asdict(expected)
    rows = []

    def add(
        what: str, foretold: float | None, taken: float, text: Callable[[float], str], band: str
    ) -> None:
        difference = f"{100 * (taken / foretold - 1):+.0f} %" if foretold else ""
        known = "" if foretold is None else f"{text(foretold)}{band}"
        rows.append([what, known, text(taken), difference])

    epochs = run.epochs[1:] or run.epochs
    if epochs:
        low, high = planned.get("epoch_seconds_low"), planned.get("epoch_seconds_high")
        band = "" if low is None or high is None else f" ({low:.3g}-{high:.3g} s)"
        median = statistics.median(epoch["seconds"] for epoch in epochs)
        add("seconds an epoch", planned.get("epoch_seconds"), median, seconds, band)
    for what, name in (("edges", "edges"), ("rows from other hosts", "missed_rows")):
        counts = [epoch[name]["total"] for epoch in epochs if name in epoch]
        if counts:
            mean = statistics.fmean(counts)
            add(f"{what}, an epoch", planned.get(name), mean, lambda value: f"{value:,.0f}", "")
    evaluated = [epoch["eval_seconds"] for epoch in run.epochs if "eval_seconds" in epoch]
    if evaluated:
        median = statistics.median(evaluated)
        add("an evaluation", planned.get("eval_seconds"), median, seconds, "")
    hosts = [host for epoch in run.epochs for host in epoch.get("hosts", ())]
    if hosts:
        most = max(sum(host[kind] for kind in _MEMORY) for host in hosts)
        foretold = None if expected is None else max(expected.memory_bytes)
        add("memory of a host", foretold, most, lambda value: human_bytes(round(value)), "")
    return rows
