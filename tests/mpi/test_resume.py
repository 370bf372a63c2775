"""A job that is killed, or asked to stop, goes on and comes to the same weights to the last bit."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Partitioned
from jobs import Job, epochs, train, train_arguments

from distsage.data.datasets import load_graph
from distsage.train.run_directory import RunDirectory

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(600)]

HOSTS = 3
NUM_EPOCHS = 30  # of which three jobs, one after the other, may be stopped
OPTIONS = [f"--num-epochs={NUM_EPOCHS}", "--eval-every=5", "--batch-size=40", "--fan-out=4,4"]
OPTIONS += ["--num-hidden=16", "--checkpoint-minutes=0.001"]


@pytest.fixture(scope="module")
def parts(partitioned: Partitioned) -> Path:
    return partitioned(load_graph("synthetic:6000:10"), HOSTS)


@pytest.fixture(scope="module")
def undisturbed(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir: Path = tmp_path_factory.mktemp("undisturbed")
    train(2 * HOSTS, parts, run_dir, *OPTIONS, hosts=HOSTS)
    return run_dir


def position(run_dir: Path) -> tuple[int, int]:
    files = RunDirectory(run_dir).checkpoint_files()
    epoch, _, step = files[0].stem.partition("-") if files else ("0", "", "0")
    return int(epoch), int(step)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same(one: Path, other: Path) -> None:
    numbers = ("epoch", "loss", "val", "test", "steps", "edges")
    a, b = ([{name: r.get(name) for name in numbers} for r in epochs(d)] for d in (one, other))
    assert a == b
    mine, its = (RunDirectory(path).load_checkpoint() for path in (one, other))
    assert mine is not None
    assert its is not None
    assert mine.position == its.position == (NUM_EPOCHS, 0)
    for weights, others in (
        (mine.weights, its.weights),
        (mine.optimizer, its.optimizer),
        (RunDirectory(one).load_model()[1], RunDirectory(other).load_model()[1]),
    ):
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def in_an_epoch(run_dir: Path) -> Callable[[], bool]:
    """Whether there is a checkpoint in the middle of an epoch, after the second."""
    return lambda: position(run_dir) > (2, 0) and position(run_dir)[1] > 0


def has_trained(run_dir: Path, num_epochs: int) -> bool:
    return (run_dir / "epochs.jsonl").exists() and len(epochs(run_dir)) >= num_epochs


@pytest.fixture(scope="module")
def killed(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose job was killed in the middle of an epoch. Tests go on from copies of it."""
    run_dir: Path = tmp_path_factory.mktemp("killed")
    job = Job(2 * HOSTS, *train_arguments(parts, run_dir, *OPTIONS, hosts=HOSTS))
    wait_until(in_an_epoch(run_dir))
    os.kill(job.rank_processes()[3], signal.SIGKILL)
    job.wait(status=None)
    assert in_an_epoch(run_dir)()
    return run_dir


def test_a_killed_job_goes_on(parts: Path, undisturbed: Path, killed: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(killed, tmp_path / "run"))
    again = train(2 * HOSTS, parts, run_dir, *OPTIONS, "--resume", "auto", hosts=HOSTS)
    assert f"going on from {run_dir} at step " in again.stdout
    assert_same(undisturbed, run_dir)


def test_a_job_that_is_asked_to_stop_goes_on(
    parts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Under one MPI after the other, then to its end."""
    options = [*OPTIONS, "--checkpoint-minutes=10", "--resume=auto"]
    reached = (0, 0)
    # Intel's mpirun is a shell script that passes no signal on.
    for mpi, whom in (("openmpi", "mpirun"), ("mpich", "mpirun"), ("intel", "a watcher")):
        job = Job(2 * HOSTS, *train_arguments(parts, tmp_path, *options, hosts=HOSTS), mpi=mpi)
        before, _ = reached
        wait_until(partial(has_trained, tmp_path, before + 1))
        if whom == "mpirun":
            job.process.send_signal(signal.SIGUSR1)
        else:
            rank = job.rank_processes()[4]
            watcher = Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1]
            os.kill(int(watcher), signal.SIGUSR1)
        stopped = job.wait(status=0)
        assert reached < position(tmp_path) < (NUM_EPOCHS, 0), mpi
        epoch, step = reached = position(tmp_path)
        sentence = f"stopped at step {step} of epoch {epoch}, because it was asked to; with "
        assert f"{sentence}--resume" in stopped.stdout, mpi
        assert not (tmp_path / "summary.json").exists()
    train(2 * HOSTS, parts, tmp_path, *options, hosts=HOSTS)
    assert_same(undisturbed, tmp_path)


@pytest.mark.parametrize(("trainers", "hosts"), [(2, 2), (6, 3)])
def test_another_number_of_trainers_begins_the_epoch_anew(
    trainers: int, hosts: int, parts: Path, killed: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(killed, tmp_path / "run"))
    epoch, step = position(run_dir)
    again = train(2 * trainers, parts, run_dir, *OPTIONS, "--resume", "auto", hosts=hosts)
    assert f"going on from {run_dir} at step {step} of epoch {epoch}\n" in again.stdout
    said = f"{trainers} trainers instead of 3: the epoch begins anew with the weights as they"
    assert said in again.stdout
    assert [record["epoch"] for record in epochs(run_dir)] == list(range(NUM_EPOCHS))
    steps = [record["steps"]["per_trainer"] for record in epochs(run_dir)]
    assert steps == [steps[0]] * epoch + [steps[-1]] * (NUM_EPOCHS - epoch)
    assert [len(steps[0]), len(steps[-1])] == [3, trainers]


def test_a_finished_run_stays_as_it_is(parts: Path, undisturbed: Path) -> None:
    before = {path: path.read_bytes() for path in undisturbed.rglob("*.*") if path.is_file()}
    again = train(2 * HOSTS, parts, undisturbed, *OPTIONS, "--resume", "auto", hosts=HOSTS)
    assert (
        f"{undisturbed} is finished: its {NUM_EPOCHS} epochs are trained; raise --num-epochs"
        in (again.stdout)
    )
    after = {path: path.read_bytes() for path in undisturbed.rglob("*.*") if path.is_file()}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed <= {"owner.txt", "ip_config.txt", *(f"rank-{r}.txt" for r in range(6))}


def test_another_model_is_refused_before_anything_is_loaded(parts: Path, undisturbed: Path) -> None:
    options = [*OPTIONS, "--num-hidden=32", "--resume=auto"]
    refused = train(2 * HOSTS, parts, undisturbed, *options, hosts=HOSTS, status=2)
    lines = [line for line in refused.stderr.splitlines() if line.startswith("distsage: ")]
    assert len(lines) == 1
    sentence = f"preflight, resume: {undisturbed} is of another model (hidden 16, not 32); name "
    assert sentence in lines[0]
    assert (undisturbed / "summary.json").exists()
