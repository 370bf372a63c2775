"""Where a run is: for its terminal or log, and in progress.json. Runs on trainer 0, the local run.

A thread writes, so that no step waits. On a terminal there is a bar; in a log a line now and then,
at intervals that grow.
"""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distsage.launch.watch.progress import Mark, State
from distsage.progress import Pace, human_seconds
from distsage.train.run_directory import PROGRESS

BEAT_SECONDS = 2.0
"""How often progress.json is written."""

_BAR_SECONDS = 0.5
_FIRST_LINES = 20  # of a log: they come at once


class Status:
    """Tells where the run is, until it is left as a context manager.

    Args:
        run_dir: of the run.
        num_epochs: of the run.
        num_steps: of an epoch.
        mark: notes progress for the rank's watcher; `Status.mark` passes on to it.
    """

    def __init__(
        self,
        run_dir: Path,
        num_epochs: int,
        num_steps: int,
        mark: Mark = lambda doing, state: None,
    ) -> None:
        self._path = run_dir / PROGRESS
        self._num_epochs = num_epochs
        self._num_steps = num_steps
        self._pass_on = mark
        self._doing = ("starting", State.STARTING, time.time())
        self._began = time.monotonic()
        self._position = (0, 0)
        self._first: tuple[int, int] | None = None
        self._loss = float("nan")
        self._seeds = 0
        self._seeds_since = self._began
        self._lines = 0
        self._pace = Pace(self._began)
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm(
                total=num_epochs * num_steps,
                file=sys.stdout,
                dynamic_ncols=True,
                # tqdm's own guess of the time left would count steps that an earlier job has taken.
                bar_format="{desc}: {percentage:3.0f}%|{bar}|{postfix}",
            )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="status", daemon=True)
        self._thread.start()

    def mark(self, doing: str, state: State) -> None:
        """Note what this rank does from now on."""
        self._doing = (doing, state, time.time())
        self._pass_on(doing, state)

    def begin(self, epoch: int, step: int) -> None:
        """An epoch begins at this step, or goes on there."""
        self._position = (epoch, step)
        self._seeds, self._seeds_since = 0, time.monotonic()

    def step(self, loss: float, seeds: int) -> None:
        """A step has been taken.

        Args:
            loss: mean over this trainer's seed nodes.
            seeds: seed nodes of the step over all trainers.
        """
        epoch, step = self._position
        self._position = (epoch, step + 1)
        self._loss = loss
        self._seeds += seeds
        if self._first is None:  # it took longer: kernels are compiled, pages touched
            self._first = self._position
            self._began = time.monotonic()
            self._pace = Pace(self._began)
        if self._bar is None and self._line_is_due() and step + 1 < self._num_steps:
            self._say(
                f"step {step + 1:,}/{self._num_steps:,} of epoch {epoch + 1}/{self._num_epochs}  "
                f"loss {loss:.4f}  {self._seeds_per_second():,.0f} seeds/s  "
                f"{human_seconds(self._seconds_left())} left"
            )

    def epoch(self, line: str, *, evaluated: bool) -> None:
        """An epoch is over: say so, in a log only if it was evaluated or a line is due."""
        if self._bar is not None or evaluated or self._lines < _FIRST_LINES or self._line_is_due():
            self._say(line)

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, *_: object) -> None:
        """Write the last state, end the bar and the thread."""
        self._closed.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def _line_is_due(self) -> bool:
        return self._pace.is_due(time.monotonic())

    def _say(self, line: str) -> None:
        self._lines += 1
        self._pace.said(time.monotonic())
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)

    def _seeds_per_second(self) -> float:
        return self._seeds / max(time.monotonic() - self._seeds_since, 1e-9)

    def _seconds_left(self) -> float | None:
        """At the pace so far, evaluations included; None before the first step."""
        if self._first is None:
            return None
        taken = self._steps(self._position) - self._steps(self._first)
        if taken <= 0:
            return None
        left = self._num_epochs * self._num_steps - self._steps(self._position)
        return left * (time.monotonic() - self._began) / taken

    def _steps(self, position: tuple[int, int]) -> int:
        return position[0] * self._num_steps + position[1]

    def _write(self) -> None:
        """Until `close`: the bar twice a second, the file at each beat."""
        written = -BEAT_SECONDS
        closed = False
        while not closed:
            closed = self._closed.wait(_BAR_SECONDS)
            if closed or time.monotonic() - written >= BEAT_SECONDS:
                written = time.monotonic()
                with contextlib.suppress(OSError):  # the saver says it when the disk is full
                    self._write_file()
            if self._bar is not None:
                epoch, step = self._position
                self._bar.set_description_str(
                    f"epoch {min(epoch + 1, self._num_epochs)}/{self._num_epochs}, "
                    f"step {step:,}/{self._num_steps:,}",
                    refresh=False,
                )
                self._bar.set_postfix_str(
                    f"loss {self._loss:.4f}, {self._seeds_per_second():,.0f} seeds/s, "
                    f"{human_seconds(self._seconds_left())} left",
                    refresh=False,
                )
                self._bar.n = self._steps(self._position)
                self._bar.refresh()

    def _write_file(self) -> None:
        """Replace progress.json. Not synced: it is worth nothing after a power loss."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self._now()) + "\n")
            os.replace(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _now(self) -> dict[str, Any]:
        epoch, step = self._position
        doing, state, since = self._doing
        left = self._seconds_left()
        return {
            "time": round(time.time(), 3),
            "epoch": epoch,
            "step": step,
            "epochs": self._num_epochs,
            "steps_per_epoch": self._num_steps,
            "loss": self._loss if self._loss == self._loss else None,
            "seeds_per_second": round(self._seeds_per_second(), 1),
            "seconds_left": None if left is None else round(left, 1),
            "doing": doing,
            "state": state.name.lower(),
            "since": round(since, 3),
        }
