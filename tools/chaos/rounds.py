"""One round: a run, a fault at a random moment, the run's end, judged by the undisturbed run's."""

import json
import math
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from .faults import ENDED, FAULTS, REQUEUED, WENT_ON, NoTargetError, Strike
from .moments import Moment, arrive, come_near
from .run import NUM_EPOCHS, POLL_SECONDS, Run
from .site import ChaosError, Site, clear

# A job that nothing disturbs is over by then, and so is one that goes on with a run.
_JOB_SECONDS = 150.0
# So long takes a disk that is slow enough for a fault to hit a checkpoint being written.
_FSYNC_SECONDS = 0.2
# What an epoch's record says of time, traffic and hosts, which no two runs have in common.
_OWN_TO_A_RUN = re.compile(r"seconds|bytes|_ms$|wait|^hosts$")


@dataclass(frozen=True)
class Reference:
    """The undisturbed run.

    Attributes:
        epochs: records of its epochs.
        tensors: of its last checkpoint.
        summary: of it.
        steps: of one epoch.
        startup_seconds: from the start of its job to its first epoch's end.
    """

    epochs: Sequence[dict[str, Any]]
    tensors: dict[str, np.ndarray]
    summary: dict[str, Any]
    steps: int
    startup_seconds: float


@dataclass(frozen=True)
class Plan:
    """What happens in a round; follows from the seed, the round's number and the faults' names."""

    number: int
    fault: str
    moment: Moment
    staged: bool
    seed: str


@dataclass
class Outcome:
    """What came of a round.

    Attributes:
        plan: of the round.
        struck: what the fault has happened to; empty when the job was over before.
        moment: that the fault has hit.
        way: ENDED, REQUEUED or WENT_ON.
        ended_seconds: from the fault until the job had ended or waited to run again.
        lost_seconds: of training that had to be repeated.
        round_seconds: that the round took.
        lost: whether the run did not come to its end.
        problems: what was not as it has to be.
        said: distsage's lines in the output.
        output: of the jobs; kept where there are problems.
    """

    plan: Plan
    struck: str = ""
    moment: str = ""
    way: str = ""
    ended_seconds: float | None = None
    lost_seconds: float | None = None
    round_seconds: float = 0.0
    lost: bool = False
    problems: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    output: str = ""


def plans(count: int, seed: int, names: Sequence[str]) -> list[Plan]:
    """Draw rounds: every fault as often as every other, to within one, in random order."""
    rng = random.Random(seed)
    moments = {name: rng.sample(FAULTS[name].moments, len(FAULTS[name].moments)) for name in names}
    order: list[str] = []
    while len(order) < count:
        order += rng.sample(names, len(names))
    drawn = []
    for number, name in enumerate(order[:count]):
        turn = moments[name]
        moment = turn[order[:number].count(name) % len(turn)]
        of_round = f"{seed}-{number}"
        staged = random.Random(of_round).random() < 0.5
        drawn.append(Plan(number, name, moment, staged, of_round))
    return drawn


def undisturbed(site: Site) -> Reference:
    """Train without a fault.

    Raises:
        ChaosError: even that fails; the message shows the output.
    """
    run = Run(site, site.shared / "undisturbed", site.disk / "undisturbed")
    run.submit()
    run.wait_for(lambda: run.state().name == "RUNNING", _JOB_SECONDS)
    began = time.monotonic()
    run.wait_for(run.epochs, _JOB_SECONDS)
    startup_seconds = time.monotonic() - began
    run.wait_for(lambda: run.state().over, _JOB_SECONDS)
    state = run.state()
    if (state.name, state.exit_code) != ("COMPLETED", "0:0"):
        raise ChaosError(f"the undisturbed run is {state.name}:\n{run.output()}")
    if left := site.left():
        raise ChaosError(f"the undisturbed run has left {', '.join(left)}")
    epochs = _epochs(run.run_dir)
    return Reference(
        epochs=epochs,
        tensors=_last_tensors(run),
        summary=_summary(run.run_dir),
        steps=int(epochs[0]["steps"]["per_trainer"][0]),
        startup_seconds=startup_seconds,
    )


