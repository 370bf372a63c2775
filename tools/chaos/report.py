"""What rounds came to: a table for people, JSON for programs."""

import dataclasses
import datetime
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distsage.files import atomic_file
from distsage.kernels.level import processor_name

from .rounds import Outcome
from .run import CHECKPOINT_SECONDS


def machine() -> str:
    """Describe the machine and the day."""
    return f"{os.cpu_count()} cores of an {processor_name()}, {datetime.date.today()}"


def line(outcome: Outcome) -> str:
    """One round in one line, with its problems below it."""
    plan = outcome.plan
    text = (
        f"round {plan.number:>3}  {plan.fault:<20} {outcome.moment or plan.moment.value:<10}  "
        f"{outcome.way:<8} {_seconds(outcome.ended_seconds)}  "
        f"lost {_seconds(outcome.lost_seconds)}  {outcome.struck}"
    )
    return "\n".join([text, *(f"    {problem}" for problem in outcome.problems)])


def table(outcomes: Sequence[Outcome]) -> str:
    """All rounds, by kind of fault, in Markdown."""
    lines = [
        "| fault | rounds | at start-up, training, checkpoint | what became of the job "
        "| it took, seconds | work lost, seconds | runs lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted({outcome.plan.fault for outcome in outcomes}):
        of_kind = [outcome for outcome in outcomes if outcome.plan.fault == name]
        moments = [
            str(sum(outcome.moment == moment for outcome in of_kind))
            for moment in ("start-up", "training", "checkpoint")
        ]
        ways = sorted({outcome.way for outcome in of_kind if outcome.way})
        lines.append(
            f"| {name} | {len(of_kind)} | {', '.join(moments)} | {', '.join(ways)} "
            f"| {_spread([outcome.ended_seconds for outcome in of_kind])} "
            f"| {_spread([outcome.lost_seconds for outcome in of_kind])} "
            f"| {sum(outcome.lost for outcome in of_kind)} |"
        )
    lost = [outcome.lost_seconds for outcome in outcomes]
    return "\n".join(
        [
            *lines,
            "",
            f"{len(outcomes)} rounds, {len(lines) - 2} kinds of faults; a checkpoint every "
            f"{CHECKPOINT_SECONDS:.0f} s; work lost by a fault {_spread(lost)} s (median, most); "
            f"runs lost: {sum(outcome.lost for outcome in outcomes)}; "
            f"rounds with problems: {sum(bool(outcome.problems) for outcome in outcomes)}",
        ]
    )


def write(path: Path, outcomes: Sequence[Outcome], seed: int) -> None:
    """Write the record of all rounds."""
    record: dict[str, Any] = {
        "machine": machine(),
        "seed": seed,
        "checkpoint_seconds": CHECKPOINT_SECONDS,
        "rounds": [
            {**dataclasses.asdict(outcome.plan), **dataclasses.asdict(outcome)}
            for outcome in outcomes
        ],
    }
    for one in record["rounds"]:
        del one["plan"]
        one["moment"] = one["moment"] if isinstance(one["moment"], str) else ""
    with atomic_file(path, "w") as stream:
        json.dump(record, stream, indent=1)
        stream.write("\n")


def _seconds(value: float | None) -> str:
    return f"{'–':>6}" if value is None else f"{value:>6.1f}"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.1f}, {max(known):.1f}" if known else "–"
