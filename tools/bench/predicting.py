"""What predicting takes of a host's memory: `python -m tools.bench.predicting RUN`. Writes nothing.

Applies a run of `train`, or of `local --parts`, to its parts: by one process, by one that may use a
third of what that one took, and by jobs of four emulated hosts of a pair each. Memory is that of
all of a host's processes, shared memory included, and pages of files left out. Seconds are those of
processors, so that other work on the machine changes little.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet

from distsage.limits import human_bytes

from ..mpirun import launcher
from .processes import measured

NUM_HOSTS = 4
_POLL_SECONDS = 0.1
_COUNTED = ("Pss_Anon:", "Pss_Shmem:")


def _largest_host(host_of: Callable[[int], int | None]) -> Callable[[list[int]], int]:
    """What the host takes that takes most. `host_of` gives the host of a process, or None."""

    def taken(processes: list[int]) -> int:
        of_hosts: dict[int, int] = defaultdict(int)
        for process in processes:
            with contextlib.suppress(OSError):  # it has ended
                host = host_of(process)
                if host is not None:
                    of_hosts[host] += _counted_bytes(process)
        return max(of_hosts.values(), default=0)

    return taken


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
        one_host = _largest_host(lambda _: 0)
        hosts_of_ranks = _largest_host(_host_of_rank)
        cpu, whole = measured([*alone, str(first)], None, one_host, _POLL_SECONDS)
        reference = _rows(first)

        def line(name: str, cpu: float, peak: int, output: Path) -> None:
            share = f"{100 * peak / whole:.0f} %"
            difference = np.abs(_rows(output) - reference).max()
            print(
                f"| {name} | {human_bytes(peak)} | {share} | {cpu:.0f} s | {difference:.2g} |",
                flush=True,
            )

        line("one process", cpu, whole, first)
        third, bound = f"{whole // 3 >> 20}M", asked.memory
        hosts = ["--emulated-hosts", str(NUM_HOSTS)]
        for name, more, taken in (
            (f"one process, `--memory {third}`", ["--memory", third], one_host),
            (f"{NUM_HOSTS} hosts", hosts, hosts_of_ranks),
            (f"{NUM_HOSTS} hosts, `--memory {bound}`", [*hosts, "--memory", bound], hosts_of_ranks),
        ):
            output = Path(scratch) / f"output-{len(os.listdir(scratch))}"
            command, where = alone, None
            if hosts[0] in more:
                command, where = of_ranks, environment
            words = [*command, str(output), *more]
            line(name, *measured(words, where, taken, _POLL_SECONDS), output)


if __name__ == "__main__":
    main()
