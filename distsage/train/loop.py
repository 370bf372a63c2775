"""The training loop: the same for one trainer and for many. Runs on trainer ranks.

Epoch by epoch: a step per batch, a record, and now and then an evaluation on all nodes. Now and
then, too, a checkpoint, from which a run goes on as if it had never ended.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distsage.config import TrainingOptions
from distsage.errors import UserError
from distsage.launch.watch.progress import Mark, State
from distsage.model.graphsage import GraphSAGE
from distsage.train.allocator import keep_freed_memory
from distsage.train.batches import Batch
from distsage.train.checkpoint import (
    Best,
    Checkpoint,
    Origin,
    optimizer_state,
    restore,
    weights_of,
)
from distsage.train.collectives import Collectives
from distsage.train.feeding import feed
from distsage.train.metrics import Scores, selection_score
from distsage.train.run_directory import RunDirectory
from distsage.train.saver import Saver
from distsage.train.status import Status
from distsage.train.usage import Usage

EpochBatches = Callable[[int, int, Mapping[int, int]], Iterator[Batch]]
"""The batches of an epoch, as many on every trainer: epoch, first step, attempts by epoch."""

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Before an evaluation, work of so many seconds is worth a checkpoint.
_WORTH_SECONDS = 60.0
# How often an epoch is tried with another seed before the run ends.
_MOST_ATTEMPTS = 3


def global_loss(logits: Tensor, labels: Tensor, global_size: int) -> Tensor:
    """This trainer's share of the mean loss over the seed nodes of all trainers.

    Cross-entropy for int64 labels `[B]`; binary cross-entropy, averaged over the classes, for
    float32 labels `[B, C]`. The shares of all trainers add up to the loss of the whole batch.
    """
    if labels.ndim == 1:
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
    else:
        total = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        total = total / labels.shape[1]
    return total / global_size


def new_model(config: TrainingOptions, num_features: int, num_classes: int) -> GraphSAGE:
    """The model that the options ask for, on the CPU, with its initial weights."""
    return GraphSAGE(
        num_features,
        config.num_hidden,
        num_classes,
        len(config.fan_outs),
        config.dropout,
        config.seed,
        _PRECISIONS[config.precision],
    )


class _Wishes(NamedTuple):
    """What trainers want after a step; one that wants it is enough."""

    checkpoint: bool = False
    stop: bool = False
    give_up: bool = False  # its loss is no number


class _Gradients:
    """The gradients of all parameters in one piece of memory, which the trainers add up.

    Their losses are shares of one loss, so the gradients are added, not averaged. Every element
    keeps its place from the first step on: the order in which gloo adds the trainers' numbers
    depends on it, and a run that goes on has to come to the same bits as one that never ended.
    DistributedDataParallel moves them after its first step. The trainers' wishes ride along.
    """

    def __init__(self, model: nn.Module, trainers: Collectives, mark: Mark) -> None:
        parameters = list(model.parameters())
        sizes = [parameter.numel() for parameter in parameters]
        self._all = parameters[0].new_zeros(sum(sizes) + len(_Wishes._fields))
        *gradients, self._wishes = self._all.split([*sizes, len(_Wishes._fields)])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # Every gradient lies in memory as its parameter does: Adam takes them in that order.
            parameter.grad = gradient.as_strided(
                parameter.shape, parameter.stride(), gradient.storage_offset()
            )
        self._trainers = trainers
        self._mark = mark

    def clear(self) -> None:
        """Begin a step."""
        self._all.zero_()

    def add_up(self, wishes: _Wishes) -> _Wishes:
        """Add the gradients up; collective. Returns what any trainer wishes."""
        if self._trainers.size == 1:
            return wishes
        self._wishes.copy_(torch.tensor(wishes, dtype=torch.float32))
        self._mark("adding up the gradients of all trainers", State.WAITING)
        self._trainers.add_up(self._all)
        return _Wishes(*(bool(count) for count in self._wishes.tolist()))


class Trainer:
    """Trains a model, together with the other trainers of the job; the local run is a job of one.

    Args:
        config: what `train` and `local` share.
        model: on its device; holds the last epoch's weights afterwards.
        trainers: of the job.
        saver: writes records and checkpoints; on trainer 0 only.
        origin: which run this is.
        num_steps: of an epoch.
        mark: notes progress: what this trainer does from now on.
        stop_wanted: whether the run is to stop at the next step, with a checkpoint.
        status: tells people where the run is; on trainer 0 only.
        usage: counts what the hosts take.
    """

    def __init__(
        self,
        config: TrainingOptions,
        model: GraphSAGE,
        trainers: Collectives,
        saver: Saver | None,
        origin: Origin,
        num_steps: int,
        mark: Mark = lambda doing, state: None,
        stop_wanted: Callable[[], bool] = lambda: False,
        status: Status | None = None,
        usage: Usage | None = None,
    ) -> None:
        keep_freed_memory()
        self._config = config
        self._model = model
        self._device = model.layers[0].weight.device
        self._trainers = trainers
        self._saver = saver
        self._origin = origin
        self._num_steps = num_steps
        self._mark = mark
        self._stop_wanted = stop_wanted
        self._status = status
        self._usage = usage
        self._gradients = _Gradients(model, trainers, mark)
        self._optimizer = torch.optim.Adam(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self._best: Best | None = None
        self._elapsed = 0.0
        self._attempts: dict[int, int] = {}
        self._last_checkpoint = time.monotonic()
        self._begin_epoch(0)

    def _begin_epoch(self, epoch: int) -> None:
        self._epoch, self._step = epoch, 0
        self._loss_sum = 0.0
        self._seconds = 0.0
        self._laps = _Laps()
        self._busy_seconds: list[float] = []

    def go_on(self, checkpoint: Checkpoint, *, next_step: bool) -> None:
        """Take up a run where a checkpoint of it was made.

        Args:
            checkpoint: to go on from.
            next_step: take its very next step, which needs the trainers and the options that it
                was made with; or else begin its epoch anew with its weights.
        """
        restore(checkpoint, self._model, self._optimizer)
        self._best = checkpoint.best
        self._elapsed = checkpoint.elapsed
        self._attempts = dict(checkpoint.attempts)
        self._begin_epoch(checkpoint.epoch)
        if next_step:
            rank = self._trainers.rank
            self._step = checkpoint.step
            self._loss_sum = float(checkpoint.loss_sums[rank])
            self._seconds = checkpoint.seconds
            own = checkpoint.counters[rank].tolist()
            self._laps.counters.update(zip(checkpoint.counter_names, own, strict=True))

    def fit(
        self, epoch_batches: EpochBatches, compute_scores: Callable[[], Scores]
    ) -> dict[str, Any] | None:
        """Train for all epochs that are left; collective over the trainers.

        Args:
            epoch_batches: the batches of an epoch.
            compute_scores: of all nodes of each mask, the same on every trainer; collective.

        Returns:
            The scores of the best validation epoch, its number (`best_epoch`, from 0), `epochs` and
            `seconds`. None if the run was to stop; its last checkpoint is written.

        Raises:
            UserError: the loss is no longer a number.
        """
        num_epochs = self._config.num_epochs
        started = time.perf_counter() - self._elapsed
        self._save_checkpoint()  # also shows at once whether it can be written
        while self._epoch < num_epochs:
            epoch = self._epoch
            end = self.train_epoch(epoch_batches(epoch, self._step, self._attempts))
            self._elapsed = time.perf_counter() - started
            if end.give_up:
                self._roll_back()
                continue
            if end.stop:
                self._save_checkpoint()
                self._flush()
                return None
            record = self._record()
            evaluated = (epoch + 1) % self._config.eval_every == 0 or epoch + 1 == num_epochs
            if evaluated:
                record |= self.evaluate(epoch, compute_scores)
            if self._usage is not None:
                record |= self._usage.of_epoch(self._busy_seconds)
            self._elapsed = time.perf_counter() - started
            if self._saver is not None:
                self._saver.record(record)
            if self._status is not None:
                self._status.epoch(_progress(record, num_epochs), evaluated=evaluated)
            self._begin_epoch(epoch + 1)
            if evaluated:
                self._save_checkpoint()
        self._flush()
        assert self._best is not None
        return {
            **self._best.scores,
            "best_epoch": self._best.epoch,
            "epochs": num_epochs,
            "seconds": round(self._elapsed, 3),
        }

    def train_epoch(self, batches: Iterator[Batch]) -> _Wishes:
        """Take a step on every batch that is left of the epoch; collective.

        Returns:
            Why it ended early, if it did.

        Raises:
            UserError: the loss is no longer a number.
        """
        started = time.perf_counter() - self._seconds
        epoch, laps = self._epoch, self._laps
        self._model.train()
        laps.begin()
        self._together = time.perf_counter()
        if self._status is not None:
            self._status.begin(epoch, self._step)
        self._mark(f"waiting for batch {self._step} of epoch {epoch}", State.WAITING)
        wishes = _Wishes()
        for batch in feed(batches, self._device):
            laps.end("wait_seconds")
            self._mark(f"computing step {self._step} of epoch {epoch}", State.WORKING)
            loss, wishes = self.train_step(batch)
            if wishes.give_up:
                self._complain(loss, len(batch.labels))
                return wishes
            self._step += 1
            self._loss_sum += loss
            if self._status is not None:
                own_mean = loss * batch.global_size / max(len(batch.labels), 1)
                self._status.step(own_mean, batch.global_size)
            laps.counters["steps"] += 1
            for name, value in batch.counters.items():
                laps.counters[name] += value
            self._seconds = time.perf_counter() - started
            if wishes.stop:
                return wishes
            if wishes.checkpoint:
                self._save_checkpoint()
            self._mark(f"waiting for batch {self._step} of epoch {epoch}", State.WAITING)
        return _Wishes()

    def train_step(self, batch: Batch) -> tuple[float, _Wishes]:
        """Forward, backward, update; collective.

        Returns:
            This trainer's share of the loss, and what the trainers wish now. If that is to give up,
            the weights are as they were.
        """
        laps = self._laps
        self._gradients.clear()
        logits = self._model(batch.inputs, batch.blocks, batch.key)
        loss = global_loss(logits, batch.labels, batch.global_size)
        laps.end("forward_seconds")
        loss.backward()
        laps.end("backward_seconds")
        share = float(loss.detach())
        self._busy_seconds.append(time.perf_counter() - self._together)
        wishes = self._gradients.add_up(
            _Wishes(self._checkpoint_is_due(), self._stop_wanted(), not math.isfinite(share))
        )
        self._together = time.perf_counter()
        if self._trainers.size > 1:
            laps.end("all_reduce_seconds")
        if not wishes.give_up:
            self._optimizer.step()
        laps.end("optimizer_seconds")
        return share, wishes

    def _checkpoint_is_due(self) -> bool:
        """Trainer 0's clock decides."""
        if self._saver is None or self._saver.busy:
            return False
        interval = 60 * self._config.checkpoint_minutes
        if self._step + 1 == self._num_steps:
            interval = min(interval, _WORTH_SECONDS)  # an evaluation may come, and take long
        return time.monotonic() - self._last_checkpoint >= interval

    def _save_checkpoint(self) -> None:
        """Have the present moment written; collective, but only trainer 0 copies and writes.

        Raises:
            UserError: the weights are no numbers, or an earlier write has failed.
        """
        if not all(bool(value.isfinite().all()) for value in self._model.parameters()):
            raise UserError(
                f"the weights are no numbers after step {self._step - 1} of epoch {self._epoch} "
                f"(learning rate {self._config.lr}); lower --lr, or look for huge values in the "
                "features"
            )
        names, counters = _gather(self._laps.counters, self._trainers)
        loss_sums = self._trainers.concatenate(torch.tensor([self._loss_sum], dtype=torch.float64))
        if self._saver is None:
            return
        self._last_checkpoint = time.monotonic()
        self._saver.checkpoint(
            Checkpoint(
                origin=self._origin,
                epoch=self._epoch,
                step=self._step,
                attempts=dict(self._attempts),
                seconds=self._seconds,
                elapsed=self._elapsed,
                loss_sums=loss_sums,
                counters=counters,
                counter_names=names,
                weights=weights_of(self._model),
                optimizer=optimizer_state(self._model, self._optimizer),
                best=self._best,
            )
        )

    def _flush(self) -> None:
        if self._saver is not None:
            self._mark("writing the checkpoint", State.LOADING)  # a slow disk gets on, too
            self._saver.flush()

    def _complain(self, loss: float, num_seeds: int) -> None:
        """Say which batch the loss of is no number; collective.

        Raises:
            UserError: the run is to end for it.
        """
        own = torch.tensor([[loss, num_seeds]], dtype=torch.float64)
        shares = self._trainers.concatenate(own)
        trainer = int((~shares[:, 0].isfinite()).nonzero()[0])
        loss, seeds = shares[trainer].tolist()
        sentence = (
            f"the loss of step {self._step} of epoch {self._epoch} is {loss} (learning rate "
            f"{self._config.lr}, batch of trainer {trainer} with {seeds:,.0f} seed nodes)"
        )
        attempts = self._attempts.get(self._epoch, 0)
        if self._config.on_nan == "stop" or attempts == _MOST_ATTEMPTS:
            tried = f" in spite of {attempts} other seeds" if attempts else ""
            self._flush()
            self._trainers.barrier()  # whoever ends first ends the job
            raise UserError(
                f"{sentence}{tried}; lower --lr, or look for huge values in the features"
            )
        if self._saver is not None:
            print(f"{sentence}: going back to the last checkpoint", flush=True)

    def _roll_back(self) -> None:
        """Go back to the last checkpoint, with another seed for this epoch; collective."""
        self._attempts[self._epoch] = self._attempts.get(self._epoch, 0) + 1
        attempts = self._attempts
        position = torch.zeros(2, dtype=torch.int64)
        run = RunDirectory(self._config.run_dir)
        if self._saver is not None:
            self._flush()
            newest = run.load_checkpoint()
            assert newest is not None, "one is written before the first step"
            position = torch.tensor(newest.position)
            run.drop_later_records(newest.epoch)
            run.event("rolled back", epoch=newest.epoch, step=newest.step)
        epoch, step = self._trainers.sum(position).tolist()
        self.go_on(run.checkpoint_at(epoch, step), next_step=True)
        self._attempts = attempts

    def _record(self) -> dict[str, Any]:
        """The record of the epoch whose steps are taken; collective."""
        own_loss = torch.tensor(self._loss_sum / self._num_steps, dtype=torch.float64)
        loss = float(self._trainers.sum(own_loss))
        totals = _totals(self._laps.counters, self._trainers)
        return {"epoch": self._epoch, "loss": loss, "seconds": round(self._seconds, 6), **totals}

    def evaluate(self, epoch: int, compute_scores: Callable[[], Scores]) -> dict[str, Any]:
        """Score all nodes, and remember the weights if they are the best; collective.

        Returns:
            What the epoch's record says of it.
        """
        self._mark(f"evaluating epoch {epoch}", State.WAITING)
        started = time.perf_counter()
        self._model.eval()
        scores = compute_scores()
        seconds = round(time.perf_counter() - started, 6)
        quality = selection_score(scores["val"])
        # A number beats NaN, and NaN no number. Without validation nodes there is no number, and
        # the last epoch counts as the best.
        if self._best is None or math.isnan(self._best.quality) or quality > self._best.quality:
            self._best = Best(epoch, quality, scores, weights_of(self._model))
        return {"eval_seconds": seconds, **scores}


