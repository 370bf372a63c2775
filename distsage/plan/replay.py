"""Samples batches that a job would train on, and counts what they need. Runs on the login host."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distsage.config import TrainConfig
from distsage.data.graph import Topology
from distsage.features.choice import BatchCounts
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.kept_rows import cached_gids, sent_bytes
from distsage.sampling.batch import MiniBatch
from distsage.sampling.sampler import Neighbours, Sampler
from distsage.sampling.seeds import SeedPlan, Step

CURVE_RATIOS = tuple(percent / 100 for percent in (0, 1, 2, 5, *range(10, 101, 10)))
"""Cache ratios at which a replay knows the bytes."""

_KEPT_BATCHES = 4


@dataclass(frozen=True)
class Replay:
    """Counted batches of the first epoch: T trainers, S steps of each, H hosts.

    Attributes:
        num_steps: of an epoch; S of them were sampled.
        trainer_hosts: int64 `[T]`, the host of each trainer.
        edges, inner_nodes, input_nodes, local_rows, cached_rows: int64 `[T, S]`. Inner nodes are
            those that layer 1 computes.
        missed_rows, missed_bytes: int64 `[T, S, H]`, rows that come from each host's servers.
        asked_nodes, asked_picks: int64 `[T, S, H]`, nodes whose neighbours each host's servers pick
            where the topology is partitioned, and the picks.
        curve_bytes: int64 `[len(CURVE_RATIOS)]`, what all the counted batches would fetch with
            other caches.
        gid_bytes: of a gid in the topology.
        steps, batches: a few of trainer 0's, inputs numbered, to measure with.
    """

    num_steps: int
    trainer_hosts: np.ndarray
    edges: np.ndarray
    inner_nodes: np.ndarray
    input_nodes: np.ndarray
    local_rows: np.ndarray
    cached_rows: np.ndarray
    missed_rows: np.ndarray
    missed_bytes: np.ndarray
    asked_nodes: np.ndarray
    asked_picks: np.ndarray
    curve_bytes: np.ndarray
    gid_bytes: int
    steps: Sequence[Step]
    batches: Sequence[MiniBatch]

    @property
    def num_sampled(self) -> int:
        """S."""
        return int(self.edges.shape[1])

    @property
    def num_hosts(self) -> int:
        """H."""
        return int(self.missed_rows.shape[2])

    def received_bytes(self, topology: str) -> np.ndarray:
        """What each trainer receives from each host in a step: int64 `[T, S, H]`."""
        if topology == "replicated":
            return self.missed_bytes
        return self.missed_bytes + 4 * self.asked_nodes + self.gid_bytes * self.asked_picks

    def sent_bytes(self, topology: str) -> np.ndarray:
        """The questions to each host in a step: int64 `[T, S, H]`."""
        questions = 8 * self.missed_rows
        if topology == "replicated":
            return questions
        return questions + self.gid_bytes * self.asked_nodes

    def of_epoch(self, per_step: np.ndarray) -> np.ndarray:
        """Counts `[T, S, ...]` summed over an epoch: float64 `[T, ...]`, exact if all are known."""
        total: np.ndarray = per_step.sum(1) * (self.num_steps / self.num_sampled)
        return total

    def by_host(self, of_trainers: np.ndarray) -> np.ndarray:
        """Rows `[T, ...]` added up host by host: `[H, ...]`."""
        out = np.zeros((self.num_hosts, *of_trainers.shape[1:]), of_trainers.dtype)
        np.add.at(out, self.trainer_hosts, of_trainers)
        return out

    @property
    def mean_counts(self) -> BatchCounts:
        """Of an average batch, as the choice of layer 1's way takes them."""
        layer_1 = np.mean([len(batch.input_edges.indices) for batch in self.batches])
        return BatchCounts(
            round(self.inner_nodes.mean()), round(self.input_nodes.mean()), round(layer_1)
        )

    def error(self, topology: str) -> float:
        """Two standard errors of an epoch's edges or received bytes, the larger, as a fraction."""
        if self.num_sampled in (1, self.num_steps):
            return 0.0 if self.num_sampled == self.num_steps else 1.0
        unseen = 1 - self.num_sampled / self.num_steps
        errors = []
        for counts in (self.edges.sum(0), self.received_bytes(topology).sum((0, 2))):
            if counts.mean() > 0:
                deviation = counts.std(ddof=1) * np.sqrt(unseen / self.num_sampled)
                errors.append(2 * deviation / counts.mean())
        return float(max(errors, default=0.0))


