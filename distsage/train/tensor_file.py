"""Tensors and what there is to say of them, in one file with a checksum of both.

The file is a safetensors file: reading it executes nothing. Written by trainer 0 and the local run;
read by every trainer, and by predict.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distsage.errors import UserError
from distsage.files import atomic_file

# Keys of the file's metadata, which safetensors keeps as strings.
_ABOUT, _CHECKSUM = "distsage", "sha256"


class DamagedError(UserError):
    """A file that is not, or no longer, what `write_tensors` wrote."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write CPU tensors, and `about` as JSON; the file appears whole and synced, or not at all.

    Raises:
        OSError: it cannot be written.
    """
    said = json.dumps(about)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {_ABOUT: said, _CHECKSUM: _checksum(contiguous, said)}
    with atomic_file(path) as stream:
        stream.write(safetensors.torch.save(contiguous, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Returns:
        The tensors, and what is said of them.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is another file, or its checksum is not that of its content.
    """
    with open(path, "rb"):  # an OSError that says what is wrong; safetensors' own does not
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: {_first_line(error)}") from error
    said = metadata.get(_ABOUT, "")
    if metadata.get(_CHECKSUM) != _checksum(tensors, said):
        raise DamagedError(f"{path} is damaged: its checksum is not that of its content")
    try:
        about = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {_first_line(error)}") from error
    if not isinstance(about, dict):
        raise DamagedError(f"{path} is damaged: it does not say what it holds")
    return tensors, about


def _checksum(tensors: Mapping[str, Tensor], said: str) -> str:
    """Of names, types, shapes and values, and of what is said of them."""
    digest = hashlib.sha256(said.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if math.prod(tensor.shape):
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
