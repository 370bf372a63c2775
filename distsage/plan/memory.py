"""What a host needs memory for. Runs on the login host.

What the preflight of a job asks for is asked of the preflight's own functions.
"""

from dataclasses import dataclass
from typing import Literal

from distsage.config import TrainConfig
from distsage.features.choice import Way
from distsage.launch.preflight import RANK_BYTES, memory_need, shared_memory_need
from distsage.model.cpu import SEGMENTS
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.kept_rows import cached_bytes, cached_gids, own_bytes, sent_bytes
from distsage.plan.evaluation import Exchange
from distsage.plan.machine import choose_way
from distsage.plan.replay import Replay

# What a rank and its watcher have taken before the preflight: Python, numpy and MPI. Measured on
# Linux, x86-64: 35 and 15 MiB.
_STARTED_BYTES = 50 << 20
# What a trainer takes from its first step on, beyond its data: compiled kernels, autograd.
_TRAINING_BYTES = 75 << 20
# Batches that lie between the workers and the step: what each worker is ahead, and one in its
# hands; the one that is computed.
_AHEAD_PER_WORKER, _COMPUTED = 3, 1


# What trainer 0 has of a checkpoint while it is written: weights and Adam's moments; these and the
# best weights once more as bytes, and in the file's order.
_CHECKPOINT_COPIES = 3 + 4 + 4


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
    num_parameters: int,
) -> HostMemory:
    """Bytes that one host of a job takes.

    Args:
        parts: dealt out to the hosts.
        host: which one.
        config: of the run.
        topology: what its trainers sample from.
        replayed: batches of the job.
        exchanged: evaluations of the job.
        num_parameters: of the model.

    Raises:
        UserError: a file of the parts cannot be read.
    """
    manifest, way = parts.manifest, choose_way(parts, config, replayed)
    trainers = [t for t, of in enumerate(replayed.trainer_hosts) if of == host]
    ranks = 2 * len(trainers)
    shared = shared_memory_need(parts, host, config)
    rows = own_bytes(parts, host, config.feat_dtype)
    cache = cached_bytes(parts, cached_gids(parts, host, config), config.feat_dtype)
    own = {
        "processes": ranks * (_STARTED_BYTES + RANK_BYTES) + len(trainers) * _TRAINING_BYTES,
        "numbering of nodes": len(trainers) * _numbering_bytes(parts, host, config),
        "halo": sum(_halo_bytes(exchanged, t, replayed.gid_bytes) for t in trainers),
        "weights": len(trainers) * _weights_bytes(parts, num_parameters),
        "checkpoint": _CHECKPOINT_COPIES * 4 * num_parameters if host == 0 else 0,
        "batches": sum(_batch_bytes(parts, config, replayed, t, way) for t in trainers),
        "two layers of evaluation": sum(
            _evaluation_bytes(parts, host, config, exchanged, t) for t in trainers
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


def _weights_bytes(parts: HostParts, num_parameters: int) -> int:
    """The weights, their gradients, Adam's two moments, the best weights; and of one step."""
    # A gradient of its own; and sums of some rows each, or weights in another order.
    of_step = 2 if parts.manifest.features.is_sparse else 1 + SEGMENTS
    return 4 * num_parameters * (5 + of_step)


def _batch_bytes(
    parts: HostParts, config: TrainConfig, replayed: Replay, trainer: int, way: Way
) -> int:
    """Batches on their way, and what the largest one needs to be computed."""
    manifest = parts.manifest
    missed = replayed.missed_bytes[trainer].sum(1)
    edges, inner = replayed.edges[trainer], replayed.inner_nodes[trainer]
    rows = replayed.input_nodes[trainer]
    waiting = 4 * edges + 12 * inner + missed
    if manifest.features.is_sparse:
        # Copies of the rows, filled in where they are averaged first.
        numbers = sum(part.feature_numbers for part in manifest.parts) / manifest.num_nodes
        each = 4 * manifest.num_features if way == "gather" else 8 + 8 * round(numbers)
        waiting = waiting + each * rows
    number = 2 if config.precision == "bf16" else 4
    if way == "gather":
        # Layer 1's input, its result and the gradients of both.
        computed = number * inner * 2 * (manifest.num_features + config.num_hidden)
    else:
        # Products and what their gradients are; layer 1's result, and its gradient.
        computed = config.num_hidden * ((number + 4) * rows + 2 * number * inner)
    most = int(waiting.max()) * (_AHEAD_PER_WORKER * config.num_workers + _COMPUTED)
    return most + int(computed.max())


def _evaluation_bytes(
    parts: HostParts, host: int, config: TrainConfig, exchanged: Exchange, trainer: int
) -> int:
    """Rows of the layer below and of the one above, as `distsage.train.halo_inference` has them.

    What layer 1 takes the mean of stays until the end.
    """
    manifest, nodes = parts.manifest, int(exchanged.nodes[trainer])
    widths = [config.num_hidden] * (len(config.fan_outs) - 1) + [manifest.num_classes]
    below = widths[0]
    halo = int(exchanged.feature_halo[trainer])
    if manifest.features.is_sparse or below < manifest.num_features:  # multiplied before
        kept, received = 4 * below * parts.num_nodes(host), 4 * below * halo
    else:
        row_bytes = sent_bytes(parts, config.feat_dtype)
        assert isinstance(row_bytes, int)  # dense
        kept, received = 0, halo * row_bytes
    most = max(2 * received, kept + received + 4 * below * nodes)  # pieces are put together
    for above, sent in zip(widths[1:], exchanged.hidden_widths, strict=True):
        multiplied = nodes * sent if sent < below else 0
        crossing = exchanged.hidden_rows[:, trainer].sum() + exchanged.hidden_rows[trainer].sum()
        rows = nodes * (below + above) + multiplied + int(crossing) * sent
        most = max(most, kept + received + 4 * rows)
        below = above
    return most
