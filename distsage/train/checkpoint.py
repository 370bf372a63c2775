"""A checkpoint: everything that the next step of a run depends on, and what run it is of.

Batches are a function of (seed, epoch, trainer rank, step), so no state of a random generator is
part of it. Made by all trainers, written by trainer 0, read by every trainer; the local run is a
trainer of one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distsage.data.encoding import Encoding, disagreement
from distsage.errors import UserError
from distsage.train.metrics import Scores
from distsage.train.tensor_file import DamagedError, read_tensors, write_tensors

# Options that decide which nodes and edges a batch has. A run with others begins the epoch anew.
_OF_BATCHES = ("batch_size", "fan_out", "sampler", "replace", "seed")
# Options that decide what is computed of a batch.
_OF_NUMBERS = ("lr", "weight_decay", "dropout", "precision", "feat_dtype", "input_layer")


@dataclass(frozen=True)
class Origin:
    """Which run this is: what it trains, on what, and how.

    Attributes:
        command: train or local.
        kernels: level of the kernels.
        device: cpu or cuda.
        model: the arguments of GraphSAGE that its weights need.
        task: what the labels ask for.
        graph: its name.
        content: counts of nodes, edges, features and classes, and how the graph was read.
        checksum: of the parts, or of a graph in one piece.
        trainers: how many there are.
        versions: of the packages that compute.
        config: every option.
        encoding: how columns became features (`Encoding.to_json`); None: there is nothing to say.
        rows_divided: whether each row of features was divided by its sum (`--feature-norm`); None:
            nobody has noted it.
    """

    command: str
    kernels: str
    device: str
    model: Mapping[str, Any]
    task: str
    graph: str
    content: Mapping[str, Any]
    checksum: str
    trainers: int
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    encoding: Mapping[str, Any] | None = None
    rows_divided: bool | None = None


@dataclass(frozen=True)
class Best:
    """The best evaluation so far.

    Attributes:
        epoch: that was evaluated.
        quality: the number that decides (`distsage.train.metrics.selection_score`).
        scores: of all masks.
        weights: of the model then, by parameter, on the CPU.
    """

    epoch: int
    quality: float
    scores: Scores
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A moment between two steps. Tensors are copies, on the CPU.

    Attributes:
        origin: which run this is.
        epoch: that is trained, from 0; the number of epochs when the run is over.
        step: how many steps of it have been taken; all of them when only its end is missing.
        attempts: how often an epoch was gone back to after a loss that is no number, by epoch.
        seconds: that the epoch has taken so far.
        elapsed: seconds that the run has trained.
        loss_sums: float64 `[T]`, each trainer's shares of the losses of the epoch's steps.
        counters: float64 `[T, n]`, other sums over the epoch's steps.
        counter_names: of its columns.
        weights: float32, by parameter.
        optimizer: Adam's state, by `STATE.PARAMETER`.
        best: the best evaluation; None before the first.
    """

    origin: Origin
    epoch: int
    step: int
    attempts: Mapping[int, int]
    seconds: float
    elapsed: float
    loss_sums: Tensor
    counters: Tensor
    counter_names: tuple[str, ...]
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    best: Best | None

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step; grows as the run gets on."""
        return self.epoch, self.step

    def save(self, path: Path) -> None:
        """Write it; the file appears whole and synced, or not at all.

        Raises:
            OSError: it cannot be written.
        """
        best = self.best
        tensors = {"loss_sums": self.loss_sums, "counters": self.counters}
        tensors |= {f"model.{name}": value for name, value in self.weights.items()}
        tensors |= {f"adam.{name}": value for name, value in self.optimizer.items()}
        about: dict[str, Any] = {
            "origin": asdict(self.origin),
            "epoch": self.epoch,
            "step": self.step,
            "attempts": list(self.attempts.items()),
            "seconds": self.seconds,
            "elapsed": self.elapsed,
            "counter_names": self.counter_names,
            "best": None,
        }
        if best is not None:
            tensors |= {f"best.{name}": value for name, value in best.weights.items()}
            about["best"] = {"epoch": best.epoch, "quality": best.quality, "scores": best.scores}
        write_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read what `save` wrote.

        Raises:
            OSError: it cannot be read.
            DamagedError: it is no checkpoint, or no longer the one that was written.
        """
        tensors, about = read_tensors(path)

        def group(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }

        try:
            best = about["best"]
            checkpoint = cls(
                origin=Origin(**about["origin"]),
                epoch=int(about["epoch"]),
                step=int(about["step"]),
                attempts={int(epoch): int(count) for epoch, count in about["attempts"]},
                seconds=float(about["seconds"]),
                elapsed=float(about["elapsed"]),
                loss_sums=tensors["loss_sums"],
                counters=tensors["counters"],
                counter_names=tuple(about["counter_names"]),
                weights=group("model."),
                optimizer=group("adam."),
                best=None if best is None else Best(**best, weights=group("best.")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{path} is no checkpoint of this version of distsage") from error
        return checkpoint


def going_on(saved: Origin, now: Origin, where: Path) -> tuple[bool, list[str]]:
    """Whether a run can take the very next step of a checkpoint, or begins its epoch anew.

    Args:
        saved: the checkpoint's run.
        now: the run that is to go on.
        where: the checkpoint, for messages.

    Returns:
        True for the next step; and what people have to be told.

    Raises:
        UserError: it is a run of another graph, model or task.
    """
    for what, was, is_now in (
        ("graph", (saved.graph, dict(saved.content)), (now.graph, dict(now.content))),
        ("task", saved.task, now.task),
        ("model", _without_dropout(saved.model), _without_dropout(now.model)),
    ):
        if was != is_now:
            raise UserError(
                f"{where} is of another {what} ({_difference(was, is_now)}); name another "
                "--run-dir, or give --resume never to train from the beginning"
            )
    encodings = (
        None if each is None else Encoding.from_json(each)
        for each in (saved.encoding, now.encoding)
    )
    other_features = disagreement(*encodings)
    if other_features is not None:
        raise UserError(
            f"{where} is of other features ({other_features}); name another --run-dir, or give "
            "--resume never to train from the beginning"
        )
    if saved.command == now.command == "local" and saved.checksum != now.checksum:
        raise UserError(
            f"{where} is of another graph of the name and size of {now.graph}; name another "
            "--run-dir, or give --resume never to train from the beginning"
        )
    other = [name for name in _OF_BATCHES if saved.config.get(name) != now.config.get(name)]
    notes = []
    if saved.trainers != now.trainers:
        notes.append(f"{now.trainers} trainers instead of {saved.trainers}")
    elif saved.checksum != now.checksum:
        notes.append("another partitioning of the graph")
    notes += [_change(name, saved.config, now.config) for name in other]
    next_step = not notes
    if notes:
        notes = [f"{', '.join(notes)}: the epoch begins anew with the weights as they are"]
    changed = [
        _change(name, saved.config, now.config)
        for name in _OF_NUMBERS
        if saved.config.get(name) != now.config.get(name)
    ]
    changed += [
        f"{what} {is_now} instead of {was}"
        for what, was, is_now in (
            ("kernels", saved.kernels, now.kernels),
            ("device", saved.device, now.device),
            *((name, saved.versions.get(name), now.versions[name]) for name in now.versions),
        )
        if was != is_now
    ]
    if changed:
        notes.append(f"{', '.join(changed)}: results will not be those of one run to the last bit")
    return next_step, notes


def _without_dropout(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name != "dropout"}


def _change(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return f"--{name.replace('_', '-')} {now.get(name)} instead of {saved.get(name)}"


def _difference(was: Any, is_now: Any) -> str:
    """What tells two descriptions apart, for a message."""
    if isinstance(was, tuple):
        if was[0] != is_now[0]:
            return f"{was[0]}, not {is_now[0]}"
        was, is_now = was[1], is_now[1]
    if isinstance(was, dict):
        names = [name for name in {**was, **is_now} if was.get(name) != is_now.get(name)]
        return ", ".join(f"{name} {was.get(name)}, not {is_now.get(name)}" for name in names)
    return f"{was}, not {is_now}"


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters, by name, on the CPU."""
    return {name: _copy(value) for name, value in model.state_dict().items()}


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of the optimiser's tensors, by `STATE.PARAMETER`, on the CPU; none before a step."""
    return {
        f"{state}.{name}": _copy(value)
        for name, parameter in model.named_parameters()
        for state, value in optimizer.state.get(parameter, {}).items()
    }


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give a model and its optimiser what a checkpoint holds."""
    model.load_state_dict(dict(checkpoint.weights))
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        states = {
            key.partition(".")[0]: value
            for key, value in checkpoint.optimizer.items()
            if key.partition(".")[2] == name
        }
        if states:
            optimizer.state[parameter] = {
                state: _laid_out_as(parameter, value) for state, value in states.items()
            }


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy that lies in memory as the parameter does, on its device; Adam takes both in order."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(value)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
