"""The training loop: the same for one trainer and for many. Runs on trainer ranks.

Epoch by epoch: a step per batch, a record, and now and then an evaluation on all nodes; the weights
of the best evaluation are the checkpoint.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distsage.config import TrainingOptions
from distsage.errors import UserError
from distsage.train.batches import Batch
from distsage.train.model import GraphSAGE
from distsage.train.run_directory import RunDirectory
from distsage.train.trainers import Trainers

Scores = dict[str, dict[str, float]]


def choose_device(wanted: str) -> torch.device:
    """The device that `--device` asks for.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but PyTorch sees no GPU here; use --device cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


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


def fit(
    config: TrainingOptions,
    model: GraphSAGE,
    epoch_batches: Callable[[int], Iterator[Batch]],
    evaluate: Callable[[], Scores],
    trainers: Trainers,
    run: RunDirectory | None,
    describe: dict[str, Any],
    mark: Callable[[str, bool], None],
) -> dict[str, Any]:
    """Train; collective over the trainers.

    Args:
        config: what `train` and `local` share.
        model: on its device; holds the last epoch's weights afterwards.
        epoch_batches: the batches of an epoch, as many on every trainer.
        evaluate: scores of all nodes of each mask, the same on every trainer; collective.
        trainers: of the job.
        run: where to write; on trainer 0 only.
        describe: goes beside the weights, so that the model can be rebuilt.
        mark: notes progress: what comes next, and whether it waits for other ranks.

    Returns:
        The scores of the best validation epoch, its number (`best_epoch`), `epochs` and `seconds`.

    Raises:
        UserError: the loss is no longer a number.
    """
    device = next(model.parameters()).device
    replica: nn.Module = model
    if trainers.size > 1:
        # One bucket: the model is small, and one all-reduce a step costs least.
        replica = DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=1024
        )
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    best: tuple[float, int, Scores] | None = None
    started = time.perf_counter()
    for epoch in range(config.num_epochs):
        epoch_started = time.perf_counter()
        model.train()
        loss_sum = torch.zeros((), device=device)
        counters: dict[str, float] = {}
        steps = 0
        mark(f"waiting for batch 0 of epoch {epoch}", True)
        wait_started = time.perf_counter()
        for batch in epoch_batches(epoch):
            waited = time.perf_counter() - wait_started
            mark(f"computing step {steps} of epoch {epoch}", True)
            batch = batch.to(device)
            logits = replica(batch.inputs, batch.blocks, batch.key)
            loss = global_loss(logits, batch.labels, batch.global_size)
            optimizer.zero_grad(set_to_none=False)
            # DistributedDataParallel averages the gradients; the shares have to be added.
            (loss * trainers.size).backward()
            optimizer.step()
            loss_sum += loss.detach()
            steps += 1
            for name, value in {**batch.counters, "wait_seconds": waited}.items():
                counters[name] = counters.get(name, 0) + value
            mark(f"waiting for batch {steps} of epoch {epoch}", True)
            wait_started = time.perf_counter()
        loss_mean = float(trainers.sum(loss_sum.cpu().double())) / steps
        seconds = time.perf_counter() - epoch_started
        if not math.isfinite(loss_mean):
            raise UserError(
                f"the loss of epoch {epoch} is {loss_mean}; lower --lr, or look for huge values "
                "in the features"
            )
        record: dict[str, Any] = {
            "epoch": epoch,
            "loss": loss_mean,
            "seconds": round(seconds, 6),
            "steps": steps,
            **_totals(counters, trainers),
        }
        if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.num_epochs:
            mark(f"evaluating epoch {epoch}", True)
            evaluation_started = time.perf_counter()
            model.eval()
            scores = evaluate()
            record["eval_seconds"] = round(time.perf_counter() - evaluation_started, 6)
            record.update(scores)
            quality = selection_score(scores["val"])
            if best is None or quality > best[0] or math.isnan(quality):
                best = (quality, epoch, scores)
                if run is not None:
                    run.save_model(model, {**describe, "epoch": epoch, "val": scores["val"]})
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
