"""One run of one program: start it, watch its epochs go by, and take its costs.

The first epoch warms up, and the last one ends in an evaluation; the epochs between are measured.
Every program appends a record to epochs.jsonl when an epoch is over; the counters are read at that
moment, so that neither the start of a job nor its evaluation is in the figures.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsage.partitioning.manifest import FORMAT_VERSION

from . import counters
from .cluster import REPOSITORY, Cluster

_POLL_SECONDS = 0.01
_MEMORY_SECONDS = 1.0
# Trainers, or local programs, compute with one thread: the hosts share the machine's cores.
_THREADS = {"OMP_NUM_THREADS": "1"}
_PORT = 30050


@dataclass(frozen=True)
class Workload:
    """What every program has to do in a comparison.

    Attributes:
        fan_out: input layer first.
        measured_epochs: of each run.
        batch_size: seeds per trainer and step.
        num_hidden: width of the hidden layers.
        timeout: seconds that one run may take.
    """

    fan_out: str
    measured_epochs: int
    batch_size: int = 1000
    num_hidden: int = 256
    timeout: float = 600.0

    @property
    def num_epochs(self) -> int:
        """Epochs of a run: one to warm up, the measured ones, one that ends in an evaluation."""
        return self.measured_epochs + 2


@dataclass(frozen=True)
class Epoch:
    """The costs of one measured epoch.

    Attributes:
        seconds: as the program itself took them.
        cpu: CPU-seconds of all processes on all hosts, servers and daemons included.
        received: bytes received by the interfaces of all hosts.
        foreign: CPU-seconds that other work on this machine took meanwhile.
        record: what the program wrote.
    """

    seconds: float
    cpu: float
    received: int
    foreign: float
    record: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What one run gave.

    Attributes:
        command: as it could be typed.
        epochs: the measured ones.
        accuracy: of the validation nodes after the last epoch.
        evaluation_seconds: of all nodes, once.
        memory: peak bytes of the host that needed most.
    """

    command: str
    epochs: list[Epoch]
    accuracy: float
    evaluation_seconds: float
    memory: int


def make_parts(work_dir: Path, dataset: str, options: list[str], num_parts: int) -> Path:
    """Partition a dataset, or find the parts of an earlier run; return their directory.

    Its name has the version of their format, since parts of another one cannot be read.
    """
    name = f"parts-{Path(dataset).stem.replace(':', '-')}-{num_parts}-v{FORMAT_VERSION}"
    parts = work_dir / name
    if not (parts / "manifest.json").exists():
        words = ["--dataset", dataset, *options, "--num-parts", str(num_parts)]
        with open(work_dir / f"{name}.log", "wb") as log:
            subprocess.run(
                [sys.executable, "-m", "distsage", "partition", *words, "--output", str(parts)],
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                check=True,
                timeout=3600,
            )
    return parts


