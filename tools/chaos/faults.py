"""What can go wrong with a run: how each fault is brought about, and put right again."""

import contextlib
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from signal import Signals
from typing import NamedTuple

from tools.slurm_cluster.jobs import Process, processes
from tools.slurm_cluster.settings import GRACE_SECONDS, URGENT

from .moments import Moment
from .run import Run

# A process that is to be killed comes up within this time of its job's start.
_UP_SECONDS = 60.0
# slurmd is missed by Slurm after 30 s; watchers miss each other after 10 s.
_SLURMD_SECONDS = (1.0, 15.0)
_LINK_SECONDS = (2.0, 25.0)

ENDED, REQUEUED, WENT_ON = "ended", "requeued", "went on"
"""What becomes of a job by a fault: it is over and has failed; Slurm will run it again; nothing."""


class NoTargetError(Exception):
    """The job was over before there was anything to strike."""


class Strike(NamedTuple):
    """A fault that is ready to happen.

    Attributes:
        what: it will happen to.
        fire: brings it about; takes no longer than it must.
        repair: puts it right.
        after: seconds until it is put right; None: when the job has ended or waits to run again.
    """

    what: str
    fire: Callable[[], object]
    repair: Callable[[], object] | None = None
    after: float | None = None


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        aim: finds out what to strike; waits for it to be there.
        ways: what may become of the job: ENDED, REQUEUED, WENT_ON.
        bound: seconds until that has become of it, at most.
        moments: when it may happen.
        training_seconds: that the job is made to train for, at least, without the fault.
        checkpoints: that have to be there before it.
        says: a pattern that one of distsage's lines has to match.
        leaves: a pattern of what may lie on a host until the next job sweeps it; "" for nothing.
    """

    aim: Callable[[Run, random.Random], Strike]
    ways: frozenset[str]
    bound: float = 40.0
    moments: tuple[Moment, ...] = tuple(Moment)
    training_seconds: float = 30.0
    checkpoints: int = 1
    says: str = ""
    leaves: str = ""


def _kill_rank(number: int, part: str, signal: Signals) -> Callable[[Run, random.Random], Strike]:
    """A signal to the "rank" or the "watcher" (`part`) of rank `number` or `number` + 2."""

    def aim(run: Run, rng: random.Random) -> Strike:
        rank = number + rng.choice((0, 2))
        found = run.wait_for(lambda: run.ranks().get(rank), _UP_SECONDS)
        if found is None:
            raise NoTargetError(f"rank {rank} did not come up")
        pid = getattr(found, part)
        whose = "" if part == "rank" else "'s watcher"
        return Strike(f"rank {rank}{whose} on {found.host}", lambda: os.kill(pid, signal))

    return aim


def _process(run: Run, host: str, name: str, of_job: bool) -> Process:
    def find() -> Process | None:
        for process in processes(run.site.cluster, [host]):
            ours = process.settings.get("SLURM_JOB_ID") == str(run.job)
            # The batch script asks for mpirun's version first.
            if process.name == name and ours == of_job and "--version" not in process.words:
                return process
        return None

    found = run.wait_for(find, _UP_SECONDS)
    if found is None:
        raise NoTargetError(f"no {name} on {host}")
    return found


def _kill_mpirun(run: Run, rng: random.Random) -> Strike:
    host = run.site.hosts[0]
    pid = _process(run, host, "prterun", of_job=True).pid  # what the wheel's mpirun becomes
    return Strike(f"mpirun on {host}", lambda: os.kill(pid, Signals.SIGKILL))


def _kill_slurmd(run: Run, rng: random.Random) -> Strike:
    host = rng.choice(run.site.hosts)
    pid = _process(run, host, "slurmd", of_job=False).pid
    return Strike(
        f"slurmd on {host}",
        lambda: os.kill(pid, Signals.SIGKILL),
        lambda: run.site.cluster.start_slurmd(host),
        rng.uniform(*_SLURMD_SECONDS),
    )


def _crash(index: int) -> Callable[[Run, random.Random], Strike]:
    def aim(run: Run, rng: random.Random) -> Strike:
        host = run.site.hosts[index]
        cluster = run.site.cluster
        return Strike(host, lambda: cluster.crash(host), lambda: cluster.restore(host))

    return aim


def _cut_link(run: Run, rng: random.Random) -> Strike:
    host, seconds = rng.choice(run.site.hosts), rng.uniform(*_LINK_SECONDS)
    cluster = run.site.cluster
    return Strike(
        f"{host} for {seconds:.0f} s",
        lambda: cluster.cut_link(host),
        lambda: cluster.mend_link(host),
        seconds,
    )


def _cancel(run: Run, rng: random.Random) -> Strike:
    return Strike("the job", lambda: run.site.slurm("scancel", str(run.job)))


def _requeue(run: Run, rng: random.Random) -> Strike:
    return Strike("the job", lambda: run.site.slurm("scontrol", "requeue", str(run.job)))


def _near_time_limit(run: Run, rng: random.Random) -> Strike:
    """The limit is lowered until the batch script's 120 s of warning have begun."""

    def repair() -> None:
        if not run.state().over:
            run.limit()

    return Strike("the job", lambda: run.limit(run.state().minutes + 2), repair)


