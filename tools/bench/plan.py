"""How far are plans off? Runs small jobs, plans them beforehand, and compares.

`python -m tools.bench.plan` makes the parts of a synthetic graph, plans and trains on 1, 2 and 4
emulated hosts of this machine, and writes the table into docs/planning.md. Other graphs can be
named, each gets a table. With `--rate 1gbit` it also trains on an emulated cluster whose hosts have
such a network; that needs root.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from distsage.files import atomic_file
from distsage.limits import usable_cores
from distsage.train.records import read_run
from tools.mpirun import launcher

from .cluster import REPOSITORY, Cluster, cluster
from .runs import make_parts

_GRAPH, _PARTS = "synthetic:100000:20:100", 4
_HOSTS = (1, 2, 4)
_EPOCHS = 6
_TRAINING = ["--batch-size", "500", "--num-epochs", str(_EPOCHS), "--eval-every", str(_EPOCHS)]
_JOB_SECONDS = 300.0
_POLL_SECONDS = 0.1
_GOALS = {"epoch, s": 20.0, "memory, MiB": 10.0, "bytes, MiB": 5.0}


@dataclass(frozen=True)
class Comparison:
    """What was planned and what was measured, by the names of _GOALS."""

    hosts: int
    network: str
    planned: dict[str, float]
    measured: dict[str, float]

    def errors(self) -> dict[str, float]:
        """In percent of what was measured."""
        return {
            name: 100 * (self.planned[name] / self.measured[name] - 1)
            for name in _GOALS
            if self.measured[name]
        }


def compare(parts: Path, hosts: int, rate: str | None) -> Comparison:
    """Plan a job, then run it twice: looking at its memory takes time."""
    with tempfile.TemporaryDirectory(dir=parts.parent) as folder:
        plan_file = Path(folder, "plan.json")
        words = ["--parts", str(parts), *_TRAINING]
        network = ["--network", rate] if rate else []
        cores = usable_cores() / hosts  # the machine's are shared by all
        threads = {"OMP_NUM_THREADS": str(max(1, usable_cores() // hosts))}
        planning = ["--hosts", str(hosts), "--cores", f"{cores:g}", "--json", str(plan_file)]
        _run([sys.executable, "-m", "distsage", "plan", *words, *planning, *network], threads)
        (planned,) = json.loads(plan_file.read_text())["hosts"]
        timed, watched = Path(folder, "timed"), Path(folder, "watched")
        for run_dir in (timed, watched):
            options = [*words, "--run-dir", str(run_dir)]
            if rate is None:
                peak = _train_here(hosts, options, threads, watch=run_dir is watched)
            else:
                with cluster(hosts, rate) as emulated:
                    peak = _train_there(emulated, options, threads, watch=run_dir is watched)
        epochs = read_run(timed).epochs
    # The first epoch warms up.
    seconds = statistics.median(epoch["seconds"] for epoch in epochs[1:])
    received = [epoch["received_bytes"]["total"] for epoch in epochs]
    shared = sum(host["shared_bytes"] for host in epochs[-1]["hosts"])
    memory = [
        sum(each["shared"].values()) + max(sum(each["own"].values()), each["loading"])
        for each in planned["memory"]
    ]
    return Comparison(
        hosts,
        rate or "unlimited",
        {
            "epoch, s": planned["seconds"]["epoch"],
            "memory, MiB": sum(memory) / 2**20,
            "bytes, MiB": sum(map(sum, planned["traffic"])) / 2**20,
        },
        {
            "epoch, s": seconds,
            "memory, MiB": (peak + shared) / 2**20,
            "bytes, MiB": sum(received) / len(received) / 2**20,
        },
    )


def _train_here(hosts: int, options: list[str], threads: dict[str, str], *, watch: bool) -> int:
    """Train on emulated hosts; the peak of all ranks' own memory, in bytes, if it is watched."""
    command, environment = launcher(2 * hosts)
    program = [sys.executable, "-m", "mpi4py", "-m", "distsage", "train", *options]
    return _follow(
        subprocess.Popen(
            [*command, *program, "--emulated-hosts", str(hosts)],
            cwd=REPOSITORY,
            env={**environment, **threads, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ),
        watch,
    )


def _train_there(
    emulated: Cluster, options: list[str], threads: dict[str, str], *, watch: bool
) -> int:
    """The same as a job of an emulated cluster."""
    environment = {**os.environ, **threads, "DISTSAGE_ROOT": str(REPOSITORY)}
    environment |= {"DISTSAGE_VENV": sys.prefix}
    words = ["sbatch", "--wait", f"--nodes={len(emulated.hosts)}", "--ntasks-per-node=2"]
    words += ["--cpus-per-task=1", "--output=/dev/null", "--chdir", str(REPOSITORY)]
    program = [str(REPOSITORY / "sbatch" / "train.sh"), *options]
    return _follow(
        emulated.start("controller", [*words, *program], environment, Path(os.devnull)),
        watch,
        emulated,
    )


def _follow(job: subprocess.Popen, watch: bool, emulated: Cluster | None = None) -> int:
    """Wait for a job; the peak of the memory that its ranks have for themselves, in bytes; 0
    unless it is watched.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    peak, deadline = 0, time.monotonic() + _JOB_SECONDS
    try:
        while job.poll() is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"a job is not over in {_JOB_SECONDS:.0f} s")
            if not watch:
                pids = []
            elif emulated is None:
                pids = [child.pid for child in psutil.Process(job.pid).children(recursive=True)]
            else:
                pids = [pid for of_host in emulated.find() for pid in of_host]
            peak = max(peak, sum(map(_own_bytes, pids)))
            time.sleep(_POLL_SECONDS)
    finally:
        if job.poll() is None:
            job.terminate()
            job.wait(20)
    if job.returncode:
        said = job.stderr.read() if job.stderr else ""
        raise RuntimeError(f"a job ended with status {job.returncode}: {said[-2000:]}")
    return peak


def _own_bytes(pid: int) -> int:
    """Memory of a process alone, without files and shared memory."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # has ended
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Anon:"))


def _run(command: list[str], environment: dict[str, str]) -> None:
    ended = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_JOB_SECONDS,
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stdout}{ended.stderr}")