def run_distsage(
    cluster: Cluster, work_dir: Path, parts_dir: Path, workload: Workload, options: list[str]
) -> Run:
    """Run `distsage train` as a Slurm job on all hosts, a pair of ranks on each."""
    manifest = json.loads((parts_dir / "manifest.json").read_bytes())
    run_dir, log = _fresh(work_dir)
    # Each trainer keeps its own part's train nodes; with this bound the steps are the baseline's,
    # and the seeds of an average step, too.
    counts = [part["train_nodes"] for part in manifest["parts"]]
    steps = max(1, -(-sum(counts) // (len(counts) * workload.batch_size)))
    batch_size = -(-max(counts) // steps)
    words = [*_training_words(workload, batch_size), *_without_evaluations(workload), *options]
    command = ["sbatch/train.sh", "--parts", str(parts_dir), "--run-dir", str(run_dir), *words]
    ending = work_dir / "status"
    ending.unlink(missing_ok=True)
    job = cluster.submit(
        [
            *(f"--nodes={len(cluster.hosts)}", "--ntasks-per-node=2", "--cpus-per-task=1"),
            *("--output", str(log), "--chdir", str(REPOSITORY)),
            *("--wrap", f"bash {' '.join(command)}; echo $? >{ending}"),
        ],
        {
            **_THREADS,
            "DISTSAGE_ROOT": str(REPOSITORY),
            "DISTSAGE_VENV": sys.prefix,
            "DISTSAGE_LOGS": str(work_dir),
        },
    )

    def status() -> int | None:
        text = ending.read_text() if ending.exists() else ""
        return int(text) if text.endswith("\n") else None

    try:
        return _follow(
            f"sbatch --nodes={len(cluster.hosts)} {' '.join(command)}",
            run_dir / "epochs.jsonl",
            workload,
            cluster.find,
            status,
            log,
        )
    finally:
        if status() is None:
            cluster.ask("controller", "scancel", job)
            time.sleep(5)


def run_baseline(cluster: Cluster, work_dir: Path, parts_dir: Path, workload: Workload) -> Run:
    """Run the distributed baseline: a server and a trainer on each host."""
    manifest = json.loads((parts_dir / "manifest.json").read_bytes())
    run_dir, log = _fresh(work_dir)
    addresses = [cluster.ask(host, "hostname", "-I").split()[0] for host in cluster.hosts]
    ip_config = work_dir / "ip_config.txt"
    ip_config.write_text("".join(f"{address} {_PORT}\n" for address in addresses))
    part_config = parts_dir / f"{manifest['graph_name']}.json"
    records = run_dir / "epochs.jsonl"
    words = [
        *("-m", "tools.bench.baseline_distributed", "--ip-config", str(ip_config)),
        *("--part-config", str(part_config), "--records", str(records)),
        *("--num-classes", str(manifest["num_classes"])),
        *_training_words(workload, workload.batch_size),
    ]
    # What DGL's launch.py gives to every process.
    common = {
        **_THREADS,
        "DGL_DIST_MODE": "distributed",
        "DGL_IP_CONFIG": str(ip_config),
        "DGL_CONF_PATH": str(part_config),
        "DGL_NUM_SERVER": "1",
        "DGL_NUM_CLIENT": str(len(addresses)),
        "DGL_NUM_SAMPLER": "0",
        "DGL_GRAPH_FORMAT": "csc",
    }
    rendezvous = {
        "MASTER_ADDR": addresses[0],
        "MASTER_PORT": "29500",
        "WORLD_SIZE": str(len(addresses)),
    }
    processes = []
    with contextlib.ExitStack() as undo:
        for index, host in enumerate(cluster.hosts):
            for own in (
                {"DGL_ROLE": "server", "DGL_SERVER_ID": str(index)},
                {"DGL_ROLE": "client", "RANK": str(index), "LOCAL_RANK": "0", **rendezvous},
            ):
                process = cluster.start(host, [sys.executable, *words], {**common, **own}, log)
                undo.callback(_end, process)
                processes.append(process)
        return _follow(
            f"python {' '.join(words)}",
            records,
            workload,
            cluster.find,
            lambda: _common_status(processes),
            log,
        )


def run_local(
    work_dir: Path, program: list[str], dataset: str, workload: Workload, options: list[str]
) -> Run:
    """Run a local program: `program` is distsage's command or the baseline's module."""
    run_dir, log = _fresh(work_dir)
    records = run_dir / "epochs.jsonl"
    is_ours = program == ["distsage", "local"]
    own = ["--records", str(records)]
    if is_ours:
        own = ["--run-dir", str(run_dir), *_without_evaluations(workload)]
    words = [
        *("-m", *program, "--dataset", dataset, *own),
        *_training_words(workload, workload.batch_size),
        *options,
    ]
    with open(log, "ab") as stream, contextlib.ExitStack() as undo:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=REPOSITORY,
            env={**os.environ, **_THREADS},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        undo.callback(_end, process)
        return _follow(
            f"python {' '.join(words)}",
            records,
            workload,
            counters.of_tree(process.pid),
            process.poll,
            log,
        )


def _training_words(workload: Workload, batch_size: int) -> list[str]:
    return [
        *("--fan-out", workload.fan_out, "--batch-size", str(batch_size)),
        *("--num-hidden", str(workload.num_hidden), "--num-epochs", str(workload.num_epochs)),
    ]


def _without_evaluations(workload: Workload) -> list[str]:
    """Options of distsage that leave the evaluation after the last epoch only."""
    return ["--eval-every", str(workload.num_epochs)]


def _fresh(work_dir: Path) -> tuple[Path, Path]:
    """An empty run directory and log."""
    run_dir, log = work_dir / "run", work_dir / "run.log"
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    log.write_bytes(b"")
    return run_dir, log


def _common_status(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """The first bad status; 0 when all have ended well; None while they run."""
    codes = [process.poll() for process in processes]
    bad = [code for code in codes if code]
    if bad:
        return bad[0]
    return None if None in codes else 0


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait(10)


def _follow(
    command: str,
    records_file: Path,
    workload: Workload,
    hosts: counters.Hosts,
    status: Callable[[], int | None],
    log: Path,
) -> Run:
    """Read the counters whenever a record appears, until the program has ended.

    Raises:
        RuntimeError: it failed, or took too long; the message ends with its log.
    """
    readings: list[counters.Reading] = []
    peak = 0
    memory_due = 0.0
    deadline = time.monotonic() + workload.timeout
    new_records = _count_records(records_file)
    while status() is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{command}: not over in {workload.timeout} s\n{_tail(log)}")
        appeared = next(new_records) - len(readings)
        if appeared > 1:
            raise RuntimeError(f"{command}: {appeared} epochs within {_POLL_SECONDS} s")
        if appeared:
            readings.append(counters.read(hosts))
        measuring = 0 < len(readings) < workload.num_epochs - 1
        if not measuring and time.monotonic() >= memory_due:
            peak = max(peak, *counters.memory(hosts))
            memory_due = time.monotonic() + _MEMORY_SECONDS
        time.sleep(_POLL_SECONDS)
    if status() != 0:
        raise RuntimeError(f"{command}: ended with status {status()}\n{_tail(log)}")
    records = [json.loads(line) for line in records_file.read_text().splitlines()]
    if len(records) != workload.num_epochs or len(readings) < workload.num_epochs - 1:
        raise RuntimeError(f"{command}: {len(records)} records, {len(readings)} were seen in time")
    last = records[-1]
    return Run(
        command=command,
        epochs=[
            _epoch(readings[i - 1], readings[i], records[i])
            for i in range(1, workload.num_epochs - 1)
        ],
        accuracy=last["val"]["accuracy"],
        evaluation_seconds=last["eval_seconds"],
        memory=peak,
    )


def _epoch(before: counters.Reading, after: counters.Reading, record: dict[str, Any]) -> Epoch:
    cpu = after.cpu - before.cpu
    return Epoch(
        seconds=record["seconds"],
        cpu=cpu,
        received=after.received - before.received,
        foreign=after.machine - before.machine - cpu,
        record=record,
    )


def _count_records(path: Path) -> Iterator[int]:
    """How many whole lines the file has by now."""
    lines = size = 0
    while True:
        new_size = path.stat().st_size if path.exists() else 0
        if new_size != size:
            size, lines = new_size, path.read_bytes().count(b"\n")
        yield lines


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").replace("\0", "").splitlines()[-30:])
