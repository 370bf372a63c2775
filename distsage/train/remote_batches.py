"""A trainer's mini-batches, from its host's part and everybody else's. Runs on trainer ranks."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from queue import SimpleQueue
from types import MappingProxyType

import torch
from torch import Tensor

from distsage.config import TrainConfig
from distsage.features.matrix import Features
from distsage.features.rows import PartRowFinder, PartRows
from distsage.sampling.sampler import Sampler
from distsage.sampling.seeds import SeedPlan, Step
from distsage.train.batches import Batch, Labels, prepare_ahead, put_together
from distsage.train.feeding import pinned


class BatchSource:
    """Prepares the batches of every epoch, ahead of the trainer where it has workers.

    A batch is a function of (seed, epoch, trainer rank, step), whoever prepares it and when.
    Workers go on into the next epoch while the last steps of one are computed and evaluated.

    Args:
        config: of the run.
        plan: this trainer's seed nodes.
        samplers: one for each worker, one without workers.
        rows: the features.
        labels: of the nodes of this host's part.
        device: of the model; batches for a GPU are pinned.
    """

    def __init__(
        self,
        config: TrainConfig,
        plan: SeedPlan,
        samplers: Sequence[Sampler],
        rows: PartRows,
        labels: Labels,
        device: torch.device,
    ) -> None:
        self._config = config
        self._plan = plan
        self._labels = labels
        self._pins = device.type == "cuda"
        # Samplers and finders keep scratch space: whoever prepares a batch takes a pair.
        self._idle: SimpleQueue[tuple[Sampler, PartRowFinder]] = SimpleQueue()
        for sampler in samplers:
            self._idle.put((sampler, rows.new_finder()))
        self._workers = (
            ThreadPoolExecutor(config.num_workers, "prepare") if config.num_workers else None
        )
        self._next_epoch = -1
        self._attempts: Mapping[int, int] = {}
        self._stream: Iterator[Batch] = iter(())

    def epoch(
        self, epoch: int, first_step: int = 0, attempts: Mapping[int, int] = MappingProxyType({})
    ) -> Iterator[Batch]:
        """The batches of an epoch from step `first_step` on, in order.

        Args:
            epoch, first_step: from 0.
            attempts: at each epoch that is not tried for the first time (`SeedPlan.steps`).

        Raises:
            Exception: what went wrong in a worker.
        """
        if (epoch, first_step, attempts) != (self._next_epoch, 0, self._attempts):
            self._attempts = dict(attempts)
            self._stream = prepare_ahead(
                self._steps(epoch, first_step, self._attempts),
                self._prepare,
                self._workers,
                self._config.num_workers,
            )
        self._next_epoch = epoch + 1
        return islice(self._stream, self._plan.num_steps - first_step)

    def fetch(self, gids: Tensor) -> Features:
        """Feature rows of any distinct gids (int64 `[n]`), in that order, through the cache.

        May be called while workers prepare batches. Blocks.
        """
        pair = self._idle.get()
        try:
            return pair[1].fetch(gids)
        finally:
            self._idle.put(pair)

    def close(self) -> None:
        """End the workers; waits for the batches that they are at."""
        if self._workers is not None:
            self._workers.shutdown(cancel_futures=True)

    def _steps(
        self, first_epoch: int, first_step: int, attempts: Mapping[int, int]
    ) -> Iterator[Step]:
        for epoch in range(first_epoch, self._config.num_epochs):
            first = first_step if epoch == first_epoch else 0
            yield from self._plan.steps(epoch, first, attempts.get(epoch, 0))

    def _prepare(self, step: Step) -> Batch:
        sampler, finder = pair = self._idle.get()
        try:
            started = time.perf_counter()
            sampled = sampler.sample(step.seed_gid, step.sample_key, step.dropout_key)
            seconds = time.perf_counter() - started
            batch = put_together(step, sampled, finder, self._labels)
        finally:
            self._idle.put(pair)
        batch = replace(batch, counters={**batch.counters, "sample_seconds": seconds})
        return pinned(batch) if self._pins else batch
