"""A trainer's mini-batches, from its host's part and everybody else's. Runs on trainer ranks."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from distsage.config import TrainConfig
from distsage.features.resident import input_rows, keep_on_gpu
from distsage.features.slots import (
    InputLayer,
    SlotMap,
    SlotSplit,
    blocks_of,
    gather_rows,
    gathered_input,
)
from distsage.kernels.rng import Purpose, stream_key
from distsage.model.backend import by_kernels
from distsage.sampling.sampler import MiniBatch, Sampler
from distsage.sampling.seeds import SeedPlan
from distsage.train.batches import Batch, prepare_ahead
from distsage.train.feeding import pinned


@dataclass(frozen=True)
class FeatureRows:
    """Where the feature rows of all nodes are, seen from one host.

    Attributes:
        offsets: int64 `[P + 1]`; part i owns the gids in [offsets[i], offsets[i + 1]).
        part: this host's.
        own: `[n, F]`, its rows, in place in the server's memory.
        cached_gid: int64 `[c]`, nodes of other parts whose rows are kept here as well.
        cached: `[c, F]`, their rows.
        pull: rows of gids (int64 `[n]`, those of each part together, parts in ascending order)
            from their servers; blocks. Several threads may call it.
    """

    offsets: np.ndarray
    part: int
    own: Tensor
    cached_gid: np.ndarray
    cached: Tensor
    pull: Callable[[np.ndarray], Tensor]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, in memory and on the network."""
        return self.own.shape[1] * self.own.element_size()

    def new_slot_map(self) -> SlotMap:
        """The slots of all nodes in (own, cached, misses of a batch)."""
        return SlotMap(self.offsets, self.part, self.cached_gid)


@dataclass(frozen=True)
class _Step:
    epoch: int
    step: int
    seeds: np.ndarray


class BatchSource:
    """Prepares the batches of every epoch, ahead of the trainer where it has workers.

    A batch is a function of (seed, epoch, trainer rank, step), whoever prepares it and when.
    Workers go on into the next epoch while the last steps of one are computed and evaluated.

    Args:
        config: of the run.
        plan: this trainer's seed nodes.
        new_sampler: makes a sampler; each worker has its own. It numbers the inputs where they
            are put together.
        rows: the features.
        labels: of the nodes of this host's part, in gid order.
        device: of the model. Where it does not compute by kernels, the input rows of a batch are
            put together in one table; otherwise layer 1 reads them where they are.
    """

    def __init__(
        self,
        config: TrainConfig,
        plan: SeedPlan,
        new_sampler: Callable[[], Sampler],
        rows: FeatureRows,
        labels: Tensor,
        device: torch.device,
    ) -> None:
        self._config = config
        self._plan = plan
        self._rows = rows
        self._labels = labels
        self._gather = not by_kernels(device)
        self._pins = device.type == "cuda"
        self._resident = keep_on_gpu(rows.own, rows.cached, device)
        # As in a topology: code that is compiled for its type serves all gids.
        self._gid_type = np.int32 if rows.offsets[-1] < 2**31 else np.int64
        # Samplers and slot maps keep scratch space: whoever prepares a batch takes a pair.
        self._tools: SimpleQueue[tuple[Sampler, SlotMap]] = SimpleQueue()
        for _ in range(max(1, config.num_workers)):
            self._tools.put((new_sampler(), rows.new_slot_map()))
        self._workers = (
            ThreadPoolExecutor(config.num_workers, "prepare") if config.num_workers else None
        )
        self._next_epoch = -1
        self._stream: Iterator[Batch] = iter(())

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, in order.

        Raises:
            Exception: what went wrong in a worker.
        """
        if epoch != self._next_epoch:
            self._stream = prepare_ahead(
                self._steps(epoch),
                self._prepare,
                self._workers,
                self._config.num_workers,
            )
        self._next_epoch = epoch + 1
        return islice(self._stream, self._plan.num_steps)

    def fetch(self, gids: Tensor) -> Tensor:
        """Feature rows of any distinct gids (int64 `[n]`), in that order, through the cache.

        May be called while workers prepare batches. Blocks.
        """
        _, slot_map = tools = self._tools.get()
        try:
            wanted = gids.numpy().astype(self._gid_type)
            split = slot_map.split(wanted, wanted[:0])
        finally:
            self._tools.put(tools)
        return gather_rows(self._tables(split), split.slots)

    def close(self) -> None:
        """End the workers; waits for the batches that they are at."""
        if self._workers is not None:
            self._workers.shutdown(cancel_futures=True)

    def _steps(self, first_epoch: int) -> Iterator[_Step]:
        for epoch in count(first_epoch):
            if epoch == self._config.num_epochs:
                return
            for step, seeds in enumerate(self._plan.batches(epoch)):
                yield _Step(epoch, step, seeds)

    def _prepare(self, task: _Step) -> Batch:
        sampler, slot_map = tools = self._tools.get()
        try:
            batch = self._prepare_with(sampler, slot_map, task)
            return pinned(batch) if self._pins else batch
        finally:
            self._tools.put(tools)

    def _prepare_with(self, sampler: Sampler, slot_map: SlotMap, task: _Step) -> Batch:
        where = (self._plan.seed, task.epoch, self._plan.trainer_rank, task.step)
        started = time.perf_counter()
        sampled = sampler.sample(
            task.seeds, stream_key(*where, Purpose.SAMPLE), stream_key(*where, Purpose.DROPOUT)
        )
        sampled_at = time.perf_counter()
        inputs, rows = self._find_rows(sampled, slot_map)
        return Batch(
            inputs,
            blocks_of(sampled),
            sampled.key,
            self._labels[torch.from_numpy(task.seeds - self._rows.offsets[self._rows.part])],
            self._plan.global_batch_size(task.step),
            {
                "edges": len(sampled.input_edges.indices)
                + sum(len(block.indices) for block in sampled.blocks),
                **rows,
                "received_bytes": rows["missed_rows"] * self._rows.row_bytes,
                "sample_seconds": sampled_at - started,
                "fetch_seconds": time.perf_counter() - sampled_at,
            },
        )

    def _find_rows(
        self, sampled: MiniBatch, slot_map: SlotMap
    ) -> tuple[InputLayer, dict[str, int]]:
        """Layer 1 of a batch, its misses fetched, and how many rows came from where."""
        if self._gather:
            assert sampled.input_gid is not None
            split = slot_map.split(sampled.input_gid, sampled.input_gid[:0])
        else:
            split = slot_map.split(sampled.input_edges.indices, sampled.dst_gid)
        tables = self._tables(split)
        if self._gather:
            inputs = gathered_input(sampled, input_rows(tables, split.slots, self._resident))
        else:
            inputs = split.input(sampled.input_edges.indptr, tables)
        num_rows = {
            "input_nodes": split.num_own + split.num_cached + len(split.missed_gid),
            "local_rows": split.num_own,
            "cached_rows": split.num_cached,
            "missed_rows": len(split.missed_gid),
        }
        return inputs, num_rows

    def _tables(self, split: SlotSplit) -> tuple[Tensor, Tensor, Tensor]:
        missed = self._rows.pull(split.missed_gid)
        return self._rows.own, self._rows.cached, missed
