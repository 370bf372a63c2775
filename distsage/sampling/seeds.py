"""Which seed nodes a trainer takes in which step. Runs on trainer ranks and in the local run.

All trainers take the same number of steps, and every train node is a seed exactly once an epoch:
the longest list of train nodes decides the number of steps, and every trainer deals its own list
out over them evenly. The size of the whole batch, over all trainers, follows from the lengths of
the lists, so that each trainer can weight its loss as if one process trained on the whole batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distsage.kernels.rng import Purpose, stream_key

# Added to the seed of a run for every attempt at an epoch; no seed that people choose is as large.
_ATTEMPT = 2**48


@dataclass(frozen=True)
class Step:
    """What names one step of a trainer, and all that is drawn for it.

    Attributes:
        epoch, number: from 0; steps are numbered within their epoch.
        seed_gid: int64 `[B]`, its seed nodes; possibly none.
        sample_key, dropout_key: of its streams (`distsage.kernels.rng.stream_key`).
        global_size: seed nodes of this step over all trainers.
    """

    epoch: int
    number: int
    seed_gid: np.ndarray
    sample_key: np.uint64
    dropout_key: np.uint64
    global_size: int


@dataclass(frozen=True)
class SeedPlan:
    """The steps of every epoch, for one trainer.

    Attributes:
        seeds: int64 `[n]`, this trainer's train nodes (gid).
        counts: number of train nodes of every trainer.
        batch_size: seed nodes per trainer and step, at most.
        seed: of the run.
        trainer_rank: of this trainer.
    """

    seeds: np.ndarray
    counts: Sequence[int]
    batch_size: int
    seed: int
    trainer_rank: int

    @property
    def num_steps(self) -> int:
        """Steps per epoch, the same on every trainer; at least 1."""
        return max(1, -(-max(self.counts) // self.batch_size))

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Seed nodes of every step of one epoch: int64, at most `batch_size` each, possibly none.

        A pure function of (seed, epoch, trainer rank).
        """
        entropy = np.random.SeedSequence(
            [self.seed, epoch, self.trainer_rank, int(Purpose.SHUFFLE)]
        )
        shuffled = np.random.Generator(np.random.SFC64(entropy)).permutation(self.seeds)
        return [
            shuffled[slice(*_slice(len(shuffled), step, self.num_steps))]
            for step in range(self.num_steps)
        ]

    def steps(self, epoch: int, first: int = 0, attempt: int = 0) -> Iterator[Step]:
        """The steps of one epoch from number `first` on, with the keys of what is drawn for them.

        Another `attempt` at the epoch has the same seed nodes in the same steps, so that each stays
        a seed once, and draws other neighbours and drops other units.
        """
        seed = self.seed + attempt * _ATTEMPT
        for number, seed_gid in enumerate(self.batches(epoch)[first:], first):
            where = seed, epoch, self.trainer_rank, number
            yield Step(
                epoch,
                number,
                seed_gid,
                stream_key(*where, Purpose.SAMPLE),
                stream_key(*where, Purpose.DROPOUT),
                self.global_batch_size(number),
            )

    def global_batch_size(self, step: int) -> int:
        """Number of seed nodes of one step over all trainers."""
        bounds = [_slice(count, step, self.num_steps) for count in self.counts]
        return sum(stop - start for start, stop in bounds)


def _slice(length: int, step: int, num_steps: int) -> tuple[int, int]:
    return length * step // num_steps, length * (step + 1) // num_steps
