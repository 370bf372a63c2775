"""What a command and the processes that it starts take, for benchmarks."""

import contextlib
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

_POLL_SECONDS = 0.02
_TIMEOUT_SECONDS = 3600


def own_bytes(processes: list[int]) -> int:
    """What processes have in memory together; pages of files and shared memory are not counted."""
    return sum(map(_own_bytes, processes))


def measured(
    command: list[str],
    environment: Mapping[str, str] | None = None,
    taken: Callable[[list[int]], int] = own_bytes,
    poll_seconds: float = _POLL_SECONDS,
) -> tuple[float, int]:
    """Run a command; return the CPU-seconds of its processes together, and the peak of `taken`.

    Args:
        command: to run.
        environment: of it; None is this process's.
        taken: bytes of processes, the command's first; some may have ended.
        poll_seconds: from one look to the next.
    """
    peak = 0

    def watch(process: int) -> None:
        nonlocal peak
        while not done.wait(poll_seconds):
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(process)
                family = [root, *root.children(recursive=True)]
                peak = max(peak, taken([one.pid for one in family]))

    done = threading.Event()
    before = os.times()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        watcher = threading.Thread(target=watch, args=(process.pid,))
        watcher.start()
        try:
            status = process.wait(_TIMEOUT_SECONDS)
        finally:
            done.set()
            watcher.join()
            process.kill()
        log.seek(0)
        assert status == 0, log.read()[-3000:]
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system, peak


def _own_bytes(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has ended
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found.group(1)) << 10 if found else 0
