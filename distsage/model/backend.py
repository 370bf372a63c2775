"""How a process computes: on which device, by kernels or by tensor operations, in how many threads.

Runs on trainer ranks, in the local run and in prediction.
"""

import torch

from distsage.errors import UserError
from distsage.kernels import level, threads
from distsage.kernels.level import Level


def choose_device(wanted: str) -> torch.device:
    """The device that `--device` asks of one process; cpu never asks for a GPU.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda, but PyTorch sees no GPU here; use --device cpu")
    return torch.device("cuda", 0)


def by_kernels(device: torch.device) -> bool:
    """Whether the model on this device is computed by our kernels, otherwise by torch's operations.

    Kernels need a CPU of some level; a GPU and level `torch` share the plain operations.
    """
    return device.type == "cpu" and level.chosen() > Level.TORCH


def set_threads(device: torch.device) -> None:
    """Give the thread budget to whoever computes: to the kernels, or else to PyTorch.

    Where kernels compute, PyTorch's operations run in the threads that call them: a second pool
    would compete with the kernels' for the same cores, and its threads spin while they wait.
    """
    if not by_kernels(device):
        torch.set_num_threads(threads.budget())
        return
    torch.set_num_threads(1)
    # oneDNN asks the thread that it is called in, and takes OMP_NUM_THREADS where nobody has said.
    threads.begin_with(lambda: torch.set_num_threads(1))


def description(device: torch.device) -> str:
    """One line for people: what computes here."""
    if device.type != "cpu":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    count = threads.budget()
    return (
        f"kernels {level.chosen()} ({level.processor_name()}), {count} "
        f"thread{'s' if count > 1 else ''}"
    )
