"""When a fault happens."""

import enum
import os
import random
import time

from .run import CHECKPOINT_SECONDS, NUM_EPOCHS, Run

_COME_SECONDS = 60.0


class Moment(enum.Enum):
    """What a job does when the fault happens."""

    STARTUP = "start-up"
    TRAINING = "training"
    CHECKPOINT = "checkpoint"


def come_near(moment: Moment, run: Run, checkpoints: int, rng: random.Random) -> bool:
    """Wait until the job is about to be what `moment` says; False where that did not come in time.

    Args:
        moment: that is waited for.
        run: its latest job has just been submitted.
        checkpoints: there have to be by then; counts during training only.
        rng: chooses which epoch it is.
    """
    if run.wait_for(lambda: run.state().name == "RUNNING", _COME_SECONDS) is None:
        return False
    if moment is Moment.STARTUP:
        return True
    epoch = rng.randint(1, NUM_EPOCHS // 3)
    come = run.wait_for(
        lambda: run.epochs() >= epoch and len(run.checkpoints()) >= checkpoints, _COME_SECONDS
    )
    return come is not None


def arrive(moment: Moment, run: Run, startup_seconds: float, rng: random.Random) -> bool:
    """Wait for a random instant of `moment`; False where a checkpoint did not come in time.

    Args:
        moment: that is waited for, after `come_near`.
        run: whose latest job it is.
        startup_seconds: how long the start-up of an undisturbed run has taken.
        rng: chooses the instant.
    """
    if moment is Moment.CHECKPOINT:
        return _is_writing(run)
    most = startup_seconds if moment is Moment.STARTUP else CHECKPOINT_SECONDS
    time.sleep(rng.uniform(0, most))
    return True


def _is_writing(run: Run) -> bool:
    """Wait for the temporary file of a checkpoint, without a pause: it is there for a moment."""
    directory = run.run_dir / "checkpoints"
    deadline = time.monotonic() + 4 * CHECKPOINT_SECONDS
    while time.monotonic() < deadline:
        if directory.exists() and any(name.endswith(".tmp") for name in os.listdir(directory)):
            return True
    return False
