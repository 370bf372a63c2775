"""TensorBoard's event files: the curves of a run, beside its records. Runs on trainer 0, local run.

They hold what epochs.jsonl holds, and are made from it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from distsage.files import explain_write_errors
from distsage.train.records import read_epochs

TENSORBOARD = "tensorboard"
"""The directory in a run's, for `tensorboard --logdir`."""

_MASKS = ("train", "val", "test")


class Curves:
    """Writes the event file of a run; one at a time, with each epoch once.

    Nothing is written before the first epoch is over. When an epoch comes that is not the next one,
    as after a checkpoint has been gone back to, the file is made anew: whatever reads it sees one
    curve. Not thread-safe.

    Args:
        run_dir: of the run.
        lr: learning rate of the run.
    """

    def __init__(self, run_dir: Path, lr: float) -> None:
        self._run_dir = run_dir
        self._lr = lr
        self._writer: EventsWriter | None = None
        self._next = 0

    def record(self, record: Mapping[str, Any]) -> None:
        """Add an epoch, whose record is the last one of epochs.jsonl, and sync the file.

        Raises:
            UserError: it cannot be written.
        """
        with explain_write_errors(self._run_dir / TENSORBOARD, "--run-dir"):
            records: Sequence[Mapping[str, Any]] = [record]
            if self._writer is None or record["epoch"] != self._next:
                self._begin()
                records = read_epochs(self._run_dir)
            assert self._writer is not None
            # The records have no times of the clock. Earlier epochs lie as far back as they took.
            left = sum(_seconds(each) for each in records)
            now = time.time()
            for each in records:
                left -= _seconds(each)
                values = [
                    Summary.Value(tag=tag, simple_value=value)
                    for tag, value in scalars(each, self._lr)
                ]
                step = each["epoch"] + 1
                self._writer.write_event(
                    Event(wall_time=now - left, step=step, summary=Summary(value=values))
                )
            self._writer.flush()
            self._next = record["epoch"] + 1

    def _begin(self) -> None:
        directory = self._run_dir / TENSORBOARD
        if self._writer is not None:
            self._writer.close()
        directory.mkdir(exist_ok=True)
        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = EventsWriter(str(directory / "events"))
        # Has a TensorBoard that is open forget what the old file told it.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=0, session_log=start))


def scalars(record: Mapping[str, Any], lr: float) -> Iterator[tuple[str, float]]:
    """The tags and values of an epoch.

    Args:
        record: of epochs.jsonl.
        lr: learning rate.
    """
    yield "loss", record["loss"]
    yield "learning rate", lr
    for mask in _MASKS:
        for name, value in record.get(mask, {}).items():
            yield f"{name}/{mask}", value
    yield "seconds/epoch", record["seconds"]
    if "eval_seconds" in record:
        yield "seconds/evaluation", record["eval_seconds"]
    for name, counter in record.items():
        if isinstance(counter, dict) and name.endswith("_seconds"):
            trainers = len(counter["per_trainer"])
            phase = name.removesuffix("_seconds").replace("_", " ")
            yield f"seconds/{phase}, mean of trainers", counter["total"] / trainers
    hosts = record.get("hosts", ())
    for name, key in (("received", "received_bytes_from"), ("sent", "sent_bytes_to")):
        yield f"bytes/{name}", sum(sum(host[key]) for host in hosts)
    memory = ("trainer_bytes", "server_bytes", "shared_bytes")
    for number, host in enumerate(hosts):
        yield f"bytes/memory of host {number}", sum(host[key] for key in memory)


def _seconds(record: Mapping[str, Any]) -> float:
    return float(record["seconds"] + record.get("eval_seconds", 0))
