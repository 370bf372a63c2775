"""A limit on memory that the kernel holds a test's processes to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsage import limits


class MemoryGroup:
    """A control group below this process's. Its processes count together."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def limit(self, num_bytes: int) -> None:
        """Have the kernel kill what takes more, once it has taken back pages of files."""
        version_2 = (self.path / "memory.max").exists()
        name = "memory.max" if version_2 else "memory.limit_in_bytes"
        (self.path / name).write_text(str(num_bytes))

    @property
    def within(self) -> list[str]:
        """What stands before a command that is to run in the group."""
        return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.path)]


@pytest.fixture
def memory_group() -> Iterator[MemoryGroup]:
    """A group of the test's own."""
    for folder in limits._own_groups("memory"):
        path = folder / f"distsage-test-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        if (path / "cgroup.procs").exists() and limits._words(path / "memory.stat"):
            yield MemoryGroup(path)
            path.rmdir()
            return
        path.rmdir()
    pytest.skip(
        "this machine lets us make no control group of memory; what is left are the tests that "
        "bound a process's own data"
    )
