"""What a finished run came to, as a table for the terminal: the end of the demo."""

import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from distsage.errors import UserError
from distsage.partitioning.parts import Parts

Cells = list[list[str]]


def summary_table(run_dir: Path, without_graph: Path | None = None) -> str:
    """What a finished run of `distsage train` came to.

    Args:
        run_dir: of the run.
        without_graph: run directory of the same training with `--ignore-edges`, to put its scores
            beside the run's.

    Raises:
        UserError: a run is not finished, or its parts cannot be opened.
    """
    summary = _read_summary(run_dir)
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    manifest = Parts.open(config["parts"] or config["conf_file"]).manifest
    lines = (run_dir / "epochs.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    first, *others = [epoch["seconds"] for epoch in epochs]
    evaluations = [epoch["eval_seconds"] for epoch in epochs if "eval_seconds" in epoch]
    cut_percent = 100 * manifest.edge_cut / max(manifest.num_edges, 1)
    sizes = " + ".join(f"{part.num_nodes:,}" for part in manifest.parts)
    facts = [
        ["graph", f"{manifest.num_nodes:,} nodes, {manifest.num_edges:,} directed edges"],
        ["parts", f"{len(manifest.parts)}, of {sizes} nodes"],
        ["edge cut", f"{manifest.edge_cut:,} directed edges ({cut_percent:.2f} %)"],
        ["hosts, trainers", f"{summary['hosts']}, {summary['trainers']}"],
        ["epochs", f"{len(epochs)}, the best is number {summary['best_epoch'] + 1}"],
        ["epoch time", f"{first:.2f} s the first" + _median_of(others, ", then {:.2f} s (median)")],
        ["evaluation", _median_of(evaluations, "{:.2f} s (median)")],
    ]
    scores = [["", "validation", "test"], _scores("with the graph", summary)]
    if without_graph is not None:
        scores.append(_scores("without the graph", _read_summary(without_graph)))
    name = _score_name(summary["test"]).replace("_", " ")
    scores[0][0] = name
    checkpoint = [["checkpoint", str(run_dir / "model.safetensors")]]
    return "\n\n".join(_align(cells) for cells in (facts, scores, checkpoint))


def _read_summary(run_dir: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    except OSError as error:
        raise UserError(
            f"{run_dir} holds no finished run (cannot read summary.json: {error.strerror})"
        ) from error
    return summary


def _score_name(scores: dict[str, float]) -> str:
    return next(reversed(scores))  # ROC-AUC stands after the accuracy


def _scores(label: str, summary: dict[str, Any]) -> list[str]:
    return [label, *(f"{summary[m][_score_name(summary[m])]:.4f}" for m in ("val", "test"))]


def _median_of(seconds: list[float], text: str) -> str:
    return text.format(statistics.median(seconds)) if seconds else ""


def _align(cells: Cells) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
