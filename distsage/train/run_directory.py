"""What a run leaves behind. Written by trainer 0 and by the local run.

config.yaml         every option, as resolved; `--config` reads it
run.json            what the run says of itself: environment, hosts, parts; and the schema
epochs.jsonl        one JSON record per epoch
events.jsonl        what happened: checkpoints, resumes, stops, failures
progress.json       where the run is at this moment
checkpoints/        the last two checkpoints, EPOCH-STEP.safetensors
tensorboard/        event files, with --tensorboard
model.safetensors   weights of the best validation epoch, and what is needed to rebuild the model
                    and find its graph
summary.json        the result; there when the run is finished
ip_config.txt       addresses and ports of the servers (MPI jobs), for people
owner.txt           the job that the directory belongs to, or belonged to last
earlier-N/          the same files of earlier runs in this directory
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from distsage.errors import UserError
from distsage.events import EVENTS, append_event
from distsage.files import (
    append_line,
    atomic_file,
    explain_write_errors,
    remove_half_written,
    write_json,
)
from distsage.train.checkpoint import Best, Checkpoint, Origin
from distsage.train.tensor_file import DamagedError, read_tensors, write_tensors

_CHECKPOINTS = "checkpoints"
PROGRESS = "progress.json"
_FILES = (
    "config.yaml",
    "run.json",
    "epochs.jsonl",
    EVENTS,
    PROGRESS,
    "model.safetensors",
    "summary.json",
    _CHECKPOINTS,
    "tensorboard",
)
# The newest may be damaged: a disk that lies about what it has written.
_KEPT_CHECKPOINTS = 2


class RunDirectory:
    """The directory of one run. No file in it is ever half-written.

    Raises:
        UserError: a file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def begin(cls, path: Path, config: Any) -> "RunDirectory":
        """Prepare the directory for a new run and write the configuration, a dataclass.

        Files of an earlier run move to `earlier-N`, so that no checkpoint is ever overwritten by
        another run's.
        """
        run = cls(path)
        with explain_write_errors(path, "--run-dir"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            run._remove_half_written()
            old = [name for name in _FILES if (path / name).exists()]
            if old:
                number = 1
                while (path / f"earlier-{number}").exists():
                    number += 1
                (path / f"earlier-{number}").mkdir()
                for name in old:
                    os.rename(path / name, path / f"earlier-{number}" / name)
            run._write_config(config)
        return run

    @classmethod
    def go_on(cls, path: Path, config: Any, source: Path, epoch: int) -> "RunDirectory":
        """Prepare the directory of a run that goes on, and write its present configuration.

        Args:
            path: of this run.
            config: of this run, a dataclass.
            source: the directory of the run that it goes on from; may be `path`.
            epoch: of the checkpoint. The records of this epoch and of later ones are dropped, for
                they are trained again.
        """
        records = _read_records(source)
        run = cls(path) if source == path else cls.begin(path, config)
        with explain_write_errors(path, "--run-dir"):
            run._remove_half_written()
            run._write_config(config)
            (path / "summary.json").unlink(missing_ok=True)
            run._write_records(records, epoch)
        return run

    def _remove_half_written(self) -> None:
        """An earlier job may have been killed while it wrote; this one owns the directory."""
        for name in (*_FILES, f"{_CHECKPOINTS}/*"):
            remove_half_written(self.path / name)

    def _write_config(self, config: Any) -> None:
        with atomic_file(self.path / "config.yaml", "w") as stream:
            yaml.safe_dump(plain(dataclasses.asdict(config)), stream, sort_keys=False)

    def describe(self, about: dict[str, Any]) -> None:
        """Write what the run says of itself."""
        path = self.path / "run.json"
        with explain_write_errors(path, "--run-dir"):
            write_json(path, about)

    def event(self, event: str, **facts: Any) -> None:
        """Append what has happened, and sync it."""
        with explain_write_errors(self.path / EVENTS, "--run-dir"):
            append_event(self.path, event, **facts)

    def record(self, epoch: dict[str, Any]) -> None:
        """Append one epoch's record and sync it."""
        path = self.path / "epochs.jsonl"
        with explain_write_errors(path, "--run-dir"):
            append_line(path, json.dumps(epoch))

    def drop_later_records(self, epoch: int) -> None:
        """Drop the records of an epoch that is trained again, and of those after it."""
        records = _read_records(self.path)
        with explain_write_errors(self.path, "--run-dir"):
            self._write_records(records, epoch)

    def _write_records(self, records: list[tuple[int, bytes]], end: int) -> None:
        with atomic_file(self.path / "epochs.jsonl") as stream:
            stream.writelines(line for epoch, line in records if epoch < end)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and sync it; then drop those before the last two.

        Later ones go, too: a run that goes on from before them does those steps again.
        """
        path = self._checkpoint_file(*checkpoint.position)
        with explain_write_errors(path, "--run-dir"):
            path.parent.mkdir(exist_ok=True)
            checkpoint.save(path)
            files = self.checkpoint_files()
            at = files.index(path)
            for other in (*files[:at], *files[at + _KEPT_CHECKPOINTS :]):
                other.unlink()

    def _checkpoint_file(self, epoch: int, step: int) -> Path:
        return self.path / _CHECKPOINTS / f"{epoch:06d}-{step:08d}.safetensors"

    def checkpoint_at(self, epoch: int, step: int) -> Checkpoint:
        """The checkpoint of a position, which is there.

        Raises:
            UserError: it cannot be read, or is damaged.
        """
        file = self._checkpoint_file(epoch, step)
        try:
            return Checkpoint.load(file)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error

    def checkpoint_files(self) -> list[Path]:
        """The checkpoints that are there, the newest first."""
        return sorted(self.path.glob(f"{_CHECKPOINTS}/*-*.safetensors"), reverse=True)

    def load_checkpoint(
        self, warn: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr)
    ) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where the run has none.

        Args:
            warn: told of those that are damaged.

        Raises:
            UserError: there are some, but none can be read.
        """
        files = self.checkpoint_files()
        for file in files:
            try:
                return Checkpoint.load(file)
            except DamagedError as error:
                warn(f"distsage: {error}; taking the one before it")
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror}") from error
        if files:
            raise UserError(
                f"all checkpoints in {files[0].parent} are damaged; give --resume never to train "
                "from the beginning"
            )
        return None

    def save_model(self, origin: Origin, best: Best) -> None:
        """Write the weights of the best epoch, and how to rebuild the model."""
        path = self.path / "model.safetensors"
        about = {**dataclasses.asdict(origin), "epoch": best.epoch, "val": best.scores["val"]}
        with explain_write_errors(path, "--run-dir"):
            write_tensors(path, best.weights, about)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the result."""
        path = self.path / "summary.json"
        with explain_write_errors(path, "--run-dir"):
            write_json(path, summary)
        self.event("finished")

    def load_model(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Read back what `save_model` wrote: the description and the weights.

        Raises:
            UserError: there is no model, or it is damaged.
        """
        path = self.path / "model.safetensors"
        try:
            weights, description = read_tensors(path)
        except OSError as error:
            raise UserError(
                f"{self.path} holds no trained model (cannot read {path.name}: "
                f"{error.strerror}); name the --run-dir of a run"
            ) from error
        return description, weights


def _read_records(path: Path) -> list[tuple[int, bytes]]:
    """The epochs that a run has recorded, each with its line.

    Raises:
        UserError: a line is no record.
    """
    file = path / "epochs.jsonl"
    records = []
    try:
        for line in file.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # the host was lost while it was written
            records.append((int(json.loads(line)["epoch"]), line))
    except FileNotFoundError:
        pass  # stopped in its first epoch
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"cannot go on from {path}: {file} is damaged in line {len(records) + 1} ({error})"
        ) from error
    return records


@contextlib.contextmanager
def note_failure(run: RunDirectory) -> Iterator[None]:
    """Around the local training: what ends it early, other than a signal, becomes an event."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(UserError):  # the disk may be what is wrong
            run.event("failed", why=str(error) or type(error).__name__)
        raise


def plain(value: Any) -> Any:
    """The same value in terms that YAML and JSON know."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
