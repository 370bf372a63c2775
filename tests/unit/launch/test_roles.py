"""Roles are a pure function; the table includes the rows that must fail."""

import pytest

from distsage.errors import UserError
from distsage.launch.roles import assign, emulated_layout, launched_ranks

NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("hosts", "rank", "role", "host", "pair_on_host", "trainer_rank", "server_id"),
    [
        ([0, 0], 0, "server", 0, 0, 0, 0),
        ([0, 0], 1, "trainer", 0, 0, 0, 0),
        ([0, 0, 1, 1], 2, "server", 1, 0, 1, 1),
        ([0, 0, 1, 1], 3, "trainer", 1, 0, 1, 1),
        ([0, 0, 0, 0, 1, 1, 1, 1], 3, "trainer", 0, 1, 1, 1),
        ([0, 0, 0, 0, 1, 1, 1, 1], 6, "server", 1, 1, 3, 3),
        # Slurm lists the hosts in another order than mpirun started them.
        ([1, 1, 0, 0], 0, "server", 1, 0, 1, 1),
        # Pairs dealt out in turns.
        ([0, 0, 1, 1, 0, 0, 1, 1], 5, "trainer", 0, 1, 1, 1),
    ],
)
def test_assignment(hosts, rank, role, host, pair_on_host, trainer_rank, server_id):
    names = NAMES[: max(hosts) + 1]
    got = assign(rank, hosts, names)
    assert (got.role, got.host, got.pair_on_host) == (role, host, pair_on_host)
    assert (got.trainer_rank, got.server_id) == (trainer_rank, server_id)
    assert got.num_trainers * 2 == got.size == len(hosts)


@pytest.mark.parametrize("hosts", [[0] * 8, [0, 0, 1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 2, 2]])
def test_ranks_of_each_role_are_numbered_without_gaps(hosts):
    names = NAMES[: max(hosts) + 1]
    everyone = [assign(rank, hosts, names) for rank in range(len(hosts))]
    for role, number in (("trainer", "trainer_rank"), ("server", "server_id")):
        numbers = sorted(getattr(one, number) for one in everyone if one.role == role)
        assert numbers == list(range(len(hosts) // 2))


@pytest.mark.parametrize(
    ("hosts", "names", "sentence"),
    [
        ([0], ["a"], "1 ranks, an odd number"),
        ([0, 0, 1], ["a", "b"], "3 ranks, an odd number"),
        ([0, 1, 0, 1], ["a", "b"], "ranks 0 and 1 are a pair but run on a and b"),
        ([0, 0, 0, 0, 1, 1], ["a", "b"], "a: 2, b: 1"),
    ],
)
def test_layouts_that_cannot_work(hosts, names, sentence):
    with pytest.raises(UserError, match=sentence):
        assign(0, hosts, names)


def test_emulated_hosts_share_the_ranks_evenly():
    assert emulated_layout(8, 2) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert emulated_layout(4, 1) == [0, 0, 0, 0]
    with pytest.raises(UserError, match="multiple of 6"):
        emulated_layout(8, 3)


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, 2),  # MPICH, Intel MPI, srun --mpi=pmi2
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "8"}, 8),  # srun --mpi=pmix
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1),
        # In a batch script Slurm says how many tasks the job has, but has started one process.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 1),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 1),  # srun --mpi=none
    ],
)
def test_ranks_of_every_launcher(environment, ranks):
    assert launched_ranks(environment) == ranks
