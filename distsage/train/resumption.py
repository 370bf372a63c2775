"""Where a run goes on, and when it stops early. Runs on trainer 0 and in the local run.

`--resume` says from where: `auto` takes the newest checkpoint of the run directory, if there is
one; a path takes that run's.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distsage.config import TrainingOptions, job_name
from distsage.errors import UserError
from distsage.train.checkpoint import Checkpoint, Origin, going_on
from distsage.train.run_directory import RunDirectory
from distsage.train.saver import Saver

# Before the end of Slurm's time limit a run stops so early, as `--signal` in the batch script asks.
_STOP_SECONDS = 120.0
# Of a short time limit no more than this share.
_STOP_SHARE = 0.1


@dataclass(frozen=True)
class Resumption:
    """Where a run goes on.

    Attributes:
        source: directory of the run that it goes on from.
        epoch, step: of the checkpoint.
        next_step: whether the next step is taken; if not, the epoch begins anew.
        finished: whether all epochs are trained and summed up already.
        notes: what people have to be told.
    """

    source: Path
    epoch: int
    step: int
    next_step: bool
    finished: bool
    notes: tuple[str, ...]

    @property
    def position(self) -> tuple[int, int]:
        """From where the run goes on."""
        return self.epoch, self.step if self.next_step else 0

    def load(self) -> Checkpoint:
        """Read the checkpoint.

        Raises:
            UserError: it cannot be read any more.
        """
        return RunDirectory(self.source).checkpoint_at(self.epoch, self.step)

    def __str__(self) -> str:
        if self.finished:
            return (
                f"{self.source} is finished: its {self.epoch} epochs are trained; raise "
                "--num-epochs to train on, or give --resume never to train from the beginning"
            )
        return "\n".join(
            (f"going on from {self.source} at step {self.step} of epoch {self.epoch}", *self.notes)
        )


def find_resumption(config: TrainingOptions, origin: Origin) -> Resumption | None:
    """The run to go on with, if `--resume` names one and it has a checkpoint.

    Raises:
        UserError: it is of another graph, model or task; its checkpoints are all damaged; or
            `--resume` names a directory without any.
    """
    if config.resume == "never":
        return None
    source = config.run_dir
    checkpoint = RunDirectory(source).load_checkpoint()
    if config.resume != "auto" and (
        checkpoint is None or checkpoint.origin.config.get("resume") != config.resume
    ):
        # Not this run already, which has got on since it went on from there.
        source = Path(config.resume)
        checkpoint = RunDirectory(source).load_checkpoint()
        if checkpoint is None:
            raise UserError(f"--resume {source}: there is no checkpoint; name a run's directory")
    if checkpoint is None:
        return None
    next_step, notes = going_on(checkpoint.origin, origin, source)
    trained = checkpoint.epoch >= config.num_epochs
    return Resumption(
        source,
        checkpoint.epoch,
        checkpoint.step,
        next_step,
        trained and source == config.run_dir and (source / "summary.json").exists(),
        tuple(notes),
    )


def begin_run(config: TrainingOptions, resumption: Resumption | None) -> RunDirectory:
    """Prepare the run directory, of a new run or of one that goes on.

    Raises:
        UserError: it cannot be written.
    """
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    job = {"job": job_name(), "requeues": int(restarts) if restarts.isdecimal() else 0}
    if resumption is None:
        run = RunDirectory.begin(config.run_dir, config)
        run.event("began", **job)
        return run
    run = RunDirectory.go_on(config.run_dir, config, resumption.source, resumption.epoch)
    epoch, step = resumption.position
    run.event("resumed", source=str(resumption.source), epoch=epoch, step=step, **job)
    return run


class StopWanted:
    """Whether a run is to stop early, with a checkpoint: asked every step.

    It is when somebody has asked for it, and when Slurm's time limit is near, which a batch script
    tells in SLURM_JOB_END_TIME, in seconds since 1970.

    Args:
        asked: whether somebody has asked.
    """

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked
        self._end = float("inf")
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        if end.isdecimal():
            left = max(int(end) - time.time(), 0)
            self._end = int(end) - min(_STOP_SECONDS, _STOP_SHARE * left)

    def __call__(self) -> bool:
        """Whether to stop now."""
        return self._asked() or time.time() > self._end

    @property
    def why(self) -> str:
        """For messages."""
        return "Slurm's time limit is near" if time.time() > self._end else "it was asked to"


def stopped_sentence(saver: Saver, why: str) -> str:
    """What a run says that has stopped early.

    Args:
        saver: has written the last checkpoint.
        why: it stopped.
    """
    assert saver.written is not None
    epoch, step = saver.written
    return (
        f"stopped at step {step} of epoch {epoch}, because {why}; with --resume auto and the same "
        "--run-dir the run goes on from there"
    )
