"""What runs have recorded, read back. Runs anywhere; imports nothing heavy."""

import json
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distsage.errors import UserError
from distsage.files import read_json

SCHEMA = 1
"""The newest schema that this reader knows."""

SILENT_SECONDS = 120.0
"""A run that has not said for so long where it is has ended, or its host is lost."""

_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Run:
    """One run directory, as it was when it was read.

    Attributes:
        path: of the directory.
        config: every option, as resolved.
        about: run.json; empty for a run of before schema 1.
        epochs: a record per epoch.
        events: what happened, in order.
        progress: where it was last; empty if its last job never said.
        summary: the result; empty unless the run is finished.
        failure: what failure.txt says; None without it, or if it is of a job before the last one.
        read_at: when it was read, seconds since 1970.
    """

    path: Path
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    epochs: list[dict[str, Any]]
    events: list[dict[str, Any]]
    progress: Mapping[str, Any]
    summary: Mapping[str, Any]
    failure: str | None
    read_at: float = field(compare=False)

    @property
    def name(self) -> str:
        """For people."""
        return self.path.name or str(self.path)

    @property
    def hosts(self) -> list[str]:
        """Names of the hosts, those of records as far as they are known."""
        return list(self.about.get("hosts", []))

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The events with which each job of the run began or went on."""
        return [event for event in self.events if event["event"] in ("began", "resumed")]

    @property
    def state(self) -> tuple[str, str]:
        """running, finished, stopped, failed or silent; and a sentence that says why."""
        if self.summary:
            return "finished", f"all {self.summary.get('epochs', len(self.epochs))} epochs"
        turns = [event for event in self.events if event["event"] != "checkpoint"]
        last = turns[-1] if turns else {"event": None}
        if last["event"] == "failed":
            return "failed", str(last.get("why"))
        if last["event"] == "stopped":
            return "stopped", f"with a checkpoint, because {last.get('why')}"
        if self.failure is not None:
            return "failed", self.failure
        heard = max(
            float(self.progress.get("time", 0)), *(float(e["time"]) for e in self.events), 0.0
        )
        if not heard:
            return "unknown", "it was written before runs recorded what happens to them"
        silent = self.read_at - heard
        if silent > SILENT_SECONDS:
            doing = self.progress.get("doing")
            at = f", when it was {doing}" if doing else ""
            return "silent", (
                f"no word for {silent:.0f} s{at}; its job was killed, its host is lost, or its "
                "file system does not answer"
            )
        return "running", str(self.progress.get("doing", "coming up"))

    def score(self, mask: str) -> float | None:
        """The last score of val or test: the best epoch's once the run is finished."""
        for record in (self.summary, *reversed(self.epochs)):
            if record.get(mask):
                return float(next(reversed(record[mask].values())))
        return None


def read_run(path: Path | str) -> Run:
    """Read a run directory, of a run that is over or that still runs.

    Raises:
        UserError: it is none, is damaged, or was written by a newer distsage.
    """
    path = Path(path)
    config_file = path / "config.yaml"
    if not config_file.is_file():
        raise UserError(f"{path} is no run directory: it has no config.yaml")
    try:
        config = yaml.safe_load(_read(config_file))
    except yaml.YAMLError as error:
        raise UserError(f"{config_file} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{config_file} is damaged: it holds no options")
    about = _optional(path / "run.json")
    schema = about.get("schema", 0)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(
            f"{path} was written by a newer distsage (schema {schema}; this one reads up to "
            f"{SCHEMA}); read it with that one"
        )
    failure = path / "failure.txt"
    events = _lines(path / "events.jsonl", ("time", "event"))
    progress = _optional(path / "progress.json")
    started = max((e["time"] for e in events if e["event"] in ("began", "resumed")), default=0)
    if progress.get("time", 0) < started:
        progress = {}  # an earlier job's
    failed = failure.exists() and failure.stat().st_mtime >= started
    return Run(
        path=path,
        config=config,
        about=about,
        epochs=read_epochs(path),
        events=events,
        progress=progress,
        summary=_optional(path / "summary.json"),
        failure=_read(failure).strip() if failed else None,
        read_at=time.time(),
    )


def read_epochs(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's epochs.

    Raises:
        UserError: they are damaged.
    """
    return _lines(run_dir / "epochs.jsonl", ("epoch", "loss", "seconds"))


def find_runs(directory: Path) -> list[Run]:
    """The runs in a directory and one level below, the oldest first.

    Raises:
        UserError: there is no such directory, or a run in it cannot be read.
    """
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}; name one that holds run directories")
    found = {
        file.parent for depth in ("*", "*/*") for file in directory.glob(f"{depth}/config.yaml")
    }
    runs = [read_run(path) for path in sorted(found)]
    return sorted(runs, key=lambda run: float(run.about.get("started", 0)))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _lines(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; a last line that is not whole is being written."""
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    *lines, _ = _read(path).split("\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            missing = [name for name in needed if name not in record]
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged in line {number} ({error})") from error
        if missing or not isinstance(record, dict):
            raise UserError(f"{path} is damaged in line {number} (it has no {', '.join(missing)})")
        records.append(record)
    return records


def _read(path: Path) -> str:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_BYTES:
            raise UserError(f"{path} is no file of ours: no regular file, or too long")
        return path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
