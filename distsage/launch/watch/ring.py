"""The ring of a job's watchers: who is in it, and how long they wait for what.

Shared by a rank, which learns of the others and tells its watcher, and by the watcher.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Each watcher sends the next one a beat this often.
BEAT_SECONDS = 1.0
# No beat for so long means that the host is lost, or that the watcher is stopped.
SILENCE_SECONDS = 10.0
# A rank that is stopped by a signal for so long is not going on by itself.
STOPPED_SECONDS = 5.0
# A rank whose exception may follow from another rank's death lets that rank's watcher speak first.
YIELD_SECONDS = 1.0
# A launcher that ends a rank because another has died lets the watchers find out which.
LAUNCHER_YIELD_SECONDS = 0.2
# A rank that waits for others is named so many seconds after one that works would be. Before the
# ring is there, a watcher waits so much longer than its rank, which can say who did not answer.
WAIT_SECONDS = 10.0
# A rank that trains has so long to stop by itself after SIGTERM.
TERM_SECONDS = 5.0
# A rank that has done all its work has so long to take leave of MPI and end.
LEAVE_SECONDS = 60.0
# A connection to a watcher's port has so long to prove that it is of the job, and no more than
# MOST_STRANGERS may be about it.
PROOF_SECONDS = 5.0
MOST_STRANGERS = 16


@dataclass(frozen=True)
class Ring:
    """What a rank tells its watcher once the ranks know each other.

    Attributes:
        rank: of this rank.
        labels: how messages name each rank.
        addresses: (ip, port) of each rank's watcher.
        key: known to this job's watchers only, in hexadecimal digits; tells them from strangers.
        note: the failure note, a path that all hosts see.
        log_directory: where the ranks' logs lie.
        stall_timeout: seconds without a mark of progress until a rank counts as stuck.
    """

    rank: int
    labels: Sequence[str]
    addresses: Sequence[tuple[str, int]]
    key: str
    note: str
    log_directory: str
    stall_timeout: float

    @property
    def previous(self) -> int:
        """The rank whose watcher this one hears."""
        return (self.rank - 1) % len(self.labels)

    @property
    def next(self) -> int:
        """The rank whose watcher hears this one."""
        return (self.rank + 1) % len(self.labels)