def _preempt(run: Run, rng: random.Random) -> Strike:
    """A job of a higher partition asks for the same hosts, and runs for a second."""
    urgent = Run(run.site, run.directory, run.run_dir)

    def fire() -> None:
        words = ("sbatch", "--parsable", f"--partition={URGENT}", "--exclusive", "--time=5")
        nodes = (f"--nodelist={','.join(run.site.hosts)}", f"--nodes={len(run.site.hosts)}")
        job = run.site.slurm(*words, *nodes, "--output=/dev/null", "--wrap", "sleep 1")
        urgent.job_ids.append(int(job))

    def repair() -> None:
        if urgent.wait_for(lambda: urgent.state().over, _UP_SECONDS) is None:
            urgent.cancel()

    return Strike("the job", fire, repair)


def _fill_disk(run: Run, rng: random.Random) -> Strike:
    ballast = run.site.disk / "ballast"

    def fire() -> None:
        with open(ballast, "wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:  # until there is no room
                stream.write(bytes(2**20))

    return Strike("the run directory's", fire, lambda: ballast.unlink(missing_ok=True))


def _damage(how: str) -> Callable[[Run, random.Random], Strike]:
    """A rank is killed; the newest checkpoint is then found damaged, as after a bad disk."""

    def aim(run: Run, rng: random.Random) -> Strike:
        kill = _kill_rank(1, "rank", Signals.SIGKILL)(run, rng)
        share = rng.random()

        def repair() -> None:
            newest = run.checkpoints()[-1]
            size = newest.stat().st_size
            times = newest.stat().st_atime_ns, newest.stat().st_mtime_ns
            at = int(share * size)
            if how == "truncated":
                os.truncate(newest, at)
            else:
                with open(newest, "r+b") as stream:
                    stream.seek(at)
                    byte = stream.read(1)[0]
                    stream.seek(at)
                    stream.write(bytes([byte ^ 1 << rng.randrange(8)]))
            os.utime(newest, ns=times)

        return Strike(f"the newest, {how} at {100 * share:.0f} %", kill.fire, repair)

    return aim


_END = frozenset({ENDED})
_LATER = (Moment.TRAINING, Moment.CHECKPOINT)
# When mpirun's daemon on a host ends, Slurm kills all that it has started there, at once.
_BEING_STAGED = r"/distsage-stage\."

FAULTS: Mapping[str, Fault] = {
    "trainer-killed": Fault(_kill_rank(1, "rank", Signals.SIGKILL), _END),
    "server-killed": Fault(_kill_rank(0, "rank", Signals.SIGKILL), _END),
    "watcher-killed": Fault(_kill_rank(1, "watcher", Signals.SIGKILL), _END),
    "mpirun-killed": Fault(_kill_mpirun, _END, leaves=_BEING_STAGED),
    "slurmd-killed": Fault(_kill_slurmd, frozenset({WENT_ON, ENDED, REQUEUED}), bound=90),
    "trainer-stopped": Fault(_kill_rank(1, "rank", Signals.SIGSTOP), _END),
    "server-stopped": Fault(_kill_rank(0, "rank", Signals.SIGSTOP), _END),
    "host-crash": Fault(_crash(1), frozenset({REQUEUED, ENDED}), bound=90),
    "batch-host-crash": Fault(_crash(0), frozenset({REQUEUED, ENDED}), bound=120),
    "scancel": Fault(_cancel, _END, leaves=_BEING_STAGED),
    "preemption": Fault(
        _preempt, frozenset({REQUEUED}), bound=40 + GRACE_SECONDS, leaves=_BEING_STAGED
    ),
    # Slurm looks at time limits every 30 s.
    "time-limit": Fault(_near_time_limit, frozenset({REQUEUED}), bound=90, training_seconds=90),
    "requeue": Fault(_requeue, frozenset({REQUEUED}), leaves=_BEING_STAGED),
    "link-cut": Fault(_cut_link, frozenset({WENT_ON, ENDED, REQUEUED}), bound=90),
    "disk-full": Fault(_fill_disk, _END, says=r"cannot write /.*: No space left on device"),
    "checkpoint-truncated": Fault(_damage("truncated"), _END, moments=_LATER, checkpoints=2),
    "checkpoint-changed": Fault(_damage("changed"), _END, moments=_LATER, checkpoints=2),
}
