"""The schema of records, as docs/run-directory.md has it, and what is not of it in a run."""

import re
from collections.abc import Iterator
from pathlib import Path

from distsage.train.records import Run

PAGE = Path(__file__).parents[3] / "docs" / "run-directory.md"
EVENTS = {
    "began": {"job", "requeues"},
    "resumed": {"job", "requeues", "source", "epoch", "step"},
    "checkpoint": {"epoch", "step", "seconds"},
    "rolled back": {"epoch", "step"},
    "stopped": {"why"},
    "failed": {"why"},
    "finished": set(),
}
# In every record of an epoch; the others depend on the command and on the epoch.
ALWAYS = {"epoch", "loss", "seconds", "steps", "edges", "hosts", "wait_seconds", "fetch_seconds"}
ALWAYS |= {"forward_seconds", "backward_seconds", "optimizer_seconds"}


def documented(after: str) -> set[str]:
    """The fields in the first table after these words of the page."""
    table = PAGE.read_text().partition(after)[2].partition("\n|---")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `([a-z_ ]+)` \|", table, re.MULTILINE))


def strangers(run: Run) -> Iterator[str]:
    """What the run's files lack, or have although no table names it."""

    def compare(
        what: str, found: set[str], table: str, optional: set[str] = frozenset()
    ) -> Iterator[str]:
        fields = documented(table)
        if found - fields or (fields - optional) - found:
            yield f"{what}: {sorted(found ^ fields)}"

    yield from compare("run.json", set(run.about), "\n`run.json`:\n", {"expected"})
    if run.about.get("expected") is not None:
        yield from compare("expected", set(run.about["expected"]), "`expected` of `run.json`:")
    all_of_epochs = documented("Each line of `epochs.jsonl`")
    for record in run.epochs:
        yield from compare(
            f"epoch {record['epoch']}",
            set(record),
            "Each line of `epochs.jsonl`",
            all_of_epochs - ALWAYS,
        )
        for host in record["hosts"]:
            yield from compare("a host", set(host), "Each record of a host", {"energy_joules"})
    yield from compare("progress.json", set(run.progress), "\n`progress.json`:\n")
    assert documented("Each line of `events.jsonl`") == set(EVENTS)
    for event in run.events:
        if set(event) - {"time", "event"} != EVENTS[event["event"]]:
            yield f"event {event}"