def play(site: Site, plan: Plan, reference: Reference) -> Outcome:
    """Carry out a round; nothing of it is left afterwards."""
    directory = site.shared / f"round-{plan.number}"
    run = Run(site, directory, site.disk / f"round-{plan.number}", plan.staged)
    outcome = Outcome(plan)
    began = time.monotonic()
    try:
        _disturb(run, outcome, reference)
        _go_on(run, outcome)
        if not outcome.lost:
            outcome.problems += _differences(run, reference)
    finally:
        run.cancel()
        outcome.said = run.said()
        outcome.output = run.output() if outcome.problems else ""
        outcome.round_seconds = time.monotonic() - began
        clear(run.directory)
        clear(run.run_dir)
    if left := site.left():
        outcome.problems.append(f"left at the end: {', '.join(left)}")
    return outcome


def _disturb(run: Run, outcome: Outcome, reference: Reference) -> None:
    """Start the run, let the fault happen, see what becomes of the job, put the fault right."""
    plan, fault = outcome.plan, FAULTS[outcome.plan.fault]
    rng = random.Random(plan.seed)
    slow = {"pace": fault.training_seconds / (NUM_EPOCHS * reference.steps)}
    if plan.moment is Moment.CHECKPOINT:
        slow["fsync"] = _FSYNC_SECONDS
    run.submit(fault=slow)
    if not come_near(plan.moment, run, fault.checkpoints, rng):
        outcome.problems.append("not struck: the job did not get there in time")
        return
    try:
        strike = fault.aim(run, rng)
    except NoTargetError as error:
        outcome.problems.append(f"not struck: {error}")
        return
    hit = arrive(plan.moment, run, reference.startup_seconds, rng)
    if run.state().over:
        outcome.problems.append("not struck: the job was over before")
        return
    outcome.struck, outcome.moment = strike.what, plan.moment.value if hit else "no checkpoint"
    struck_at, wall = time.monotonic(), time.time()
    strike.fire()
    outcome.way = _what_becomes_of(run, strike, struck_at, fault.bound)
    outcome.ended_seconds = time.monotonic() - struck_at
    if not outcome.way:
        outcome.problems.append(f"the job is still {run.state().name} after {fault.bound:.0f} s")
        run.cancel()
        run.wait_for(lambda: run.state().over, fault.bound)
        outcome.way = ENDED
    if outcome.way not in fault.ways:
        outcome.problems.append(f"the job {outcome.way}: {run.state()}")
    if not any(re.search(fault.says, line) for line in ["", *run.said()]):
        outcome.problems.append(f"no line says {fault.says!r}")
    if outcome.way == WENT_ON:
        outcome.ended_seconds, outcome.lost_seconds = None, 0.0
        return
    if strike.repair is not None and strike.after is None:
        strike.repair()
    left = [one for one in run.site.left() if not (fault.leaves and re.search(fault.leaves, one))]
    if left:
        outcome.problems.append(f"left after the fault: {', '.join(left)}")
    outcome.lost_seconds = _lost_seconds(run, plan, wall)


def _what_becomes_of(run: Run, strike: Strike, struck_at: float, bound: float) -> str:
    """Wait until the job has ended or waits to run again; "" when it has not within `bound`.

    A fault that is put right meanwhile is; the bound then counts from there.
    """
    deadline = struck_at + bound
    repair = strike.repair if strike.after is not None else None
    while True:
        state = run.state()
        over = state.over or (state.name == "PENDING" and state.restarts > 0)
        if repair is not None and (over or time.monotonic() > struck_at + (strike.after or 0)):
            repair()
            repair, deadline = None, time.monotonic() + bound
        if over:
            if state.name == "COMPLETED" and state.restarts == 0:
                return WENT_ON
            return ENDED if state.over else REQUEUED
        if time.monotonic() > deadline:
            return ""
        time.sleep(POLL_SECONDS)


def _lost_seconds(run: Run, plan: Plan, struck: float) -> float:
    """How long before the fault the checkpoint was written that the run goes on from."""
    checkpoints = _intact(run.checkpoints(), plan)
    if checkpoints:
        return max(0.0, struck - checkpoints[-1].stat().st_mtime)
    # From the start: what was trained until then, which is nothing before the first epoch's end.
    records = run.run_dir / "epochs.jsonl"
    if not records.exists():
        return 0.0
    return sum(record["seconds"] for record in _epochs(run.run_dir))


