"""Whether a rank gets on: what its watcher makes of its marks, and of what the kernel counts.

A rank that works is stuck when it makes no mark for `stall_timeout`. A rank that waits for others
is not, as long as any rank of the ring gets on. Every beat carries how many marks each rank is
known to have made; a number that has grown shows that its rank gets on, and one that comes round
the ring a second time shows nothing. When no rank has got on for `stall_timeout`, a rank that waits
is named, because all may be waiting for each other. That happens somewhat later than
`stall_timeout`: the news of the last mark may still be on its way round, and a rank that is stuck
at work has to be named before. So every wait of a rank in the ring is bounded here. It needs no
bound of its own, which would have to guess how long the others may work.

Runs in every rank's watcher, once a beat.
"""

import mmap
import time
from pathlib import Path

from distsage.launch.watch.progress import (
    COMPUTED_SECONDS,
    LOADED_BYTES,
    State,
    computed_seconds,
    last_mark,
    loaded_bytes,
)
from distsage.launch.watch.ring import (
    BEAT_SECONDS,
    STOPPED_SECONDS,
    WAIT_SECONDS,
    YIELD_SECONDS,
    Ring,
)

_LOADS = (State.LOADING, State.STARTING, State.COMPUTING)
# Before a rank that waits is named, the watcher of one that is stuck at work has so long to speak.
_WAITING_YIELD_SECONDS = 4.0


class Pulse:
    """The progress of one rank.

    Args:
        page: in which the rank marks its progress.

    Attributes:
        marks: how many the rank has made, with those that count for it in a call that makes none.
    """

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page
        self._last = last_mark(page)
        self._moved = self._last.time  # when the rank last got on
        self._loaded = 0  # bytes, when the rank last got on with loading
        self._computed = 0.0  # seconds, when the rank last got on with computing
        self._loading_marks = 0
        self._loading_moved = time.monotonic()
        self._stopped_since: float | None = None
        self.marks = 0

    def look(self, child: int, now: float) -> None:
        """Look at the rank.

        Args:
            child: its process; 0 when it has ended.
            now: `time.monotonic`.
        """
        self._last = last_mark(self._page)
        self._moved, self.marks, state, _ = self._last
        self._see_whether_stopped(child, now)
        if child:
            gets_on = (state in _LOADS and self._loads(child)) or (
                state == State.COMPUTING and self._computes(child)
            )
            if gets_on:
                self._loading_marks += 1
                self._loading_moved = now
        self.marks += self._loading_marks
        if state in _LOADS:
            self._moved = max(self._moved, self._loading_moved)

    def why_stopped(self, now: float) -> str | None:
        """Say that a signal has stopped the rank for so long that it does not go on by itself."""
        if self._stopped_since is None or now - self._stopped_since <= STOPPED_SECONDS:
            return None
        return f"stopped by a signal while {self._last.doing}"

    def why_late(self, now: float, startup_timeout: float) -> str | None:
        """Say that a rank that is in no ring yet has made no mark for `startup_timeout`."""
        if now - self._moved <= startup_timeout + WAIT_SECONDS:
            return None
        return f"did not come up within {startup_timeout:.0f} s ({self._last.doing})"

    def why_stuck(
        self, now: float, ring: Ring, startup_timeout: float, others_moved: float
    ) -> tuple[str, float] | None:
        """Say that a rank of the ring is stuck.

        Args:
            now: `time.monotonic`.
            ring: of the rank.
            startup_timeout: seconds that a rank that starts may go without a mark.
            others_moved: when another rank of the ring is last known to have got on.

        Returns:
            The cause, and how many seconds other watchers have to name another one; None while the
            rank gets on.
        """
        _, _, state, doing = self._last
        moved, bound, after = self._moved, ring.stall_timeout, YIELD_SECONDS
        if state == State.STARTING:
            # What connects has a bound of its own, and says more.
            bound = max(bound, startup_timeout + WAIT_SECONDS)
        cause = f"no progress for {bound:.0f} s ({doing})"
        if state == State.WAITING:
            cause = f"no progress on any rank for {bound:.0f} s ({doing})"
            moved = max(moved, others_moved)
            bound += WAIT_SECONDS + len(ring.labels) * BEAT_SECONDS
            after = _WAITING_YIELD_SECONDS
        if state == State.IDLE or now - moved <= bound:
            return None
        if self._stopped_since is not None:
            cause = f"stopped by a signal while {doing}"
        return cause, after

    def _see_whether_stopped(self, child: int, now: float) -> None:
        if not child:
            self._stopped_since = None
            return
        try:
            stat = Path(f"/proc/{child}/stat").read_text()
        except OSError:
            return
        if stat.rpartition(")")[2].split()[0] not in "Tt":
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = now

    def _loads(self, child: int) -> bool:
        """Whether the rank has read, written or first touched more since it last had."""
        loaded = loaded_bytes(child)
        moved = loaded - self._loaded >= LOADED_BYTES
        if moved:
            self._loaded = loaded
        return moved

    def _computes(self, child: int) -> bool:
        """Whether the rank, or what it started, has used more of processors since they last had."""
        computed = computed_seconds(child)
        moved = abs(computed - self._computed) >= COMPUTED_SECONDS
        if moved:
            self._computed = computed
        return moved
