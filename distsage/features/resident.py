"""Feature rows that stay in a GPU's memory, so that batches need not bring them. Trainer ranks.

Runs in the local run, too. On a CPU nothing is resident: layer 1 reads rows where they are.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distsage.features.matrix import Features
from distsage.features.slots import PartlyResident, gather_rows

_SHARE_OF_GPU = 0.5
"""How much of a GPU's free memory resident rows may take."""


@dataclass(frozen=True)
class ResidentRows:
    """Rows of the slots [first, end), in a GPU's memory.

    Attributes:
        first: their first slot.
        rows: `[end - first, F]`, on the GPU.
    """

    first: int
    rows: Tensor

    def holds(self, slots: np.ndarray) -> np.ndarray:
        """Which slots are among them, bool `[n]`."""
        return (slots >= self.first) & (slots < self.first + len(self.rows))


def keep_on_gpu(own: Features, cached: Features, device: torch.device) -> ResidentRows | None:
    """Copy own and cached rows to a GPU as far as they fit: both, or the cached ones, or none.

    Sparse rows are not kept there.

    Args:
        own: `[n, F]`, the rows of the first slots.
        cached: `[c, F]`, those of the next ones.
        device: None is returned for a CPU.
    """
    if device.type != "cuda" or not isinstance(own, Tensor) or not isinstance(cached, Tensor):
        return None
    room = torch.cuda.mem_get_info(device)[0] * _SHARE_OF_GPU
    for first, tables in ((0, (own, cached)), (len(own), (cached,))):
        if sum(table.nbytes for table in tables) <= room:
            return ResidentRows(first, torch.cat([table.to(device) for table in tables]))
    return None


def input_rows(
    tables: tuple[Tensor, ...], slots: np.ndarray, resident: ResidentRows | None
) -> Tensor | PartlyResident:
    """Put the input rows of a batch together, but those that are resident.

    Args:
        tables: on the CPU; slots count through them.
        slots: integer `[n]`.
        resident: what need not be copied.

    Returns:
        `[n, F]`, or what it is assembled from on the GPU.
    """
    if resident is None:
        return gather_rows(tables, slots)
    here = resident.holds(slots)
    at, elsewhere = np.flatnonzero(here), np.flatnonzero(~here)
    return PartlyResident(
        resident.rows,
        torch.from_numpy(slots[at].astype(np.int64) - resident.first),
        torch.from_numpy(at),
        gather_rows(tables, slots[elsewhere], pin=True),
        torch.from_numpy(elsewhere),
    )
