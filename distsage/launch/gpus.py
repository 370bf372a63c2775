"""Which GPU a trainer takes, and whether the job computes on GPUs at all. Runs on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distsage.errors import UserError


@dataclass(frozen=True)
class TrainersGPU:
    """What a trainer would compute on.

    Attributes:
        machine: the trainer's, by name.
        index: of the GPU among those that the trainer sees.
        uuid: of the GPU itself; number 0 may be another GPU for another trainer.
    """

    machine: str
    index: int
    uuid: str


def find_gpu(machine: str, trainer_on_machine: int) -> TrainersGPU | None:
    """The GPU of the trainer with this number on its machine, if there is any. Imports torch."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return None
    index = trainer_on_machine % count
    return TrainersGPU(machine, index, str(torch.cuda.get_device_properties(index).uuid))


def computes_on_gpus(
    wanted: Literal["auto", "cuda"], found: Sequence[TrainersGPU | None], machines: Sequence[str]
) -> tuple[bool, str]:
    """Decide for the whole job, and say why.

    Args:
        wanted: auto takes GPUs where every trainer has one of its own.
        found: what each trainer has found.
        machines: each trainer's, by name.

    Returns:
        Whether all trainers take their GPUs, and a line for people ("" where there is no choice).

    Raises:
        UserError: cuda is wanted, and a trainer has no GPU, or two share one.
    """
    gpus = [gpu for gpu in found if gpu is not None]
    if wanted == "auto" and not gpus:
        return False, ""
    for machine in dict.fromkeys(machines):
        trainers = machines.count(machine)
        here = len({gpu.uuid for gpu in gpus if gpu.machine == machine})
        if here >= trainers:
            continue
        facts = f"{machine} has {here or 'no'} GPU{'' if here == 1 else 's'} for {trainers} trainer"
        facts += "" if trainers == 1 else "s"
        if wanted == "auto":
            return False, f"device cpu ({facts}; a trainer takes a GPU of its own)"
        raise UserError(
            f"--device cuda, but {facts}; start one pair per GPU, ask Slurm for the GPUs "
            "(--gpus-per-node), or give --device cpu"
        )
    return True, f"device cuda, a GPU for each of {len(machines)} trainers"