def _intact(checkpoints: list[Path], plan: Plan) -> list[Path]:
    """Those that a run can go on from: all but the newest where the fault has damaged that."""
    return checkpoints[:-1] if plan.fault.startswith("checkpoint-") else checkpoints


def _go_on(run: Run, outcome: Outcome) -> None:
    """Bring the run to its end: by Slurm, if the job waits to run again, else by a new job."""
    before, checkpoints = run.output(), run.checkpoints()
    resumable = _intact(checkpoints, outcome.plan)
    if run.state().over and outcome.way != WENT_ON:
        run.submit()
    deadline = time.monotonic() + _JOB_SECONDS
    while not (state := run.state()).over:
        if state.name == "PENDING" and state.restarts > 0:
            # At once instead of after Slurm's two minutes, unless it has just started by itself.
            try:
                run.site.slurm("scontrol", "update", f"JobId={run.job}", "StartTime=now")
            except ChaosError:
                if run.state().name == "PENDING":
                    raise
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    if (state.name, state.exit_code) != ("COMPLETED", "0:0"):
        outcome.lost = True
        outcome.problems.append(f"the run did not go on to its end: {state}")
        return
    said = run.output()[len(before) :]
    if outcome.way in (REQUEUED, ENDED) and resumable:
        epoch, step = map(int, resumable[-1].stem.split("-"))
        if epoch == NUM_EPOCHS:  # all was done when the fault came
            goes_on = f"is finished: its {NUM_EPOCHS} epochs are trained"
        else:
            goes_on = f"at step {step} of epoch {epoch}\n"
        if goes_on not in said:
            outcome.problems.append(f"did not go on from {resumable[-1].name}")
    if len(resumable) < len(checkpoints) and "taking the one before it" not in said:
        outcome.problems.append(f"not a word about the damage of {checkpoints[-1].name}")


def _differences(run: Run, reference: Reference) -> list[str]:
    """In what a finished run differs from the undisturbed one; temporary files that it has left."""
    found = [f"left {path.relative_to(run.run_dir)}" for path in run.temporary_files()]
    found += [f"left {path}" for path in (run.directory / "logs").iterdir()]
    epochs = _epochs(run.run_dir)
    numbers = [record["epoch"] for record in epochs]
    if numbers != [record["epoch"] for record in reference.epochs]:
        return [*found, f"epochs.jsonl has epochs {numbers}"]
    for own, other in zip(epochs, reference.epochs, strict=True):
        if own.keys() != other.keys():
            found.append(f"epoch {own['epoch']} has records {sorted(own.keys() ^ other.keys())}")
            continue
        for name in own:
            if not _OWN_TO_A_RUN.search(name) and not _same(own[name], other[name]):
                found.append(f"{name} of epoch {own['epoch']}: {own[name]}, not {other[name]}")
    summary = _summary(run.run_dir)
    for name in ("train", "val", "test", "best_epoch", "epochs"):
        if not _same(summary.get(name), reference.summary.get(name)):
            found.append(f"{name} of the summary: {summary.get(name)}")
    tensors = _last_tensors(run)
    if tensors.keys() != reference.tensors.keys():
        return [*found, f"tensors {sorted(tensors.keys() ^ reference.tensors.keys())}"]
    for name, value in tensors.items():
        if value.tobytes() != reference.tensors[name].tobytes():
            found.append(f"tensor {name} differs")
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a record are equal, to the last bit; NaN is equal to NaN."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _epochs(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "epochs.jsonl").read_text().splitlines()]


def _summary(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def _last_tensors(run: Run) -> dict[str, np.ndarray]:
    """Tensors of the last checkpoint and, as `answer.NAME`, of the model that predicts."""
    tensors = dict(safetensors.numpy.load_file(run.checkpoints()[-1]))
    answer = safetensors.numpy.load_file(run.run_dir / "model.safetensors")
    return tensors | {f"answer.{name}": value for name, value in answer.items()}
