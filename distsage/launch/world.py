"""MPI's world: bounded collectives, and errors that every rank learns of. Runs on every rank."""

import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from mpi4py import MPI

from distsage.errors import UserError
from distsage.launch.watch.progress import State

T = TypeVar("T")

# A rank that waits sleeps between two looks, to leave the processor to others. It learns of an
# answer at most this much late.
POLL_SECONDS = 0.005
# Ranks that wait hear of progress at most this often.
PROGRESS_SECONDS = 1.0
_VALUE, _PROGRESS, _POST = 1, 2, 3  # tags


class World:
    """The job's ranks, with a deadline on every wait.

    A step that takes long on large data, such as reading a part, reports `progress`. The ranks that
    wait for it hear of it, and their deadlines begin again.

    Attributes:
        rank: of this process.
        size: number of ranks.
        timeout: seconds that one collective may take without progress.
        host_of: the host of every rank, once that is known.
    """

    def __init__(
        self, comm: MPI.Intracomm, timeout: float, mark: Callable[[str, State], None]
    ) -> None:
        self.comm = comm
        self._mark = mark
        self._told = time.monotonic()
        self._deadline = self._told
        self._sent: list[MPI.Request] = []
        self._posted: list[MPI.Request] = []
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.timeout = timeout
        self.host_of: list[str] = []

    def label(self, rank: int) -> str:
        """How messages name a rank."""
        return f"rank {rank} on {self.host_of[rank]}" if self.host_of else f"rank {rank}"

    def progress(self, doing: str) -> None:
        """Tell the ranks that wait for this one that it gets on. Does not block.

        Not collective: a rank may call it as often as it likes, before it takes part in the
        collective that the others wait in.

        Args:
            doing: what this rank is at, for messages.
        """
        self._mark(doing, State.WORKING)
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        listeners = range(1, self.size) if self.rank == 0 else [0]  # rank 0 tells the others
        self._sent = [request for request in self._sent if not request.test()[0]]
        self._sent += [self.comm.isend(None, dest=rank, tag=_PROGRESS) for rank in listeners]

    def _hear(self, what: str) -> None:
        """Start the deadline again, because another rank gets on."""
        self._deadline = time.monotonic() + self.timeout
        self._mark(f"waiting for others: {what}", State.WAITING)
        if self.rank == 0:
            self._tell()

    def gather_all(self, what: str, value: T) -> list[T]:
        """Give every rank the list of all ranks' values. Collective.

        Blocks until `timeout` seconds have gone by without progress.

        Raises:
            TimeoutError: names the ranks whose value did not arrive.
        """
        self._deadline = time.monotonic() + self.timeout
        if self.rank == 0:
            values: list[Any] = [None] * self.size
            values[0] = value
            missing = set(range(1, self.size))
            while missing:
                status = MPI.Status()
                message = self.comm.improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
                if message is not None:
                    received = message.recv()
                    if status.Get_tag() == _PROGRESS:
                        self._hear(what)
                    else:
                        values[status.Get_source()] = received
                        missing.discard(status.Get_source())
                elif time.monotonic() > self._deadline:
                    names = ", ".join(self.label(rank) for rank in sorted(missing))
                    raise TimeoutError(
                        f"{what}: no answer within {self.timeout:.0f} s from {names}"
                    )
                else:
                    time.sleep(POLL_SECONDS)
            requests = [
                self.comm.isend(values, dest=rank, tag=_VALUE) for rank in range(1, self.size)
            ]
            for rank, request in enumerate(requests, 1):
                self._wait(request, what, rank)
            return values
        own = self.comm.isend(value, dest=0, tag=_VALUE)
        sent = False
        while True:
            sent = sent or own.test()[0]
            status = MPI.Status()
            message = self.comm.improbe(0, MPI.ANY_TAG, status)
            if message is not None:
                answer: list[T] = message.recv()
                if status.Get_tag() == _VALUE:
                    return answer
                self._hear(what)
            # Rank 0 waits for the whole timeout before it names who is missing; so wait longer.
            elif time.monotonic() > self._deadline + 5:
                raise TimeoutError(f"{what}: no answer from {self.label(0)}")
            else:
                time.sleep(POLL_SECONDS)

    def _wait(self, request: MPI.Request, what: str, rank: int) -> None:
        while not request.test()[0]:
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"{what}: {self.label(rank)} does not take its message")
            time.sleep(POLL_SECONDS)

    def post(self, rank: int, value: object) -> None:
        """Send a value to a rank other than 0, which takes it with `posted`. Does not block."""
        assert rank != 0, "rank 0 would take it for an answer in a collective"
        self._posted.append(self.comm.isend(value, dest=rank, tag=_POST))

    def posted(self) -> Any:
        """A value that some rank has posted to this one; None if there is none. Does not block."""
        message = self.comm.improbe(MPI.ANY_SOURCE, _POST)
        return None if message is None else message.recv()

    def all_taken(self) -> bool:
        """Whether MPI has delivered what this rank has posted. Does not block."""
        self._posted = [request for request in self._posted if not request.test()[0]]
        return not self._posted

    def broadcast(self, what: str, value: T | None) -> T:
        """Give every rank the value that rank 0 passes. Collective; blocks as `gather_all` does."""
        received = self.gather_all(what, value if self.rank == 0 else None)[0]
        assert received is not None
        return received

    def agree(self, step: str, action: Callable[[], T]) -> T:
        """Run `action` on every rank; if any user error comes of it, end the job with it.

        Rank 0 prints one sentence with the step, and the hosts where not all have the error, and
        every rank leaves with status 2. Collective; blocks as `gather_all` does.

        Raises:
            SystemExit: some rank raised a UserError.
        """
        result: T | None = None
        error: str | None = None
        try:
            result = action()
        except UserError as caught:
            error = str(caught)
        errors = self.gather_all(step, error)
        sentence = next((e for e in errors if e is not None), None)
        if sentence is not None:
            hosts = dict.fromkeys(
                host for host, e in zip(self.host_of, errors, strict=False) if e is not None
            )
            if None in errors and not any(host in sentence for host in hosts):
                sentence = f"{', '.join(hosts)}: {sentence}"
            self.leave(f"preflight, {step}: {sentence}")
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
        # Launchers send the others SIGTERM as soon as the first rank has left. All have to leave
        # with `status`.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # mpi4py's runner would abort the job because of the status, with a page of Open MPI's own
        # words. It does not where MPI is finalised already.
        MPI.Finalize()
        raise SystemExit(status)