def table(found: list[Comparison]) -> str:
    """Planned, measured and error of each figure."""
    lines = ["| hosts | network | | planned | measured | error, % | goal, % | |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for each in found:
        errors = each.errors()
        for name, goal in _GOALS.items():
            if name in errors:
                met = "met" if abs(errors[name]) <= goal else "missed"
                lines.append(
                    f"| {each.hosts} | {each.network} | {name} | {each.planned[name]:.4g} "
                    f"| {each.measured[name]:.4g} | {errors[name]:+.1f} | {goal:g} | {met} |"
                )
    return "\n".join(lines)


def put(page: str, text: str) -> str:
    """A page with another table between its two marks."""
    begin, end = "<!-- measured -->", "<!-- end of measured -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    assert pattern.search(page), "the page has no place for the table"
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


def main() -> None:
    """Read the command line, plan, train, write the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.plan", description=__doc__)
    parser.add_argument(
        "graphs", nargs="*", default=[_GRAPH], help="as `partition --dataset` takes them"
    )
    parser.add_argument("--rate", help="also on a cluster with such a network, as tc writes it")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "planning.md")
    args = parser.parse_args()
    work_dir = Path.home() / ".cache" / "distsage" / "bench-plan"
    work_dir.mkdir(parents=True, exist_ok=True)
    options = ["--batch-size", "500"]
    tables = []
    for graph in args.graphs:
        parts = make_parts(work_dir, graph, options, _PARTS)
        found = []
        for rate in (None, args.rate) if args.rate else (None,):
            for hosts in _HOSTS:
                found.append(compare(parts, hosts, rate))
                print(*table(found[-1:]).splitlines()[2:], sep="\n", flush=True)
        tables.append(f"{Path(graph).name}:\n\n{table(found)}")
    page = put(args.output.read_text(), "\n\n".join(tables))
    with atomic_file(args.output, "w") as stream:
        stream.write(page)


if __name__ == "__main__":
    main()
