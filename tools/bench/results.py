"""The figures: kept as they come, one line of JSON a run, and turned into medians and ratios."""

import datetime
import json
import os
import platform
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distsage.files import atomic_file
from distsage.kernels.level import Level, of_processor, processor_name

from .cluster import REPOSITORY
from .comparisons import ALL, BASELINE, FP32
from .runs import Run

Medians = dict[str, float]

_LEVELS = [None, *(str(each) for each in reversed(Level))]
"""Highest first. None: of before levels were recorded, and so of the processor's own level."""


class Measurement:
    """A comparison, measured at one level of kernels.

    Args:
        runs: all of them, as JSON has them.
    """

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self.level: str | None = runs[0]["level"]
        self.date: str = runs[0]["date"]
        self.machine: str = runs[0]["machine"]
        self.programs: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            self.programs.setdefault(run["program"], []).append(run)

    def medians(self, program: str) -> Medians:
        """Medians over all measured epochs of a program; memory is the largest.

        Keys: seconds, cpu and received per epoch; other_cores that other work took meanwhile;
        accuracy, evaluation_seconds, memory; and epochs, how many.
        """
        runs = self.programs[program]
        epochs = [epoch for run in runs for epoch in run["epochs"]]
        return {
            **{
                name: statistics.median(epoch[name] for epoch in epochs)
                for name in ("seconds", "cpu", "received")
            },
            "other_cores": statistics.median(e["foreign"] / e["seconds"] for e in epochs),
            "epochs": len(epochs),
            "accuracy": statistics.median(run["accuracy"] for run in runs),
            "evaluation_seconds": statistics.median(run["evaluation_seconds"] for run in runs),
            "memory": max(run["memory"] for run in runs),
        }


class Results:
    """All runs.

    Args:
        path: the JSON file, read if it is there and written after each run; None keeps nothing.
        measured_at: the level of kernels of the runs that are added.
    """

    def __init__(self, path: Path | None, measured_at: Level) -> None:
        self._path = path
        self.level = str(measured_at)
        self._runs: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self._runs = json.loads(path.read_bytes())

    def begin(self, comparison: str) -> None:
        """Forget the runs that new ones replace: of the same comparison at the same level."""
        replaced: set[str | None] = {self.level}
        if self.level == str(of_processor()):
            replaced.add(None)
        self._runs = [
            run
            for run in self._runs
            if run["comparison"] != comparison or run["level"] not in replaced
        ]

    def add(self, comparison: str, program: str, run: Run) -> None:
        """Keep a run."""
        self._runs.append(
            {
                "comparison": comparison,
                "level": self.level,
                "program": program,
                "date": datetime.date.today().isoformat(),
                "machine": machine(),
                **asdict(run),
                "command": anywhere(run.command),
            }
        )
        if self._path is not None:
            lines = [json.dumps(run, separators=(",", ":")) for run in self._runs]
            with atomic_file(self._path, "w") as stream:
                stream.write("[\n" + ",\n".join(lines) + "\n]\n")

    def levels(self) -> list[str | None]:
        """The levels that anything was measured at, highest first."""
        measured = {run["level"] for run in self._runs}
        return [each for each in _LEVELS if each in measured]

    def find(self, comparison: str, at: str | None) -> Measurement | None:
        """A comparison as it was measured at a level, if it was."""
        runs = [r for r in self._runs if (r["comparison"], r["level"]) == (comparison, at)]
        return Measurement(runs) if runs else None

    def ratios(self, at: str | None) -> dict[str, float]:
        """The figures of `make bench-quick`, DGL's divided by ours, as far as they are measured.

        The local ones divide the faster of DGL's two ways, in line or with a worker, by the faster
        of ours.
        """
        ratios = {}
        if hosts := self.find("4-hosts", at):
            dgl, fp32, everything = (hosts.medians(p.name) for p in (BASELINE, FP32, ALL))
            ratios["cpu_fp32"] = dgl["cpu"] / fp32["cpu"]
            ratios["cpu_all"] = dgl["cpu"] / everything["cpu"]
            ratios["epoch_all"] = dgl["seconds"] / everything["seconds"]
        if local := self.find("local", at):
            seconds = {name: local.medians(name)["seconds"] for name in local.programs}

            def fastest(prefix: str) -> float:
                return min(s for name, s in seconds.items() if name.startswith(prefix))

            for precision in ("fp32", "bf16"):
                ratios[f"local_{precision}"] = fastest("DGL") / fastest(f"distsage, {precision}")
        return ratios


def anywhere(command: str) -> str:
    """A command without the paths of this machine."""
    names = {str(REPOSITORY): ".", os.environ.get("DISTSAGE_DATA", ""): "$DISTSAGE_DATA"}
    for path, name in {**names, str(Path.home()): "~"}.items():
        command = command.replace(path, name) if path else command
    return command


def machine() -> str:
    """This machine in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({processor_name()}), {memory:.0f} GiB of memory, "
        f"{platform.system()} {platform.release()}"
    )
