"""Follows a run from its directory alone. Runs on any host that sees the directory.

The directory is read again every few seconds. A run that is over, or that has not said for two
minutes where it is, ends the watch; but not while Slurm, where it can be asked, still has the run's
job: it may run again and go on.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distsage.report.figures import seconds
from distsage.report.text import host_table
from distsage.train.records import Run, read_run

_REFRESH_SECONDS = 2.0
_SLURM_ANSWER_SECONDS = 30.0
# A job that runs again says so within this time, unless it reads or copies parts for longer.
_COMING_UP_SECONDS = 300.0
_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 60


def watch(path: Path, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Show a run until it is over. Blocks, also while its job is queued to run again.

    On a terminal the picture is drawn anew; elsewhere something is printed when an epoch is over,
    and when the run stops or goes on.

    Args:
        path: of the run directory.
        sleep: waits so many seconds.

    Returns:
        Whether the run has finished.

    Raises:
        UserError: the directory cannot be read, or is none of a run.
    """
    shown = None
    runs_since: float | None = None
    while True:
        run = read_run(path)
        state, _ = run.state
        in_slurm = None if state in ("running", "finished") else job_state(run)
        if in_slurm != "RUNNING":
            runs_since = None
        elif runs_since is None:
            runs_since = time.monotonic()
        elif time.monotonic() - runs_since > _COMING_UP_SECONDS:
            in_slurm = None  # whatever it does, it does not go on with this run
        now = picture(run, in_slurm)
        facts = len(run.epochs), state, in_slurm, len(run.starts)
        if sys.stdout.isatty():
            print(f"\x1b[H\x1b[2J{now}", flush=True)
        elif shown != facts:
            shown = facts
            print(now, flush=True)
        if state != "running" and in_slurm is None:
            return state == "finished"
        sleep(_REFRESH_SECONDS)


def job_state(run: Run) -> str | None:
    """What Slurm says of a run's job, such as PENDING.

    None if Slurm does not have the job any more, cannot be asked here, or the run was no job.
    """
    job = run.about.get("environment", {}).get("slurm", {}).get("SLURM_JOB_ID")
    if job is None:
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(
            ["squeue", "--noheader", "--format=%T", f"--jobs={job}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SLURM_ANSWER_SECONDS,
            check=False,
        )
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.split()[0]
    return None


def picture(run: Run, in_slurm: str | None = None) -> str:
    """What there is to say of a run at this moment.

    Args:
        run: as it was read.
        in_slurm: state of the job of a run that does not get on; None if it has none.
    """
    state, why = run.state
    lines = [f"{run.path}: {state}, {why}"]
    if in_slurm is not None:
        job = run.starts[-1]["job"] if run.starts else "?"
        lines.append(f"job {job} is {in_slurm} in Slurm; waiting for it to go on, or to end")
    if run.starts and run.starts[-1]["event"] == "resumed":
        start = run.starts[-1]
        lines.append(
            f"job {start['job']} went on at step {start['step']:,} of epoch {start['epoch'] + 1}"
            + (f" (requeue {start['requeues']})" if start["requeues"] else "")
        )
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
