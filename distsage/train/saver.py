"""Writes what a run leaves behind while the trainers go on. Runs on trainer 0 and the local run."""

import threading
import time
from typing import Any

from distsage.errors import UserError
from distsage.launch.watch import failure_note
from distsage.train.checkpoint import Checkpoint
from distsage.train.run_directory import RunDirectory
from distsage.train.tensorboard import Curves

# A file system that takes longer for a few files does not work. Training goes on meanwhile, but
# what it does would be lost.
_LONGEST_WRITE_SECONDS = 1800.0


class Saver:
    """A thread that writes to a run directory, in order, so that no trainer waits for the disk.

    Of checkpoints it writes the newest: one that is still waiting when the next one comes is left
    out. The next call after a write has failed raises its error.

    Args:
        run: where to write.
        resumed_at: position of the checkpoint that the run went on from, (0, 0) for a new run.
        curves: are told of every record that is written; None if nobody wants them.
    """

    def __init__(
        self, run: RunDirectory, resumed_at: tuple[int, int], curves: Curves | None = None
    ) -> None:
        self._run = run
        self._curves = curves
        self._records: list[dict[str, Any]] = []
        self._checkpoint: Checkpoint | None = None
        self._written_best = -1
        self._busy = False
        self._busy_since = 0.0
        self._closed = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._resumed_at = resumed_at
        self.written: tuple[int, int] | None = None
        """Position of the last checkpoint that is on the disk."""
        # A daemon: a rank that fails ends at once.
        threading.Thread(target=self._write, name="saver", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, or waits for it.

        Raises:
            UserError: something could not be written before, or the disk does not answer.
        """
        with self._changed:
            self._raise_error()
            if self._busy and time.monotonic() - self._busy_since > _LONGEST_WRITE_SECONDS:
                raise UserError(
                    f"writing to {self._run.path} has not ended after "
                    f"{_LONGEST_WRITE_SECONDS:.0f} s; see whether its file system works, or name "
                    "another --run-dir"
                )
            return self._busy or self._checkpoint is not None

    def record(self, record: dict[str, Any]) -> None:
        """Have an epoch's record written.

        Raises:
            UserError: something could not be written before.
        """
        with self._changed:
            self._raise_error()
            self._records.append(record)
            self._changed.notify_all()

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint written, after the records so far.

        Raises:
            UserError: something could not be written before.
        """
        with self._changed:
            self._raise_error()
            self._checkpoint = checkpoint
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written. Blocks as long as the disk does.

        Raises:
            UserError: something could not be written.
        """
        with self._changed:
            while self._error is None and (self._busy or self._records or self._checkpoint):
                self._changed.wait()
            self._raise_error()

    def close(self) -> None:
        """End the thread; what waits is not written any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._records or self._checkpoint):
                    self._changed.wait()
                if self._closed:
                    return
                records, self._records = self._records, []
                checkpoint, self._checkpoint = self._checkpoint, None
                self._busy = True
                self._busy_since = time.monotonic()
            try:
                for record in records:
                    self._run.record(record)
                    if self._curves is not None:
                        self._curves.record(record)
                if checkpoint is not None:
                    self._write_checkpoint(checkpoint)
            except Exception as error:  # noqa: BLE001 - raised again by the next call
                with self._changed:
                    self._error = error
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                if self._error is not None:
                    return

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        best = checkpoint.best
        if best is not None and best.epoch != self._written_best:
            self._run.save_model(checkpoint.origin, best)
            self._written_best = best.epoch
        started = time.perf_counter()
        self._run.save_checkpoint(checkpoint)
        self.written = checkpoint.position
        seconds = round(time.perf_counter() - started, 3)
        self._run.event("checkpoint", epoch=checkpoint.epoch, step=checkpoint.step, seconds=seconds)
        if self.written > self._resumed_at:
            failure_note.say_got_on()
