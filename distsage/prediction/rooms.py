"""Rows between layers within a bound on memory: what does not fit lies in mapped files.

Runs on one machine and on trainer ranks. Pages of mapped files are not counted: the system writes
them back and takes them away under pressure.
"""

import contextlib
import math
import mmap
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from distsage.files import allocate, explain_write_errors, own_directory, read_json, write_json
from distsage.limits import free_memory, require_memory
from distsage.model.inference import Rooms

_SYNCED_BYTES = 64 << 20
"""Rows that are brought to the disk at a time: a slow one takes longer for a whole layer than a job
waits for headway."""


class BoundedRooms(Rooms):
    """Rooms in memory as long as there is some, then in files below a folder.

    The folder is made with the first file, and one process at a time has it. Layers in files are
    left behind by a process that is killed, and those that were finished are taken up by the next
    one. Use it in a `with` statement: what it leaves at the end is nothing, or, after an error,
    finished layers.

    Args:
        folder: to make.
        doing: what the rows are for, as messages have it.
        option: with which the user has chosen where the folder lies.
    """

    def __init__(self, folder: Path, doing: str = "predicting", option: str = "--output") -> None:
        self._folder, self._doing, self._option = folder, doing, option
        self._reserve = 0
        self._about: Mapping[str, Any] | None = None
        self._lock: IO[str] | None = None
        self._made: list[Path] = []
        self._on_disk: set[int] = set()

    def prepare(self, reserve: int, about: Mapping[str, Any] | None) -> None:
        """See that there is memory for everything but the rows. Comes before the first room.

        Args:
            reserve: bytes that are left for everything else.
            about: what the rows of layers depend on, those of something else are not taken up; None
                leaves nothing to be taken up.

        Raises:
            UserError: there is too little memory.
        """
        require_memory(reserve, f"{self._doing}, with all rows in files,")
        self._reserve, self._about = reserve, about

    def own(self) -> None:
        """Make the folder now, and keep other processes out of it.

        Raises:
            UserError: it cannot be made, or belongs to a process that lives.
        """
        if self._lock is None:
            self._made = [above for above in self._folder.parents if not above.exists()]
            self._lock = own_directory(self._folder, self._doing, self._option)

    def scratch(self, name: str) -> Path:
        """An empty folder for other files that are not needed any more at the end.

        Raises:
            UserError: it cannot be made.
        """
        self.own()
        folder = self._folder / name
        with explain_write_errors(folder, self._option):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        return folder

    def table(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Rooms`; its file has no name, so that it vanishes with whoever has it mapped.

        Raises:
            UserError: there is no room on the disk.
        """
        if self._fits(shape, dtype):
            return super().table(*shape, dtype=dtype)
        self.own()
        path = self._folder / f"table-{os.getpid()}"
        try:
            return self._mapped(path, shape, dtype, new=True)
        finally:
            path.unlink(missing_ok=True)

    def layer(self, layer: int, count: int, width: int) -> Tensor:
        """See `Rooms`.

        Raises:
            UserError: there is no room on the disk.
        """
        if self._about is None or self._fits((count, width), torch.float32):
            return self.table(count, width)
        self.own()
        self._mark(layer).unlink(missing_ok=True)
        self._on_disk.add(layer)
        return self._mapped(self._rows(layer), (count, width), torch.float32, new=True)

    def finish(self, layer: int, rows: Tensor, on_headway: Callable[[], object]) -> None:
        """See `Rooms`."""
        if layer not in self._on_disk:
            return
        assert self._about is not None
        with explain_write_errors(self._rows(layer), self._option):
            with open(self._rows(layer), "r+b") as stream:  # before the mark says so
                if rows.nbytes:
                    with mmap.mmap(stream.fileno(), 0) as content:
                        for begin in range(0, len(content), _SYNCED_BYTES):
                            content.flush(begin, min(_SYNCED_BYTES, len(content) - begin))
                            on_headway()
                os.fsync(stream.fileno())
            write_json(self._mark(layer), {**self._about, "shape": list(rows.shape)})

    def finished(self, num_layers: int) -> list[int]:
        """See `Rooms`.

        Raises:
            UserError: the folder belongs to a process that lives.
        """
        if self._about is None or not self._folder.exists():
            return []
        self.own()
        for layer in range(num_layers):
            if not self._mark(layer).exists():
                continue
            about = read_json(self._mark(layer))
            shape = about.pop("shape", [])
            if about == self._about and self._is_whole(layer, shape):
                self._on_disk.add(layer)
        return sorted(self._on_disk)

    def taken_up(self, layer: int) -> Tensor:
        """See `Rooms`."""
        shape = read_json(self._mark(layer))["shape"]
        return self._mapped(self._rows(layer), shape, torch.float32, new=False)

    def forget(self, layer: int) -> None:
        """See `Rooms`. Whoever has their rows keeps them; only their names vanish."""
        for earlier in [each for each in self._on_disk if each <= layer]:
            self._mark(earlier).unlink(missing_ok=True)
            self._rows(earlier).unlink(missing_ok=True)
            self._on_disk.discard(earlier)

    def __enter__(self) -> "BoundedRooms":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove what nobody can take up."""
        if self._lock is None:
            return
        done = {layer for layer in self._on_disk if self._mark(layer).exists()}
        if kind is None or not done:
            shutil.rmtree(self._folder, ignore_errors=True)
        for layer in self._on_disk - done:
            self._rows(layer).unlink(missing_ok=True)
        self._lock.close()
        for folder in self._made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    def _fits(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        size = math.prod(shape) * dtype.itemsize
        return size == 0 or size + self._reserve <= free_memory()

    def _mapped(
        self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, *, new: bool
    ) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        with explain_write_errors(path, self._option):
            if new:
                allocate(path, size)
            content = np.memmap(path, np.uint8, "r+", 0, (size,))
        return torch.from_numpy(content).view(dtype).view(shape)

    def _is_whole(self, layer: int, shape: list[int]) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self._rows(layer).stat().st_size == 4 * math.prod(shape)
        return False

    def _rows(self, layer: int) -> Path:
        return self._folder / f"layer-{layer}.rows"

    def _mark(self, layer: int) -> Path:
        return self._folder / f"layer-{layer}.json"
