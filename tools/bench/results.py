"""The figures: kept as JSON as they come, and turned into medians and ratios."""

import datetime
import json
import os
import platform
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distsage.files import write_json

from .cluster import REPOSITORY
from .comparisons import ALL, BASELINE, FP32
from .runs import Run

Medians = dict[str, float]


class Results:
    """All runs by comparison and program.

    Args:
        path: the JSON file, read if it is there and written after each run; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.comparisons: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.comparisons = json.loads(path.read_bytes())

    def begin(self, comparison: str) -> None:
        """Forget earlier runs of a comparison."""
        self.comparisons[comparison] = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "programs": {},
        }

    def add(self, comparison: str, program: str, run: Run) -> None:
        """Keep a run."""
        kept = asdict(run) | {"command": anywhere(run.command)}
        self.comparisons[comparison]["programs"].setdefault(program, []).append(kept)
        if self._path is not None:
            write_json(self._path, self.comparisons)

    def medians(self, comparison: str, program: str) -> Medians:
        """Medians over all measured epochs of a program; memory is the largest.

        Keys: seconds, cpu and received per epoch; other_cores that other work took meanwhile;
        accuracy, evaluation_seconds, memory; and epochs, how many.
        """
        runs = self.comparisons[comparison]["programs"][program]
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

    def ratios(self) -> dict[str, float]:
        """The figures of `make bench-quick`, DGL's divided by ours, as far as they are measured.

        The local ones divide the faster of DGL's two ways, in line or with a worker, by the faster
        of ours.
        """
        ratios = {}
        if "4-hosts" in self.comparisons:
            dgl, fp32, everything = (
                self.medians("4-hosts", program.name) for program in (BASELINE, FP32, ALL)
            )
            ratios["cpu_fp32"] = dgl["cpu"] / fp32["cpu"]
            ratios["cpu_all"] = dgl["cpu"] / everything["cpu"]
            ratios["epoch_all"] = dgl["seconds"] / everything["seconds"]
        if "local" in self.comparisons:

            def fastest(prefix: str) -> float:
                programs = self.comparisons["local"]["programs"]
                return min(
                    self.medians("local", name)["seconds"]
                    for name in programs
                    if name.startswith(prefix)
                )

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
    model = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB of memory, "
        f"{platform.system()} {platform.release()}"
    )
