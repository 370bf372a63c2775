"""Follows a run from its directory alone. Runs on any host that sees the directory.

The directory is read again every few seconds. A run that is over, or that has not said for two
minutes where it is, ends the watch.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from distsage.report.figures import seconds
from distsage.report.text import host_table
from distsage.train.records import Run, read_run

_REFRESH_SECONDS = 2.0
_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 60


def watch(path: Path, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Show a run until it is over. Blocks.

    On a terminal the picture is drawn anew; elsewhere something is printed when an epoch is over.

    Args:
        path: of the run directory.
        sleep: waits so many seconds.

    Returns:
        Whether the run has finished.

    Raises:
        UserError: the directory cannot be read, or is none of a run.
    """
    shown = None
    while True:
        run = read_run(path)
        state, _ = run.state
        if sys.stdout.isatty():
            print(f"\x1b[H\x1b[2J{picture(run)}", flush=True)
        elif shown != (len(run.epochs), state):
            shown = len(run.epochs), state
            print(picture(run), flush=True)
        if state != "running":
            return state == "finished"
        sleep(_REFRESH_SECONDS)


def picture(run: Run) -> str:
    """What there is to say of a run at this moment."""
    state, why = run.state
    lines = [f"{run.path}: {state}, {why}"]
    if state == "running" and run.progress:
        lines += _progress(run)
    if run.epochs:
        losses = [float(epoch["loss"]) for epoch in run.epochs]
        lines.append(f"loss {losses[0]:.4f} {curve(losses)} {losses[-1]:.4f}")
        scores = [
            f"{name} {run.score(mask):.4f}"
            for mask, name in (("val", "validation"), ("test", "test"))
            if run.score(mask) is not None
        ]
        if scores:
            lines.append(", ".join(scores))
    table = host_table(run)
    if table:
        lines += ["", f"in epoch {run.epochs[-1]['epoch'] + 1}:", table]
    return "\n".join(lines)


def _progress(run: Run) -> list[str]:
    at = run.progress
    left = at.get("seconds_left")
    line = (
        f"epoch {min(at['epoch'] + 1, at['epochs'])}/{at['epochs']}, step {at['step']:,}/"
        f"{at['steps_per_epoch']:,}, {at['seeds_per_second']:,.0f} seeds/s"
    )
    lines = [line if left is None else f"{line}, {seconds(left)} left"]
    since = run.read_at - at["since"]
    if at["state"] == "waiting" and since > 2 * _REFRESH_SECONDS:
        lines.append(f"has been {at['doing']} for {seconds(since)}")
    return lines


def curve(values: list[float]) -> str:
    """A line of blocks, the lowest value lowest; where there are many, evenly taken ones."""
    step = max(1, -(-len(values) // _CURVE))
    taken = [value for value in values[::step] if value == value]
    if not taken:
        return ""
    low, high = min(taken), max(taken)
    scale = (len(_BLOCKS) - 1) / max(high - low, 1e-12)
    return "".join(_BLOCKS[round((value - low) * scale)] for value in taken)
