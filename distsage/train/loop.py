"""The training loop: the same for one trainer and for many. Runs on trainer ranks.

Epoch by epoch: a step per batch, a record, and now and then an evaluation on all nodes; the weights
of the best evaluation are the checkpoint.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.nn.parallel import DistributedDataParallel

from distsage.config import TrainingOptions
from distsage.errors import UserError
from distsage.launch.watch.progress import Mark, State
from distsage.model.graphsage import GraphSAGE
from distsage.train.allocator import keep_freed_memory
from distsage.train.batches import Batch
from distsage.train.collectives import Collectives
from distsage.train.feeding import feed
from distsage.train.run_directory import RunDirectory

Scores = dict[str, dict[str, float]]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What `--precision` stands for."""


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


class _GradientSum:
    """DistributedDataParallel's communication hook: add the gradients up, and time the wait.

    The trainers' losses are shares of one loss, so their gradients are added, not averaged.
    """

    def __init__(self, mark: Mark) -> None:
        self._mark = mark
        self.called_at: float | None = None

    def add(self, _: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        if self.called_at is None:
            self.called_at = time.perf_counter()
        self._mark("adding up the gradients of all trainers", State.WAITING)
        work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
        assert work is not None
        return work.get_future().then(lambda done: done.value()[0])


class Trainer:
    """Trains a model, together with the other trainers of the job; the local run is a job of one.

    Args:
        config: what `train` and `local` share.
        model: on its device; holds the last epoch's weights afterwards.
        trainers: of the job.
        run: where to write; on trainer 0 only.
        about: goes beside the weights, so that the model can be rebuilt.
        mark: notes progress: what this trainer does from now on.
    """

    def __init__(
        self,
        config: TrainingOptions,
        model: GraphSAGE,
        trainers: Collectives,
        run: RunDirectory | None,
        about: dict[str, Any],
        mark: Mark,
    ) -> None:
        keep_freed_memory()
        self._config = config
        self._model = model
        self._device = model.layers[0].weight.device
        self._trainers = trainers
        self._run = run
        self._about = about
        self._mark = mark
        self._replica: nn.Module = model
        self._gradient_sum = _GradientSum(mark)
        if trainers.size > 1:
            replica = DistributedDataParallel(
                model, gradient_as_bucket_view=True, bucket_cap_mb=1024
            )
            replica.register_comm_hook(None, self._gradient_sum.add)
            self._replica = replica
        self._optimizer = torch.optim.Adam(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self._best: tuple[float, int, Scores] | None = None

    def fit(
        self,
        epoch_batches: Callable[[int], Iterator[Batch]],
        compute_scores: Callable[[], Scores],
    ) -> dict[str, Any]:
        """Train for all epochs; collective over the trainers.

        Args:
            epoch_batches: the batches of an epoch, as many on every trainer.
            compute_scores: of all nodes of each mask, the same on every trainer; collective.

        Returns:
            The scores of the best validation epoch, its number (`best_epoch`, from 0), `epochs` and
            `seconds`.

        Raises:
            UserError: the loss is no longer a number.
        """
        num_epochs = self._config.num_epochs
        started = time.perf_counter()
        for epoch in range(num_epochs):
            record = self.train_epoch(epoch, epoch_batches(epoch))
            if (epoch + 1) % self._config.eval_every == 0 or epoch + 1 == num_epochs:
                record |= self.evaluate(epoch, compute_scores)
            if self._run is not None:
                self._run.record(record)
                print(_progress(record, num_epochs), flush=True)
        assert self._best is not None
        _, best_epoch, scores = self._best
        seconds = round(time.perf_counter() - started, 3)
        return {**scores, "best_epoch": best_epoch, "epochs": num_epochs, "seconds": seconds}

    def train_epoch(self, epoch: int, batches: Iterator[Batch]) -> dict[str, Any]:
        """Take a step on every batch; collective. Returns the epoch's record.

        Raises:
            UserError: the loss is no longer a number.
        """
        started = time.perf_counter()
        self._model.train()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        laps = _Laps()
        steps = 0
        self._mark(f"waiting for batch 0 of epoch {epoch}", State.WAITING)
        for batch in feed(batches, self._device):
            laps.end("wait_seconds")
            self._mark(f"computing step {steps} of epoch {epoch}", State.WORKING)
            loss_sum += self.train_step(batch, laps)
            steps += 1
            for name, value in batch.counters.items():
                laps.counters[name] += value
            self._mark(f"waiting for batch {steps} of epoch {epoch}", State.WAITING)
        laps.counters["steps"] = steps
        own_loss = torch.tensor(float(loss_sum) / steps, dtype=torch.float64)
        loss = float(self._trainers.sum(own_loss))
        if not math.isfinite(loss):
            raise UserError(
                f"the loss of epoch {epoch} is {loss}; lower --lr, or look for huge values in the "
                "features"
            )
        seconds = round(time.perf_counter() - started, 6)
        totals = _totals(laps.counters, self._trainers)
        return {"epoch": epoch, "loss": loss, "seconds": seconds, **totals}

    def train_step(self, batch: Batch, laps: "_Laps") -> Tensor:
        """Forward, backward, update; collective. Returns this trainer's share of the loss."""
        logits = self._replica(batch.inputs, batch.blocks, batch.key)
        loss = global_loss(logits, batch.labels, batch.global_size)
        laps.end("forward_seconds")
        self._optimizer.zero_grad(set_to_none=False)
        self._gradient_sum.called_at = None
        loss.backward()
        laps.end("backward_seconds", until=self._gradient_sum.called_at)
        if self._gradient_sum.called_at is not None:
            laps.end("all_reduce_seconds")
        self._optimizer.step()
        laps.end("optimizer_seconds")
        return loss.detach()

    def evaluate(self, epoch: int, compute_scores: Callable[[], Scores]) -> dict[str, Any]:
        """Score all nodes, and keep the weights if they are the best; collective.

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
        if self._best is None or math.isnan(self._best[0]) or quality > self._best[0]:
            self._best = quality, epoch, scores
            if self._run is not None:
                self._mark("writing the checkpoint", State.WORKING)
                about = {**self._about, "epoch": epoch, "val": scores["val"]}
                self._run.save_model(self._model, about)
        return {"eval_seconds": seconds, **scores}


class _Laps:
    """Where the time of an epoch goes, by name, and other counters."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def end(self, name: str, until: float | None = None) -> None:
        """Book the time since the last lap's end."""
        now = time.perf_counter() if until is None else until
        self.counters[name] += now - self._last
        self._last = now


def selection_score(scores: dict[str, float]) -> float:
    """The number that decides which epoch is best: ROC-AUC or micro-F1 where there is one."""
    for name in ("roc_auc", "micro_f1"):
        if name in scores:
            return scores[name]
    return scores["accuracy"]


def _totals(counters: dict[str, float], trainers: Collectives) -> dict[str, Any]:
    """Each counter of an epoch: per trainer and in total."""
    names = sorted(counters)
    own = torch.tensor([[counters[name] for name in names]], dtype=torch.float64)
    per_trainer = trainers.concatenate(own)
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
