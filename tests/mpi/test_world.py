"""Collectives with a bound: values arrive, the missing are named, a mistake ends all ranks."""

from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from jobs import MPIS, Job

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).with_name("world_program.py")


def with_each_mpi(behaviour: str, status: int = 0) -> Mapping[str, CompletedProcess[str]]:
    """What came of four ranks that behave so, by MPI; side by side, since most of it is waiting."""
    jobs = {mpi: Job(4, PROGRAM, behaviour, mpi=mpi) for mpi in MPIS}
    return {mpi: job.wait(status) for mpi, job in jobs.items()}


def test_values_reach_every_rank() -> None:
    with_each_mpi("values")


@pytest.mark.parametrize("behaviour", ["missing", "slow, then stuck"])
def test_a_rank_that_does_not_answer_or_gets_on_no_more_is_named(behaviour: str) -> None:
    for mpi, ended in with_each_mpi(behaviour, status=3).items():
        assert "[0] hosts: no answer within 3 s from rank 2 on b" in ended.stdout, mpi


def test_slow_ranks_that_get_on_are_waited_for() -> None:
    with_each_mpi("slow")


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("one host", "distsage: preflight, room: b: too little; free some"),
        ("all", "distsage: preflight, room: too little; free some"),
    ],
)
def test_a_mistake_on_any_rank_ends_all_with_one_sentence(behaviour: str, sentence: str) -> None:
    for mpi, ended in with_each_mpi(behaviour, status=2).items():
        ours = [line for line in ended.stderr.splitlines() if "distsage" in line]
        assert ours == [sentence], mpi
        assert "Traceback" not in ended.stderr
