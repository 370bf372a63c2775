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
from distsage.launch.watch.watcher import Mark, State
from distsage.model.graphsage import GraphSAGE
from distsage.train.allocator import keep_freed_memory
from distsage.train.batches import Batch
from distsage.train.feeding import feed
from distsage.train.run_directory import RunDirectory
from distsage.train.trainers import Trainers

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


def fit(
    config: TrainingOptions,
    model: GraphSAGE,
    epoch_batches: Callable[[int], Iterator[Batch]],
    evaluate: Callable[[], Scores],
    trainers: Trainers,
    run: RunDirectory | None,
    description: dict[str, Any],
    mark: Mark,
) -> dict[str, Any]:
    """Train; collective over the trainers.

    Args:
        config: what `train` and `local` share.
        model: on its device; holds the last epoch's weights afterwards.
        epoch_batches: the batches of an epoch, as many on every trainer.
        evaluate: scores of all nodes of each mask, the same on every trainer; collective.
        trainers: of the job.
        run: where to write; on trainer 0 only.
        description: goes beside the weights, so that the model can be rebuilt.
        mark: notes progress: what this trainer does from now on.

    Returns:
        The scores of the best validation epoch, its number (`best_epoch`, from 0), `epochs` and
        `seconds`.

    Raises:
        UserError: the loss is no longer a number.
    """
    keep_freed_memory()
    replica: nn.Module = model
    gradient_sum = _GradientSum(mark)
    if trainers.size > 1:
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=1024)
        parallel.register_comm_hook(None, gradient_sum.add)
        replica = parallel
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    best: tuple[float, int, Scores] | None = None
    started = time.perf_counter()
    for epoch in range(config.num_epochs):
        epoch_started = time.perf_counter()
        model.train()
        batches = epoch_batches(epoch)
        loss, counters = _train_epoch(batches, replica, optimizer, gradient_sum, mark, epoch)
        loss = float(trainers.sum(torch.tensor(loss, dtype=torch.float64)))
        if not math.isfinite(loss):
            raise UserError(
                f"the loss of epoch {epoch} is {loss}; lower --lr, or look for huge values in the "
                "features"
            )
        seconds = round(time.perf_counter() - epoch_started, 6)
        record = {"epoch": epoch, "loss": loss, "seconds": seconds, **_totals(counters, trainers)}
        if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.num_epochs:
            mark(f"evaluating epoch {epoch}", State.WAITING)
            evaluation_started = time.perf_counter()
            model.eval()
            scores = evaluate()
            record["eval_seconds"] = round(time.perf_counter() - evaluation_started, 6)
            record.update(scores)
            quality = selection_score(scores["val"])
            # A number beats NaN, and NaN no number. Without validation nodes there is no number,
            # and the last epoch counts as the best.
            if best is None or math.isnan(best[0]) or quality > best[0]:
                best = (quality, epoch, scores)
                if run is not None:
                    mark("writing the checkpoint", State.WORKING)
                    run.save_model(model, {**description, "epoch": epoch, "val": scores["val"]})
        if run is not None:
            run.record(record)
            print(_progress(record, config.num_epochs), flush=True)
    assert best is not None
    return {
        **best[2],
        "best_epoch": best[1],
        "epochs": config.num_epochs,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _train_epoch(
    batches: Iterator[Batch],
    replica: nn.Module,
    optimizer: torch.optim.Optimizer,
    gradient_sum: _GradientSum,
    mark: Mark,
    epoch: int,
) -> tuple[float, dict[str, float]]:
    """Take a step on every batch; return this trainer's share of the mean loss, and counters."""
    device = next(replica.parameters()).device
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    counters: dict[str, float] = defaultdict(float)
    steps = 0
    lap = time.perf_counter()

    def split(name: str, until: float | None = None) -> None:
        """Book the time since the last split."""
        nonlocal lap
        now = time.perf_counter() if until is None else until
        counters[name] += now - lap
        lap = now

    mark(f"waiting for batch 0 of epoch {epoch}", State.WAITING)
    for batch in feed(batches, device):
        split("wait_seconds")
        mark(f"computing step {steps} of epoch {epoch}", State.WORKING)
        logits = replica(batch.inputs, batch.blocks, batch.key)
        loss = global_loss(logits, batch.labels, batch.global_size)
        split("forward_seconds")
        optimizer.zero_grad(set_to_none=False)
        gradient_sum.called_at = None
        loss.backward()
        if gradient_sum.called_at is not None:
            split("backward_seconds", until=gradient_sum.called_at)
            split("all_reduce_seconds")
        else:
            split("backward_seconds")
        optimizer.step()
        split("optimizer_seconds")
        loss_sum += loss.detach()
        steps += 1
        for name, value in batch.counters.items():
            counters[name] += value
        mark(f"waiting for batch {steps} of epoch {epoch}", State.WAITING)
    counters["steps"] = steps
    return float(loss_sum) / steps, counters


def selection_score(scores: dict[str, float]) -> float:
    """The number that decides which epoch is best: ROC-AUC or micro-F1 where there is one."""
    for name in ("roc_auc", "micro_f1"):
        if name in scores:
            return scores[name]
    return scores["accuracy"]


def _totals(counters: dict[str, float], trainers: Trainers) -> dict[str, Any]:
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
