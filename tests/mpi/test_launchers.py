"""Training under MPICH and Intel MPI, with their own launchers: as under Open MPI."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import Partitioned, planted
from jobs import MPIS, Job, losses, mpirun, train, train_arguments

from distsage.train.records import read_run

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]

QUICK = ("--num-hidden", 16, "--batch-size", 40, "--fan-out", "4,6", "--num-workers", 1)
OTHERS = [name for name in MPIS if name != "openmpi"]


@pytest.fixture(scope="module")
def under_open_mpi(partitioned: Partitioned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others are held against."""
    run_dir = tmp_path_factory.mktemp("openmpi")
    train(4, partitioned(planted(), 2), run_dir, *QUICK, "--num-epochs", 3, hosts=2)
    return run_dir


@pytest.mark.parametrize("mpi", OTHERS)
def test_a_run_is_the_same(
    mpi: str, under_open_mpi: Path, partitioned: Partitioned, tmp_path: Path
) -> None:
    parts = partitioned(planted(), 2)
    ended = train(4, parts, tmp_path, *QUICK, "--num-epochs", 3, hosts=2, mpi=mpi)
    assert ended.stderr == ""
    assert losses(tmp_path) == losses(under_open_mpi)
    np.testing.assert_equal(
        *(
            safetensors.numpy.load_file(run_dir / "model.safetensors")
            for run_dir in (tmp_path, under_open_mpi)
        )
    )


@pytest.mark.parametrize("mpi", OTHERS)
def test_preflight(mpi: str, partitioned: Partitioned) -> None:
    arguments = ["--parts", partitioned(planted(), 2), "--emulated-hosts", 2]
    ended = mpirun(4, "-m", "distsage", "preflight", *arguments, mpi=mpi)
    assert "ready to train" in ended.stdout
    assert ended.stderr == ""


@pytest.mark.parametrize("mpi", OTHERS)
def test_a_mistake_is_one_sentence(mpi: str, partitioned: Partitioned, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--parts", partitioned(planted(), 2), "--run-dir", run_dir]
    ended = mpirun(3, "-m", "distsage", "train", *arguments, status=2, mpi=mpi)
    assert ended.stdout == ""
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("distsage: preflight, pairing: the job has 3 ranks, an odd number")
    assert not run_dir.exists()


@pytest.mark.parametrize("role", ["server", "trainer"])
@pytest.mark.parametrize("mpi", OTHERS)
def test_a_killed_rank_ends_the_job_and_is_named(
    mpi: str, role: str, partitioned: Partitioned, tmp_path: Path
) -> None:
    endless = (*QUICK, "--num-epochs", 99999, "--eval-every", 99999)
    job = Job(4, *train_arguments(partitioned(planted(), 2), tmp_path, *endless, hosts=2), mpi=mpi)
    job.trains()
    rank = {"server": 2, "trainer": 3}[role]
    os.kill(job.rank_processes()[rank], signal.SIGKILL)
    ours = [line for line in job.wait(None).stderr.splitlines() if "distsage" in line]
    assert len(ours) == 1
    assert ours[0].startswith(f"distsage: rank {rank} ({role} on ")
    assert ours[0].endswith("): killed by SIGKILL")
    assert read_run(tmp_path).state == ("failed", ours[0].removeprefix("distsage: "))
