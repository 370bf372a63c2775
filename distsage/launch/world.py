"""MPI's world: bounded collectives, and errors that every rank learns of. Runs on every rank."""

import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from mpi4py import MPI

from distsage.errors import UserError

T = TypeVar("T")

# A waiting rank leaves the processor to those it waits for; the wait ends at most this much late.
POLL_SECONDS = 0.005


class World:
    """The job's ranks, with a deadline on every wait.

    Attributes:
        rank: of this process.
        size: number of ranks.
        timeout: seconds that one collective may take.
        host_of: the host of every rank, once that is known.
    """

    def __init__(self, comm: MPI.Intracomm, timeout: float) -> None:
        self.comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.timeout = timeout
        self.host_of: list[str] = []

    def label(self, rank: int) -> str:
        """How messages name a rank."""
        return f"rank {rank} on {self.host_of[rank]}" if self.host_of else f"rank {rank}"

    def gather_all(self, what: str, value: T, extra_time: float = 0.0) -> list[T]:
        """Give every rank the list of all ranks' values. Collective; blocks up to `timeout`.

        `extra_time` adds to the bound, in seconds, for what takes its time on large data.

        Raises:
            TimeoutError: names the ranks whose value did not arrive.
        """
        timeout = self.timeout + extra_time
        deadline = time.monotonic() + timeout
        if self.rank == 0:
            values: list[Any] = [None] * self.size
            values[0] = value
            missing = set(range(1, self.size))
            while missing:
                status = MPI.Status()
                message = self.comm.improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
                if message is not None:
                    values[status.Get_source()] = message.recv()
                    missing.discard(status.Get_source())
                elif time.monotonic() > deadline:
                    names = ", ".join(self.label(rank) for rank in sorted(missing))
                    raise TimeoutError(f"{what}: no answer within {timeout:.0f} s from {names}")
                else:
                    time.sleep(POLL_SECONDS)
            requests = [self.comm.isend(values, dest=rank) for rank in range(1, self.size)]
            for rank, request in enumerate(requests, 1):
                self._wait(request, deadline, what, rank)
            return values
        self._wait(self.comm.isend(value, dest=0), deadline, what, 0)
        # Rank 0 may use up the whole bound before it answers, and names who is missing.
        while not self.comm.iprobe(0, MPI.ANY_TAG):
            if time.monotonic() > deadline + 5:
                raise TimeoutError(f"{what}: no answer from {self.label(0)}")
            time.sleep(POLL_SECONDS)
        received: list[T] = self.comm.recv(source=0)
        return received

    def _wait(self, request: MPI.Request, deadline: float, what: str, rank: int) -> None:
        while not request.test()[0]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: {self.label(rank)} does not take its message")
            time.sleep(POLL_SECONDS)

    def broadcast(self, what: str, value: T | None) -> T:
        """Give every rank the value that rank 0 passes. Collective; blocks up to `timeout`."""
        received = self.gather_all(what, value if self.rank == 0 else None)[0]
        assert received is not None
        return received

    def agree(self, stage: str, action: Callable[[], T], extra_time: float = 0.0) -> T:
        """Run `action` on every rank; if any user error comes of it, end the job with it.

        Rank 0 prints one sentence with the stage, and the hosts where not all have the error, and
        every rank leaves with status 2. Collective; `extra_time` is that of `gather_all`.

        Raises:
            SystemExit: some rank raised a UserError.
        """
        result: T | None = None
        error: str | None = None
        try:
            result = action()
        except UserError as caught:
            error = str(caught)
        errors = self.gather_all(stage, error, extra_time)
        sentence = next((e for e in errors if e is not None), None)
        if sentence is not None:
            hosts = dict.fromkeys(
                host for host, e in zip(self.host_of, errors, strict=False) if e is not None
            )
            if None in errors and not any(host in sentence for host in hosts):
                sentence = f"{', '.join(hosts)}: {sentence}"
            self.leave(f"preflight, {stage}: {sentence}")
        return result  # type: ignore[return-value]

    def leave(self, sentence: str) -> NoReturn:
        """End every rank with one sentence and status 2. Collective.

        Raises:
            SystemExit: always.
        """
        if self.rank == 0:
            print(f"distsage: {sentence}", file=sys.stderr, flush=True)
        self.leave_quietly(2)

    def leave_quietly(self, status: int | str | None) -> NoReturn:
        """End every rank with `status`; what there was to say has been said. Collective.

        Raises:
            SystemExit: always.
        """
        # Launchers tell the other ranks to end as soon as the first has left; all leave alike.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Finalised before the exit status is known to mpi4py's runner, which would abort the job
        # with a page of Open MPI's own words.
        MPI.Finalize()
        raise SystemExit(status)
