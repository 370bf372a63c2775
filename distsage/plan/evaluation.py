"""What an evaluation of all nodes brings from host to host. Runs on the login host.

The counts are those of `distsage.train.halo_inference`, which trainers make of their edges.
"""

from dataclasses import dataclass

import numpy as np

from distsage.config import TrainConfig
from distsage.data.graph import Topology
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.kept_rows import cached_gids, sent_bytes
from distsage.plan.replay import owners

_EDGES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Exchange:
    """What T trainers on H hosts need of others for one evaluation.

    Attributes:
        nodes, edges: int64 `[T]`, of each trainer.
        feature_halo, hidden_halo: int64 `[T]`, nodes of other hosts, and of other trainers, whose
            rows it takes the mean of.
        halo_bytes: int64 `[T, H]`, feature rows from each host's servers, past the cache.
        halo_rows: int64 `[T, H]`, how many.
        hidden_rows: int64 `[T, T]`, rows of each layer but the first from each trainer.
        hidden_widths: numbers in such a row, layer by layer.
    """

    nodes: np.ndarray
    edges: np.ndarray
    feature_halo: np.ndarray
    hidden_halo: np.ndarray
    halo_bytes: np.ndarray
    halo_rows: np.ndarray
    hidden_rows: np.ndarray
    hidden_widths: tuple[int, ...]

    @property
    def hidden_bytes(self) -> np.ndarray:
        """What each trainer receives from each other: int64 `[T, T]`."""
        return 4 * sum(self.hidden_widths) * self.hidden_rows


def exchange(parts: HostParts, config: TrainConfig, trainers_per_host: int) -> Exchange:
    """Count what an evaluation exchanges; reads all edges once.

    Raises:
        UserError: a file of the parts cannot be read.
    """
    manifest, topology = parts.manifest, parts.parts.topology()
    bounds = parts.trainer_bounds(trainers_per_host)
    num_trainers = len(bounds) - 1
    row_bytes = sent_bytes(parts, config.feat_dtype)
    halo_rows, halo_bytes = np.zeros((2, num_trainers, parts.num_hosts), np.int64)
    feature_halo, hidden_halo = np.zeros((2, num_trainers), np.int64)
    hidden_rows = np.zeros((num_trainers, num_trainers), np.int64)
    for trainer in range(num_trainers):
        host = trainer // trainers_per_host
        low, high = (int(bound) for bound in bounds[trainer : trainer + 2])
        sources = _sources(topology, low, high)
        hidden = np.flatnonzero(_without(sources, low, high))
        hidden_halo[trainer] = len(hidden)
        hidden_rows[trainer] = np.diff(np.searchsorted(hidden, bounds))
        wanted = _without(sources, *parts.nodes(host))
        feature_halo[trainer] = np.count_nonzero(wanted)
        wanted[cached_gids(parts, host, config)] = False
        missed = np.flatnonzero(wanted)
        owner = owners(parts.offsets, missed)
        halo_rows[trainer] = np.bincount(owner, minlength=parts.num_hosts)
        sizes = row_bytes[missed] if isinstance(row_bytes, np.ndarray) else row_bytes
        np.add.at(halo_bytes[trainer], owner, sizes)
    num_layers = len(config.fan_outs)
    # A layer whose result is narrower multiplies before it sends.
    widths = [min(config.num_hidden, manifest.num_classes)] if num_layers > 1 else []
    widths = [config.num_hidden] * (num_layers - 2) + widths
    return Exchange(
        np.diff(bounds),
        np.diff(topology.indptr[bounds]),
        feature_halo,
        hidden_halo,
        halo_bytes,
        halo_rows,
        hidden_rows,
        tuple(widths),
    )


def _sources(topology: Topology, low: int, high: int) -> np.ndarray:
    """Which nodes the in-edges of [low, high) come from: bool `[N]`."""
    found = np.zeros(topology.num_nodes, bool)
    first, last = int(topology.indptr[low]), int(topology.indptr[high])
    for begin in range(first, last, _EDGES_AT_ONCE):
        found[topology.indices[begin : min(begin + _EDGES_AT_ONCE, last)]] = True
    return found


def _without(nodes: np.ndarray, low: int, high: int) -> np.ndarray:
    others = nodes.copy()
    others[low:high] = False
    return others
