"""From counts and a machine's figures to seconds, and what limits them. Runs on the login host.

A step is as long as the busiest of what works at the same time: a trainer that computes, workers
that prepare the next batches, servers that answer, the network, and all of a host's cores together.
Then the trainers add up their gradients, and the slowest decides.
"""

from dataclasses import dataclass

import numpy as np

from distsage.config import TrainConfig
from distsage.plan.evaluation import Exchange
from distsage.plan.machine import Machine
from distsage.plan.replay import Replay

LIMITS = {
    "computing": "trainers compute",
    "preparing": "workers prepare batches",
    "servers": "servers answer",
    "network": "the network carries rows",
    "processor": "all cores of a host are busy",
}
"""What a step may wait for."""


_ADDING_UP, _ASKING, _ANSWERING = 1.6, 0.8, 0.4
"""What messages take beyond their bytes, of an empty step: a trainer that adds up its gradients
with the others; that asks a host's servers; and those servers. It is interpreter and system calls,
as an empty step is. Fitted to CPU-seconds of 2 and 4 emulated hosts, batches of 125 to 1000 seeds.
"""


@dataclass(frozen=True)
class Hosts:
    """What each host of the job has.

    Attributes:
        cores: for all its ranks; may be a fraction where hosts are emulated.
        network: bytes a second, each way; None where nobody said.
        threads: that each trainer computes with.
    """

    cores: float
    network: float | None
    threads: int


@dataclass(frozen=True)
class Seconds:
    """Of an epoch's steps and of an evaluation.

    Attributes:
        epoch: as expected.
        low, high: the band: errors of sample and machine; at its upper end nothing overlaps.
        limits: seconds an epoch of each of LIMITS, were it alone.
        evaluation: as expected.
    """

    epoch: float
    low: float
    high: float
    limits: dict[str, float]
    evaluation: float

    @property
    def limit(self) -> str:
        """Which of LIMITS is the longest."""
        return max(self.limits, key=lambda name: self.limits[name])


def seconds(
    replayed: Replay,
    exchanged: Exchange,
    machine: Machine,
    hosts: Hosts,
    config: TrainConfig,
    topology: str,
    num_parameters: int,
) -> Seconds:
    """What an epoch and an evaluation take."""
    num_trainers, num_hosts = len(replayed.trainer_hosts), replayed.num_hosts
    pairs = num_trainers // num_hosts
    edges = replayed.edges.astype(float)
    received = replayed.received_bytes(topology).astype(float)
    in_bytes, out_bytes = received.sum(2), replayed.by_host(received).sum(0).T  # [T, S], [H, S]
    compute = machine.step_edge * machine.threads / hosts.threads * edges
    # Each trainer asks each other host's servers once a step.
    asked = machine.empty_step * (num_hosts - 1)
    prepare = (machine.sample_edge + machine.find_edge) * edges + machine.receive_byte * in_bytes
    prepare += _ASKING * asked
    serve = machine.serve_byte * out_bytes + _ANSWERING * asked * pairs
    gradients = 4.0 * num_parameters * 2 * (num_trainers - 1) / num_trainers
    add_up = gradients * (machine.serve_byte + machine.receive_byte)
    if num_trainers > 1:
        add_up += _ADDING_UP * machine.empty_step
    # A trainer's threads hold their cores while they wait for each other.
    busy = replayed.by_host(hosts.threads * compute + prepare) + serve + pairs * add_up
    network = np.zeros_like(serve)
    if hosts.network and num_hosts > 1:
        carried = np.maximum(replayed.by_host(in_bytes), out_bytes)
        network = carried / hosts.network
        add_up += gradients / hosts.network

    of_step = {
        "computing": compute.max(0) + add_up,
        "preparing": (prepare / max(1, config.num_workers)).max(0),
        "servers": (serve / pairs).max(0),
        "network": network.max(0),
        "processor": (busy / hosts.cores).max(0),
    }
    alone = np.stack(list(of_step.values()))
    in_turn = alone[:4].sum(0)
    if config.num_workers == 0:
        expected = np.maximum(in_turn, of_step["processor"])
    else:
        expected = alone.max(0)
    steps = replayed.num_steps
    error = replayed.error(topology) + machine.spread / 2
    epoch = float(expected.mean() * steps)
    highest = float(np.maximum(in_turn, expected).mean() * steps)
    return Seconds(
        epoch,
        max(epoch * (1 - error), 0.0),
        highest * (1 + error),
        {name: float(values.mean() * steps) for name, values in of_step.items()},
        _evaluation(replayed, exchanged, machine, hosts),
    )


def _evaluation(replayed: Replay, exchanged: Exchange, machine: Machine, hosts: Hosts) -> float:
    """Trainers compute after they have received: nothing overlaps."""
    compute = machine.evaluate_edge * exchanged.edges.astype(float)
    crossing = exchanged.hidden_bytes.sum(1) + exchanged.halo_bytes.sum(1)
    transfer = (machine.serve_byte + machine.receive_byte) * crossing.astype(float)
    alone = float((compute / hosts.threads + transfer).max())
    shared = float((replayed.by_host(compute + transfer) / hosts.cores).max())
    carried = 0.0
    if hosts.network and replayed.num_hosts > 1:
        carried = float(replayed.by_host(crossing).max()) / hosts.network
    return max(alone, shared) + carried
