"""How torch.distributed's trainers find each other: over MPI, without a port. Runs on odd ranks."""

import threading
import time
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import Store

from distsage.launch.world import POLL_SECONDS, World


class Rendezvous(Store):
    """Names and values that the trainers tell each other; torch.distributed's store.

    PyTorch's own is a server that reads, sets and deletes for whoever connects. Here MPI carries
    what one trainer sets to all others, and nobody else is heard. Nothing is deleted or counted:
    gloo and NCCL do neither to come up.

    Args:
        world: of the job.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._trainers = range(1, world.size, 2)
        self._values: dict[str, bytes] = {}
        self._one_at_a_time = threading.RLock()  # NCCL looks from threads of its own

    def set(self, key: str, value: str | bytes) -> None:
        """Tell all trainers. Does not block; not collective."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        with self._one_at_a_time:
            self._values[key] = data
            for rank in self._trainers:
                if rank != self._world.rank:
                    self._world.post(rank, (key, data))

    def get(self, key: str) -> bytes:
        """The value that a trainer has set. Blocks until it is known here, as `wait` does."""
        self.wait([key])
        return self._values[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until these are known here, and what this trainer has set is known elsewhere.

        There is no bound here but `timeout`; if a trainer is stuck or ends, its watcher ends the
        job.

        Raises:
            TimeoutError: the time is over.
        """
        bound = timedelta.max if timeout is None else timeout
        deadline = time.monotonic() + bound.total_seconds()
        # MPI may keep a large value until the other side takes it, and makes no headway meanwhile
        # but in its own calls: after this one gloo connects, in calls of its own.
        while not (self.check(keys) and self._world.all_taken()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer to {', '.join(keys)}")
            time.sleep(POLL_SECONDS)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all of these are known here. Does not block."""
        with self._one_at_a_time:
            while (posted := self._world.posted()) is not None:
                key, value = posted
                self._values[key] = value
            return all(key in self._values for key in keys)

    def clone(self) -> "Rendezvous":
        """NCCL's thread that watches over it wants a store of its own; this one bears both."""
        return self
