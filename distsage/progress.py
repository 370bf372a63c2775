"""How far a long stage is, on standard error. Runs in commands, and on one rank of a job.

On a terminal there is a bar, which goes when the stage is over; in a log a line now and then, at
intervals that grow. A stage of a few seconds shows nothing.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

# The next line of a log waits for this share of the time that has been taken so far.
_PAUSE_SHARE = 0.1
_LEAST_PAUSE_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 600.0
_BAR_AFTER_SECONDS = 1.0
_TICK_SECONDS = 1.0


class Pace:
    """When a log is due for its next line: every 10 s, then ever more seldom.

    Args:
        began: when the work did, in seconds of any clock.
    """

    def __init__(self, began: float) -> None:
        self._began = self._last = began

    def is_due(self, now: float) -> bool:
        """Whether it is time for a line; `now` is of the same clock."""
        pause = _PAUSE_SHARE * (now - self._began)
        return now - self._last >= min(max(pause, _LEAST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)

    def said(self, now: float) -> None:
        """A line was written."""
        self._last = now


@contextmanager
def progress(
    what: str, total: int | None, unit: str, *, shown: bool = True
) -> Iterator[Callable[[float], object]]:
    """Show how far a stage is: `with progress("reading edges", total, "edges") as advance:`.

    Args:
        what: is being done, as a line begins.
        total: how many units there are to do; None where nobody knows, and no time is left then.
        unit: what is counted, in the plural.
        shown: False says nothing, as on all ranks but one.

    Yields:
        A function to be told how many units more are done, from any thread. Where a unit passes
        twice, each pass is half of it.
    """
    if not shown:
        yield lambda count: None
    elif sys.stderr.isatty():
        with tqdm(
            desc=what,
            total=total,
            unit=f" {unit}",
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=True,
            delay=_BAR_AFTER_SECONDS,
            leave=False,
        ) as bar:
            yield _from_any_thread(bar.update)
    else:
        yield _from_any_thread(_Lines(what, total, unit).advance)


@contextmanager
def elapsed(what: str, *, shown: bool = True) -> Iterator[None]:
    """Show for how long a stage runs that does not say how far it is; a thread looks at the clock.

    Args:
        what: is being done, as a line begins.
        shown: False says nothing, as on all ranks but one.
    """
    if not shown:
        yield
        return
    over = threading.Event()

    def show_on_terminal() -> None:
        if over.wait(_BAR_AFTER_SECONDS):
            return
        with tqdm(
            desc=what,
            bar_format="{desc}: {elapsed}",
            file=sys.stderr,
            dynamic_ncols=True,
            leave=False,
        ) as bar:
            bar.start_t -= _BAR_AFTER_SECONDS
            while not over.wait(_TICK_SECONDS):
                bar.refresh()

    def show_in_log() -> None:
        began = time.monotonic()
        pace = Pace(began)
        while not over.wait(_TICK_SECONDS):
            now = time.monotonic()
            if pace.is_due(now):
                pace.said(now)
                print(f"{what}: {human_seconds(now - began)} so far", file=sys.stderr, flush=True)

    show = show_on_terminal if sys.stderr.isatty() else show_in_log
    thread = threading.Thread(target=show, name="elapsed", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _from_any_thread(advance: Callable[[float], object]) -> Callable[[float], object]:
    lock = threading.Lock()

    def one_at_a_time(count: float) -> None:
        with lock:
            advance(count)

    return one_at_a_time


class _Lines:
    """A stage in a log."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0.0
        self._began = time.monotonic()
        self._pace = Pace(self._began)

    def advance(self, count: float) -> None:
        self._done += count
        now = time.monotonic()
        if not self._pace.is_due(now):
            return
        self._pace.said(now)
        line = f"{self._what}: {self._done:,.0f}"
        if self._total is not None:
            line += f" of {self._total:,}"
        line += f" {self._unit}"
        if self._total is not None and self._done:
            left = (now - self._began) * max(self._total - self._done, 0) / self._done
            line += f", {human_seconds(left)} left"
        print(line, file=sys.stderr, flush=True)


def human_seconds(seconds: float | None) -> str:
    """A time for people, such as `2 h 05 min`."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