class _Laps:
    """Where the time of an epoch goes, by name, and other counters."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = defaultdict(float)
        self.begin()

    def begin(self) -> None:
        """Begin the next lap."""
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        """Book the time since the last lap's end."""
        now = time.perf_counter()
        self.counters[name] += now - self._last
        self._last = now


def _gather(counters: Mapping[str, float], trainers: Collectives) -> tuple[tuple[str, ...], Tensor]:
    """Names `[n]`, and the counters of all trainers: float64 `[T, n]`. Collective."""
    names = tuple(sorted(counters))
    own = torch.tensor([[counters[name] for name in names]], dtype=torch.float64)
    return names, trainers.concatenate(own)


def _totals(counters: Mapping[str, float], trainers: Collectives) -> dict[str, Any]:
    """Each counter of an epoch: per trainer and in total. Collective."""
    names, per_trainer = _gather(counters, trainers)
    return {
        name: {
            "total": round(float(per_trainer[:, column].sum()), 6),
            "per_trainer": [round(float(value), 6) for value in per_trainer[:, column]],
        }
        for column, name in enumerate(names)
    }


def _progress(record: dict[str, Any], num_epochs: int) -> str:
    line = (
        f"epoch {record['epoch'] + 1:>3}/{num_epochs}  loss {record['loss']:.4f}  "
        f"{record['seconds']:.2f} s"
    )
    if "val" in record:
        for mask in ("val", "test"):
            name, value = next(reversed(record[mask].items()))
            line += f"  {mask} {name} {value:.4f}"
        line += f"  (evaluated in {record['eval_seconds']:.2f} s)"
    return line
