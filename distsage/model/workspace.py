"""Memory for the activations of a batch, used again for the next one. Runs where a model does.

The rows of a layer take tens of megabytes, a few more or fewer in every batch. Allocated and freed
for each batch, such blocks leave the heap in holes of which none is quite large enough: a trainer's
memory doubled within a minute and went on growing, and every new page had to be cleared.
"""

import torch
from torch import Tensor


class Workspace:
    """Blocks of memory by name, as large as the largest that was asked for.

    What a block held is lost when it is asked for again; autograd notices, so that a backward pass
    of an earlier batch fails instead of reading the rows of a later one.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Uninitialised `[rows, columns]` on the CPU, valid until this name is asked for again."""
        size = rows * columns
        block = self._blocks.get((name, dtype))
        if block is None or len(block) < size:
            block = self._blocks[name, dtype] = torch.empty(size + size // 8, dtype=dtype)
        torch.autograd.graph.increment_version(block)
        return block[:size].view(rows, columns)
