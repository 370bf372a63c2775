"""Collectives with a bound: values arrive, the missing are named, a mistake ends all ranks."""

from pathlib import Path

import pytest
from jobs import MPIS, mpirun

pytestmark = pytest.mark.mpi
with_each_mpi = pytest.mark.parametrize("mpi", MPIS)
PROGRAM = Path(__file__).with_name("world_program.py")


@with_each_mpi
def test_values_reach_every_rank(mpi):
    mpirun(4, PROGRAM, "values", mpi=mpi)


@with_each_mpi
def test_a_rank_that_does_not_answer_is_named(mpi):
    said = mpirun(4, PROGRAM, "missing", status=3, mpi=mpi).stdout
    assert "[0] hosts: no answer within 3 s from rank 2 on b" in said


@with_each_mpi
def test_slow_ranks_that_get_on_are_waited_for(mpi):
    mpirun(4, PROGRAM, "slow", mpi=mpi)


@with_each_mpi
def test_a_rank_that_gets_on_no_more_is_named(mpi):
    said = mpirun(4, PROGRAM, "slow, then stuck", status=3, mpi=mpi).stdout
    assert "[0] hosts: no answer within 3 s from rank 2 on b" in said


@with_each_mpi
@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("one host", "distsage: preflight, room: b: too little; free some"),
        ("all", "distsage: preflight, room: too little; free some"),
    ],
)
def test_a_mistake_on_any_rank_ends_all_with_one_sentence(mpi, behaviour, sentence):
    said = mpirun(4, PROGRAM, behaviour, status=2, mpi=mpi).stderr
    assert [line for line in said.splitlines() if "distsage" in line] == [sentence]
    assert "Traceback" not in said