class _CountedPicks:
    """Picks neighbours, and counts for each host those of its nodes."""

    def __init__(self, topology: Topology, config: TrainConfig, offsets: np.ndarray) -> None:
        self._neighbours = Neighbours(topology, config.sampling_method)
        self._offsets = offsets
        self.begin()

    def begin(self) -> None:
        """A batch begins."""
        self.nodes, self.picks = np.zeros((2, len(self._offsets) - 1), np.int64)

    def pick(
        self, dst_gid: np.ndarray, fan_out: int, key: np.uint64
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Neighbours.pick`."""
        indptr, src_gid = self._neighbours.pick(dst_gid, fan_out, key)
        owner = owners(self._offsets, dst_gid)
        np.add.at(self.nodes, owner, 1)
        np.add.at(self.picks, owner, np.diff(indptr))
        return indptr, src_gid


def owners(offsets: np.ndarray, gids: np.ndarray) -> np.ndarray:
    """The host of each node."""
    return np.searchsorted(offsets, gids, side="right") - 1


def train_nodes(parts: HostParts) -> np.ndarray:
    """The gids of all train nodes, ascending: int64. Reads the masks of all parts.

    Raises:
        UserError: a part cannot be read.
    """
    num_parts = parts.parts.num_parts
    masks = [parts.parts.map_part(part)["train_mask"] for part in range(num_parts)]
    return np.flatnonzero(np.concatenate(masks))


def replay(
    parts: HostParts,
    config: TrainConfig,
    train_gid: np.ndarray,
    trainers_per_host: int,
    most_batches: int,
) -> Replay:
    """Sample the first epoch's batches of all trainers, as many of each as are asked for.

    Args:
        parts: dealt out to the hosts.
        config: of the run.
        train_gid: int64, as `train_nodes`.
        trainers_per_host: as in the job.
        most_batches: of each trainer, spread evenly over the epoch.

    Raises:
        UserError: a file of the parts cannot be read.
    """
    topology = parts.parts.topology()
    offsets, num_hosts = parts.offsets, parts.num_hosts
    bounds = parts.trainer_bounds(trainers_per_host)
    seeds = np.split(train_gid, np.searchsorted(train_gid, bounds[1:-1]))
    counts = [len(own) for own in seeds]
    plans = [
        SeedPlan(own, counts, config.batch_size, config.seed, rank)
        for rank, own in enumerate(seeds)
    ]
    num_steps = plans[0].num_steps
    sampled = min(most_batches, num_steps)
    wanted = set((np.arange(sampled) * num_steps // sampled).tolist())

    picks = _CountedPicks(topology, config, offsets)
    sampler = Sampler(topology, config.fan_outs, number_inputs=True, pick=picks.pick)
    row_bytes = sent_bytes(parts, config.feat_dtype)

    def bytes_of(gids: np.ndarray) -> np.ndarray:
        return (
            row_bytes[gids] if isinstance(row_bytes, np.ndarray) else np.full(len(gids), row_bytes)
        )

    shape = len(plans), sampled
    single = {
        name: np.zeros(shape, np.int64)
        for name in ("edges", "inner_nodes", "input_nodes", "local_rows", "cached_rows")
    }
    by_owner = {
        name: np.zeros((*shape, num_hosts), np.int64)
        for name in ("missed_rows", "missed_bytes", "asked_nodes", "asked_picks")
    }
    curve = np.zeros(len(CURVE_RATIOS), np.int64)
    kept: list[tuple[Step, MiniBatch]] = []
    for trainer, plan in enumerate(plans):
        host = trainer // trainers_per_host
        if trainer % trainers_per_host == 0:
            rank_of, num_cached, cuts = _ranks(parts, host, config)
        steps = (step for step in plan.steps(0) if step.number in wanted)
        for place, step in enumerate(steps):
            at = trainer, place
            picks.begin()
            batch = sampler.sample(step.seed_gid, step.sample_key, step.dropout_key)
            if trainer == 0 and len(kept) < _KEPT_BATCHES:
                kept.append((step, batch))
            assert batch.input_gid is not None
            owner = owners(offsets, batch.input_gid)
            remote = batch.input_gid[owner != host]
            ranks = rank_of[remote]
            missed = ranks >= num_cached
            missed_gid = remote[missed]
            missed_owner = owner[owner != host][missed]
            single["edges"][at] = batch.num_edges
            single["inner_nodes"][at] = len(batch.dst_gid)
            single["input_nodes"][at] = len(batch.input_gid)
            single["local_rows"][at] = len(batch.input_gid) - len(remote)
            single["cached_rows"][at] = len(remote) - len(missed_gid)
            by_owner["missed_rows"][at] = np.bincount(missed_owner, minlength=num_hosts)
            np.add.at(by_owner["missed_bytes"][at], missed_owner, bytes_of(missed_gid))
            by_owner["asked_nodes"][at], by_owner["asked_picks"][at] = picks.nodes, picks.picks
            # A row is fetched with each cache that ends at or before its rank.
            ends = np.searchsorted(cuts, ranks, side="right")
            of_end = np.bincount(ends, bytes_of(remote), len(cuts) + 1)
            curve += of_end[::-1].cumsum()[::-1][1:].astype(np.int64)
        # Its own nodes are picked for here.
        by_owner["asked_nodes"][trainer, :, host] = by_owner["asked_picks"][trainer, :, host] = 0
    return Replay(
        num_steps,
        np.arange(len(plans)) // trainers_per_host,
        **single,
        **by_owner,
        curve_bytes=curve,
        gid_bytes=topology.indices.itemsize,
        steps=[step for step, _ in kept],
        batches=[batch for _, batch in kept],
    )


def _ranks(parts: HostParts, host: int, config: TrainConfig) -> tuple[np.ndarray, int, np.ndarray]:
    """The place of each node in a host's cache ranking, last where it has none: int64 `[N]`.

    Also the rows that the cache holds, and those of a cache of each of CURVE_RATIOS.
    """
    ranking = parts.cache_ranking(host)
    num_nodes = parts.manifest.num_nodes
    rank_of = np.full(num_nodes, num_nodes, np.int64)
    rank_of[ranking] = np.arange(len(ranking))
    num_remote = num_nodes - parts.num_nodes(host)
    cuts = np.array([int(num_remote * ratio) for ratio in CURVE_RATIOS], np.int64)
    return rank_of, len(cached_gids(parts, host, config)), cuts
