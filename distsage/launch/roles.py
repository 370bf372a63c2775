"""Who does what: a pure function of (rank, size, hosts). Runs on every rank before DGL is imported.

Even ranks serve, odd ranks train. Ranks 2k and 2k + 1 form pair k and share a host; every host runs
the same number of pairs, and its index is the part that it holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distsage.errors import UserError

Role = Literal["server", "trainer"]


@dataclass(frozen=True)
class Assignment:
    """Who one rank is: its role, its host and its pair.

    Attributes:
        rank: in MPI's world of `size` ranks.
        size: number of ranks.
        role: "server" for even ranks, "trainer" for odd ones.
        host: index of the host, equal to the part that it holds.
        num_hosts: number of hosts.
        pair_on_host: which of the host's pairs this rank belongs to, from 0.
        pairs_per_host: the same on every host.
    """

    rank: int
    size: int
    role: Role
    host: int
    num_hosts: int
    pair_on_host: int
    pairs_per_host: int

    @property
    def trainer_rank(self) -> int:
        """Rank in torch.distributed; trainers of one host are neighbours."""
        return self.host * self.pairs_per_host + self.pair_on_host

    @property
    def num_trainers(self) -> int:
        """Size of torch.distributed's world."""
        return self.num_hosts * self.pairs_per_host

    @property
    def server_id(self) -> int:
        """DGL's id of the server of this pair; the first of a host is its main server."""
        return self.host * self.pairs_per_host + self.pair_on_host


def launched_ranks(environment: Mapping[str, str]) -> int:
    """How many ranks an MPI launcher has started with this process; 1 where none has.

    A batch script has Slurm's variables too, but none of a step that speaks PMI.
    """
    names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]  # Open MPI; MPICH, Intel MPI, srun --mpi=pmi2
    if "PMIX_RANK" in environment:  # srun --mpi=pmix
        names.append("SLURM_STEP_NUM_TASKS")
    sizes = (environment.get(name, "") for name in names)
    return max((int(size) for size in sizes if size.isdecimal()), default=1)


def emulated_layout(size: int, num_hosts: int) -> list[int]:
    """Host index of every rank when `num_hosts` hosts are acted on one machine.

    Raises:
        UserError: the ranks cannot be dealt out evenly in pairs.
    """
    if size % (2 * num_hosts) != 0:
        raise UserError(
            f"{size} ranks cannot form the same number of server-trainer pairs on {num_hosts} "
            f"emulated hosts; start a multiple of {2 * num_hosts} ranks"
        )
    return [rank * num_hosts // size for rank in range(size)]


def assign(rank: int, hosts: Sequence[int], host_names: Sequence[str]) -> Assignment:
    """Give `rank` its role.

    Args:
        rank: rank in MPI's world.
        hosts: the host index of every rank.
        host_names: the name of every host, for messages.

    Raises:
        UserError: odd number of ranks, a pair across two hosts, or hosts with different numbers
            of pairs.
    """
    size = len(hosts)
    if size % 2 != 0:
        raise UserError(
            f"the job has {size} ranks, an odd number; every host needs pairs of one server and "
            "one trainer, so start 2 x PAIRS x HOSTS ranks"
        )
    num_hosts = len(host_names)
    pairs = [0] * num_hosts
    pair_on_host = 0
    for server in range(0, size, 2):
        host = hosts[server]
        if hosts[server + 1] != host:
            raise UserError(
                f"ranks {server} and {server + 1} are a pair but run on {host_names[host]} and "
                f"{host_names[hosts[server + 1]]}; keep pairs together with "
                "mpirun --map-by ppr:2:node (Open MPI), mpirun -ppn 2 (MPICH, Intel MPI) or "
                "srun --distribution=block --ntasks-per-node=2"
            )
        if server == rank - rank % 2:
            pair_on_host = pairs[host]
        pairs[host] += 1
    if len(set(pairs)) != 1:
        counts = ", ".join(
            f"{name}: {count}" for name, count in zip(host_names, pairs, strict=True)
        )
        raise UserError(
            f"every host must run the same number of pairs, but they run {counts}; start the same "
            "number of ranks on each host, such as mpirun --map-by ppr:2:node"
        )
    return Assignment(
        rank=rank,
        size=size,
        role="server" if rank % 2 == 0 else "trainer",
        host=hosts[rank],
        num_hosts=num_hosts,
        pair_on_host=pair_on_host,
        pairs_per_host=pairs[0],
    )
