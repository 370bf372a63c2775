"""What a host needs memory for. Runs on the login host.

What the preflight of a job asks for is asked of the preflight's own functions.
"""

from dataclasses import dataclass
from typing import Literal

from distsage.config import TrainConfig
from distsage.launch.preflight import RANK_BYTES, memory_need, shared_memory_need
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.kept_rows import cached_bytes, cached_gids, own_bytes
from distsage.plan.evaluation import Exchange
from distsage.plan.replay import Replay

# What a rank and its watcher have taken before the preflight: Python, numpy and MPI. Measured on
# Linux, x86-64: 35 and 15 MiB.
_STARTED_BYTES = 50 << 20
# What a trainer takes from its first step on, beyond its data: compiled kernels, autograd.
_TRAINING_BYTES = 75 << 20
# Batches that lie between the workers and the step: what each worker is ahead, and one in its
# hands; the one that is computed.
_AHEAD_PER_WORKER, _COMPUTED = 3, 1


@dataclass(frozen=True)
class HostMemory:
    """Bytes of one host.

    Attributes:
        shared: rows, labels and masks, cache: /dev/shm, by name.
        own: of its ranks alone while they train, by name.
        loading: of its ranks alone while servers read their parts, processes included.
        files: pages of the topology, which the system gives back under pressure; slower then.
    """

    shared: dict[str, int]
    own: dict[str, int]
    loading: int
    files: int

    @property
    def taken(self) -> int:
        """At the peak, without pages of files."""
        return sum(self.shared.values()) + max(sum(self.own.values()), self.loading)

    @property
    def wanted(self) -> int:
        """At the peak, with them: what to ask Slurm for, before a margin."""
        return self.taken + self.files


def host_memory(
    parts: HostParts,
    host: int,
    config: TrainConfig,
    topology: Literal["replicated", "partitioned"],
    replayed: Replay,
    exchanged: Exchange,
) -> HostMemory:
    """Bytes that one host of a job takes.

    Args:
        parts: dealt out to the hosts.
        host: which one.
        config: of the run.
        topology: what its trainers sample from.
        replayed: batches of the job.
        exchanged: evaluations of the job.

    Raises:
        UserError: a file of the parts cannot be read.
    """
    manifest = parts.manifest
    trainers = [t for t, of in enumerate(replayed.trainer_hosts) if of == host]
    ranks = 2 * len(trainers)
    shared = shared_memory_need(parts, host, config)
    rows = own_bytes(parts, host, config.feat_dtype)
    cache = cached_bytes(parts, cached_gids(parts, host, config), config.feat_dtype)
    own = {
        "processes": ranks * (_STARTED_BYTES + RANK_BYTES) + len(trainers) * _TRAINING_BYTES,
        "numbering of nodes": len(trainers) * _numbering_bytes(parts, host, config),
        "halo": sum(_halo_bytes(exchanged, t, replayed.gid_bytes) for t in trainers),
        "batches": sum(_batch_bytes(manifest.num_features, config, replayed, t) for t in trainers),
        "two layers of evaluation": sum(
            _evaluation_bytes(config, manifest.num_classes, exchanged, t) for t in trainers
        ),
    }
    first, last = (0, manifest.num_edges) if topology == "replicated" else parts.edges(host)
    nodes = manifest.num_nodes if topology == "replicated" else parts.num_nodes(host)
    return HostMemory(
        {"feature rows": rows, "labels and masks": shared - rows - cache, "cache": cache},
        own,
        loading=ranks * _STARTED_BYTES + memory_need(parts, host, config, ranks) - shared,
        files=8 * (nodes + 1) + replayed.gid_bytes * (last - first),
    )


def _numbering_bytes(parts: HostParts, host: int, config: TrainConfig) -> int:
    """The arrays by which samplers and finders number nodes: two of int32 for each worker."""
    return 8 * parts.manifest.num_nodes * max(1, config.num_workers)


def _halo_bytes(exchanged: Exchange, trainer: int, gid_bytes: int) -> int:
    """What is kept from one evaluation to the next: halo nodes and slots of all edges."""
    kept = 8 * int(exchanged.feature_halo[trainer]) + gid_bytes * int(exchanged.edges[trainer])
    if exchanged.hidden_halo[trainer] != exchanged.feature_halo[trainer]:
        kept += gid_bytes * int(exchanged.edges[trainer])
    return kept + 8 * int(exchanged.hidden_rows[:, trainer].sum())


def _batch_bytes(width: int, config: TrainConfig, replayed: Replay, trainer: int) -> int:
    """Batches on their way, and what the largest one needs to be computed."""
    missed = replayed.missed_bytes[trainer].sum(1)
    edges, inner = replayed.edges[trainer], replayed.inner_nodes[trainer]
    waiting = int((4 * edges + 12 * inner + missed).max())
    number = 2 if config.precision == "bf16" else 4
    # Layer 1's input, its result and the gradients of both.
    computed = number * int(inner.max()) * 2 * (width + config.num_hidden)
    return waiting * (_AHEAD_PER_WORKER * config.num_workers + _COMPUTED) + computed


def _evaluation_bytes(
    config: TrainConfig, num_classes: int, exchanged: Exchange, trainer: int
) -> int:
    """Halo rows of layer 1, and the rows of two layers of a trainer's nodes."""
    nodes, layers = int(exchanged.nodes[trainer]), len(config.fan_outs)
    halo = int(exchanged.halo_bytes[trainer].sum())
    if layers == 1:
        return halo + 4 * nodes * num_classes
    widths = [config.num_hidden] * (layers - 1) + [num_classes]
    most = 0
    for below, above, sent in zip(widths, widths[1:], exchanged.hidden_widths, strict=False):
        multiplied = nodes * sent if sent < below else 0
        asked = int(exchanged.hidden_rows[:, trainer].sum())
        received = int(exchanged.hidden_rows[trainer].sum())
        most = max(most, nodes * (below + above) + multiplied + (asked + received) * sent)
    return halo + 4 * most
