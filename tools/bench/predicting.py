"""What predicting takes of a host's memory: `python -m tools.bench.predicting RUN`. Writes nothing.

Applies a run of `train`, or of `local --parts`, to its parts: by one process, by one that may use a
third of what that one took, and by jobs of four emulated hosts of a pair each. Memory is that of
all of a host's processes, shared memory included, and pages of files left out. Seconds are those of
processors, so that other work on the machine changes little.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet

from distsage.limits import human_bytes

from ..mpirun import launcher

NUM_HOSTS = 4
_POLL_SECONDS = 0.1
_TIMEOUT_SECONDS = 3600
_COUNTED = ("Pss_Anon:", "Pss_Shmem:")


@dataclass(frozen=True)
class Taken:
    """What a prediction took.

    Attributes:
        peak: bytes of the host that took the most.
        cpu: seconds, of all processes.
    """

    peak: int
    cpu: float


def measured(
    command: list[str], environment: dict[str, str], host_of: Callable[[int], int | None]
) -> Taken:
    """Run a command. `host_of` gives the host of one of its processes, or None."""
    peak = 0

    def watch(root: int) -> None:
        nonlocal peak
        while not done.wait(_POLL_SECONDS):
            taken: dict[int, int] = defaultdict(int)
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(root)
                for one in (process, *process.children(recursive=True)):
                    with contextlib.suppress(OSError):  # it has ended
                        host = host_of(one.pid)
                        if host is not None:
                            taken[host] += _counted_bytes(one.pid)
            peak = max(peak, *taken.values(), 0)

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
    return Taken(peak, used - before.children_user - before.children_system)


def _counted_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(_COUNTED))


def _host_of_rank(pid: int) -> int | None:
    """A host has a pair, and mpirun belongs to none."""
    for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if variable.startswith(b"OMPI_COMM_WORLD_RANK="):
            return int(variable.partition(b"=")[2]) // 2
    return None


def _rows(output: Path) -> np.ndarray:
    """`[N, C]`, in the order of the parts' nodes."""
    tables = [pyarrow.parquet.read_table(path) for path in sorted(output.glob("part-*.parquet"))]
    return np.concatenate([np.stack(table.drop("id").columns, 1) for table in tables])


def main() -> None:
    """Print a line for each way of predicting."""
    options = argparse.ArgumentParser(description="What predicting takes of a host's memory.")
    options.add_argument("run", type=Path, help="directory of a run")
    options.add_argument("--memory", default="500M", help="of a process, where it is bounded")
    options.add_argument("--scratch", type=Path, help="where predictions go, and rows in files")
    asked = options.parse_args()
    print("| | peak memory of a host | of one process's | CPU | largest difference |")
    print("|---|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
        words = ["predict", "--run-dir", str(asked.run), "--what", "logits", "--output"]
        alone = [sys.executable, "-m", "distsage", *words]
        of_ranks, environment = launcher(2 * NUM_HOSTS)
        of_ranks += [sys.executable, "-m", "mpi4py", "-m", "distsage", *words]
        environment["OMP_NUM_THREADS"] = "1"
        first = Path(scratch) / "first"
        whole = measured([*alone, str(first)], dict(os.environ), lambda _: 0)
        reference = _rows(first)

        def line(name: str, taken: Taken, output: Path) -> None:
            share = f"{100 * taken.peak / whole.peak:.0f} %"
            difference = np.abs(_rows(output) - reference).max()
            print(
                f"| {name} | {human_bytes(taken.peak)} | {share} | {taken.cpu:.0f} s "
                f"| {difference:.2g} |",
                flush=True,
            )

        line("one process", whole, first)
        third, bound = f"{whole.peak // 3 >> 20}M", asked.memory
        hosts = ["--emulated-hosts", str(NUM_HOSTS)]
        for name, more, host_of in (
            (f"one process, `--memory {third}`", ["--memory", third], lambda _: 0),
            (f"{NUM_HOSTS} hosts", hosts, _host_of_rank),
            (f"{NUM_HOSTS} hosts, `--memory {bound}`", [*hosts, "--memory", bound], _host_of_rank),
        ):
            output = Path(scratch) / f"output-{len(os.listdir(scratch))}"
            command, where = alone, dict(os.environ)
            if hosts[0] in more:
                command, where = of_ranks, environment
            line(name, measured([*command, str(output), *more], where, host_of), output)


if __name__ == "__main__":
    main()
