"""Whatever goes wrong, a job ends with one line that says what, and leaves nothing behind.

Each row of the fault table in docs/faults.md is a function here. They run side by side, each on two
hosts of its own; whatever row comes next on the same hosts shows that the one before left nothing
that hinders it. With DISTSAGE_FAULT_TABLE=FILE the measured table is written to that file.
"""

import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

import pytest
from conftest import start_cluster
from slurm_login import REPOSITORY, TOOL, SlurmCluster
from training_job import (
    INTEL,
    MPICH,
    SITE,
    SMALL,
    SRUN,
    WHEEL,
    TrainingJob,
    left_on,
    nothing_left,
    submit,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LAUNCHERS = {"wheel": WHEEL, "site": SITE, "srun": SRUN, "mpich": MPICH, "intel": INTEL}
ROLES = {"server": 2, "trainer": 3}  # ranks of the second host


@dataclass
class Case:
    """A row of the table while it happens: two hosts, a directory, and what came of it."""

    cluster: SlurmCluster
    hosts: list[str]
    directory: Path
    parts: Mapping[int, Path]
    launcher: str
    jobs: list[TrainingJob] = field(default_factory=list)

    def job(
        self, *arguments: str | Path, parts: Path | None = None, **options: object
    ) -> TrainingJob:
        """Submit a short run."""
        new = submit(
            self.cluster,
            options.pop("hosts", self.hosts),  # type: ignore[arg-type]
            self.directory / str(len(self.jobs)),
            f"--parts={parts or self.parts[2]}",
            "--run-dir=run",
            "--num-epochs=2",
            *SMALL,
            *arguments,
            env={**LAUNCHERS[self.launcher], **options.pop("env", {})},  # type: ignore[dict-item]
            **options,  # type: ignore[arg-type]
        )
        self.jobs.append(new)
        return new

    def endless_job(
        self, *arguments: str, rank: int | None = None, how: str = "", **options: object
    ) -> TrainingJob:
        """Start a job that trains until it is struck, and wait until it does.

        Rank `rank` will "raise" or "hang" (`how`) when `fail` is called.
        """
        fault = {"pace": 0.3, "rank": rank, "how": how, "when": str(self.directory / "now")}
        job = self.job("--num-epochs=9999", "--eval-every=9999", *arguments, fault=fault, **options)
        job.trains()
        return job

    def fail(self, job: TrainingJob) -> None:
        job.strike()
        (self.directory / "now").touch()

    def put_right(self) -> None:
        """Leave the hosts as they were, whatever has happened."""
        for job in self.jobs:
            self.cluster.exec("controller", "scancel", str(job.id))
        for host in self.hosts:
            if "down" in self.cluster.node_state(host):
                self.cluster.tool("restore", host)

    def damaged_parts(self) -> Path:
        """A copy of the parts, to be damaged."""
        return Path(shutil.copytree(self.parts[2], self.directory / "parts"))


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: of the fault.
        stock: what a plain DGL 1.1.3 program does.
        act: makes the fault happen and checks what comes of it.
        launcher: one of LAUNCHERS.
        long: whether it takes a minute or so, and starts first.
    """

    name: str
    stock: str
    act: Callable[[Case], None]
    launcher: str
    long: bool

    @property
    def id(self) -> str:
        return f"{self.act.__name__}-{self.launcher}"


ROWS: dict[str, Row] = {}


def row(
    name: str, stock: str, *launchers: str, long: bool = False
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Make a function a row of the table, once per launcher."""

    def add(act: Callable[[Case], None]) -> Callable[[Case], None]:
        for launcher in launchers or ("wheel",):
            new = Row(name, stock, act, launcher, long)
            ROWS[new.id] = new
        return act

    return add


# A rank ends, or does not go on.


@row("trainer killed (-9)", "FAILED after 1-5 s, pages of C++ traces", *LAUNCHERS)
def trainer_killed(case: Case) -> None:
    job = case.endless_job()
    rank = job.processes()[3]
    job.signal(rank.rank, Signals.SIGKILL)
    job.fails_with(rf"^rank 3 \(trainer on {case.hosts[1]}\): killed by SIGKILL$")


@row("a trainer's watcher killed (-9)", "no watchers")
def watcher_killed(case: Case) -> None:
    job = case.endless_job()
    rank = job.processes()[3]
    job.signal(rank.watcher, Signals.SIGKILL)
    job.fails_with(rf"^rank 3 \(trainer on {case.hosts[1]}\): its watcher was killed$")


@row("exception in a trainer", "**hangs**", "wheel", "site", "srun")
def trainer_raises(case: Case) -> None:
    job = case.endless_job(rank=3, how="raise")
    case.fail(job)
    job.fails_with(rf"^rank 3 \(trainer on {case.hosts[1]}\): RuntimeError: a fault of the test$")
    assert job.output().count("Traceback (most recent call last)") == 1, job.output()


@row("server killed (-9)", "FAILED after 3-7 s; segments stay in /dev/shm")
def server_killed(case: Case) -> None:
    job = case.endless_job()
    rank = job.processes()[2]
    job.signal(rank.rank, Signals.SIGKILL)
    job.fails_with(rf"^rank 2 \(server on {case.hosts[1]}\): killed by SIGKILL$")


@row("exception in a server", "3-8 s with `-m mpi4py`, **hangs** without")
def server_raises(case: Case) -> None:
    job = case.endless_job(rank=2, how="raise")
    case.fail(job)
    job.fails_with(rf"^rank 2 \(server on {case.hosts[1]}\): RuntimeError: a fault of the test$")
    assert job.output().count("Traceback (most recent call last)") == 1, job.output()


@row("SIGTERM to a trainer", "5 s, shown as segmentation fault (139)")
def trainer_terminated(case: Case) -> None:
    job = case.endless_job()
    rank = job.processes()[3]
    job.signal(rank.rank, Signals.SIGTERM)
    job.fails_with(rf"^rank 3 \(trainer on {case.hosts[1]}\): ended by SIGTERM$")


@row("SIGTERM to a trainer's watcher", "no watchers")
def watcher_terminated(case: Case) -> None:
    job = case.endless_job()
    rank = job.processes()[3]
    job.signal(rank.watcher, Signals.SIGTERM)
    job.fails_with(rf"^rank 3 \(trainer on {case.hosts[1]}\): ended by SIGTERM$")


def stopped(case: Case, role: str) -> None:
    job = case.endless_job()
    rank = job.processes()[ROLES[role]]
    job.signal(rank.rank, Signals.SIGSTOP)
    job.fails_with(
        rf"^rank {ROLES[role]} \({role} on {case.hosts[1]}\): stopped by a signal while "
    )
    # The stopped one cannot write its stack.
    stacks_are_written(job, [1, 3] if role == "server" else [0, 1, 2])


@row("trainer stopped (SIGSTOP)", "**hangs**")
def trainer_stopped(case: Case) -> None:
    stopped(case, "trainer")


@row("server stopped (SIGSTOP)", "**hangs**")
def server_stopped(case: Case) -> None:
    stopped(case, "server")


@row("a trainer's watcher stopped (SIGSTOP)", "no watchers")
def watcher_stopped(case: Case) -> None:
    job = case.endless_job()
    rank = job.processes()[3]
    job.signal(rank.watcher, Signals.SIGSTOP)
    job.fails_with(rf"^rank 3 \(trainer on {case.hosts[1]}\): its watcher is stopped$")


def stuck(case: Case, role: str) -> None:
    job = case.endless_job("--stall-timeout=20", rank=ROLES[role], how="hang")
    case.fail(job)
    job.fails_with(
        rf"^rank {ROLES[role]} \({role} on {case.hosts[1]}\): no progress for 20 s \((comp|serv)"
    )
    stacks_are_written(job, range(4))
    log = (job.run_dir / "logs" / f"rank-{ROLES[role]}.txt").read_text()
    assert "sitecustomize.py" in log


@row("trainer stuck (`--stall-timeout 20`)", "**hangs**")
def trainer_stuck(case: Case) -> None:
    stuck(case, "trainer")


@row("server stuck (`--stall-timeout 20`)", "**hangs**")
def server_stuck(case: Case) -> None:
    stuck(case, "server")


def stacks_are_written(job: TrainingJob, ranks: range | list[int]) -> None:
    for rank in ranks:
        log = (job.run_dir / "logs" / f"rank-{rank}.txt").read_text()
        assert 'File "' in log, f"no stack of rank {rank}:\n{log}"


# The launcher, the host or Slurm ends it.


def kill_by_name(job: TrainingJob, host: str, name: str) -> None:
    """Kill the process of this job whose command is `name`."""
    job.strike()
    job.cluster.exec(host, "pkill", "-KILL", "-x", name)  # fails where there is none


@row("mpirun or srun killed (-9)", "1.5 s; segments stay in /dev/shm", *LAUNCHERS)
def launcher_killed(case: Case) -> None:
    job = case.endless_job()
    names = {"wheel": "prterun", "mpich": "mpirun", "intel": "mpiexec.hydra"}
    names |= {"site": "mpirun", "srun": "srun"}
    kill_by_name(job, case.hosts[0], names[case.launcher])
    job.fails_with(rf"^(mpirun|srun) on {case.hosts[0]} ended with status 137 .* killed\?$")


@row("a daemon of mpirun killed (-9)", "3 s; segments stay in /dev/shm", "wheel", "site")
def daemon_killed(case: Case) -> None:
    job = case.endless_job()
    kill_by_name(job, case.hosts[1], {"wheel": "prted", "site": "orted"}[case.launcher])
    # mpirun names the host itself, and may kill its ranks before one of them can speak.
    job.fails_with(
        rf"^rank [23] \(\w+ on {case.hosts[1]}\): (its watcher was killed|ended by SIGTERM)$"
        r"|^mpirun on .* ended with status 1 .* one of its daemons, killed\?$"
    )


@row("power loss of a host", "41-44 s, nobody names the host", "wheel", "site", "srun", long=True)
def host_lost(case: Case) -> None:
    job = case.endless_job(request=["--no-requeue"])
    job.strike()
    case.cluster.tool("crash", case.hosts[1])
    job.fails_with(rf"^rank [23] \(\w+ on {case.hosts[1]}\): its host is lost")
    case.cluster.tool("restore", case.hosts[1])


@row("the same, requeued", "runs again after 129 s", long=True)
def host_lost_and_requeued(case: Case) -> None:
    job = case.endless_job("--num-epochs=60")
    job.strike()
    case.cluster.tool("crash", case.hosts[1])
    job.wait_until("requeue", lambda: case.cluster.job(job.id)["Restarts"] == "1", seconds=60)
    job.seconds = time.monotonic() - (job.struck_at or 0)
    job.says(rf"on {case.hosts[1]}\): its host is lost")
    # A host that comes back before Slurm has missed it keeps the job COMPLETING until Slurm repeats
    # its order to end it, once a minute.
    is_pending(case, job)
    case.cluster.tool("restore", case.hosts[1])
    runs_again(case, job)


@row("power loss of the batch host", "36 s, requeued", long=True)
def batch_host_lost(case: Case) -> None:
    job = case.endless_job("--num-epochs=60")
    job.strike()
    case.cluster.tool("crash", case.hosts[0])
    job.wait_until(
        "end of the ranks", lambda: "python" not in left_on(case.cluster, case.hosts[1]), seconds=40
    )
    note = job.directory / "logs" / f"job-{job.id}" / "failure"
    job.cause = note.read_text().strip()
    assert re.search(rf"on {case.hosts[0]}\): its host is lost", job.cause)
    is_pending(case, job)
    job.seconds = time.monotonic() - (job.struck_at or 0)
    case.cluster.tool("restore", case.hosts[0])
    runs_again(case, job)


@row("requeued by hand", "runs again after 129 s", long=True)
def requeued(case: Case) -> None:
    job = case.endless_job("--num-epochs=60")
    with watched(case, job) as watch:
        assert watch.stdout is not None
        first = watch.stdout.readline()  # it has looked
        job.strike()
        case.cluster.exec("controller", "scontrol", "requeue", str(job.id))
        is_pending(case, job)
        job.seconds = time.monotonic() - (job.struck_at or 0)
        nothing_left(case.cluster, case.hosts)
        runs_again(case, job)
        said, errors = watch.communicate(timeout=60)
    assert (watch.returncode, errors) == (0, "")
    assert ": running, " in first
    # It looks every few seconds: what Slurm says meanwhile, COMPLETING, PENDING or RUNNING, varies.
    asked = rf"job {job.id} is [A-Z]+ in Slurm; waiting"
    steps = [asked, rf"job {job.id} went on at step ", ": finished, all 60 epochs"]
    assert re.search(".*".join(steps), said, re.DOTALL), said


@contextlib.contextmanager
def watched(case: Case, job: TrainingJob) -> Iterator[subprocess.Popen[str]]:
    """`distsage watch` of a job's run on the login host."""
    words = ["--name", case.cluster.name, "exec", "controller"]
    words += [sys.executable, "-m", "distsage", "watch", str(job.run_dir)]
    with subprocess.Popen(
        [sys.executable, TOOL, *words],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watch:
        try:
            yield watch
        finally:
            watch.kill()


def is_pending(case: Case, job: TrainingJob) -> None:
    job.wait_until("requeue", lambda: case.cluster.job(job.id)["JobState"] == "PENDING", seconds=90)


def runs_again(case: Case, job: TrainingJob) -> None:
    """A requeued job runs again, at once instead of after Slurm's two minutes, and ends well."""
    before = len(job.said())
    now = f"scontrol update JobId={job.id} StartTime=now || :"  # or it has started by itself
    case.cluster.exec("controller", "sh", "-c", now)
    seconds = job.seconds
    state = job.ends()
    job.seconds = seconds
    assert (state, len(job.said())) == (("COMPLETED", "0:0"), before), job.output()
    assert (job.run_dir / "summary.json").exists()


@row("scancel", "4.5-7 s; segments stay in /dev/shm", "wheel", "site", "srun")
def cancelled(case: Case) -> None:
    job = case.endless_job()
    job.strike()
    case.cluster.exec("controller", "scancel", str(job.id))
    assert job.ends()[0] == "CANCELLED"
    nothing_left(case.cluster, case.hosts)
    job.says(r"^ended by SIGTERM \(scancel, or the time limit\)$")


@row("time limit", "TIMEOUT up to 30 s late; segments stay in /dev/shm", long=True)
def time_limit(case: Case) -> None:
    job = case.endless_job(request=["--time=1", "--signal=B:USR2@1"])
    job.strike()
    job.wait_until("requeue", lambda: case.cluster.job(job.id)["Restarts"] == "1", seconds=120)
    job.seconds = time.monotonic() - (job.struck_at or 0)
    job.says(
        "^the run has stopped early, because (it was asked to|Slurm's time limit is near): job"
    )
    is_pending(case, job)
    nothing_left(case.cluster, case.hosts)
    case.cluster.exec("controller", "scancel", str(job.id))


# The job cannot start as it was asked for.


def preflight_fails(job: TrainingJob, cause: str) -> None:
    job.strike()
    job.fails_with(cause, code="2:0")


@row("port taken", "32 s, `Cannot bind to 10.99.0.3:30050`")
def port_taken(case: Case) -> None:
    program = """
import os, resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
half = os.fork() == 0  # one process may not be allowed to open so many
held = []
for port in [*range(20000, 31000), *range(31010, 32000)][half::2]:
    held.append(socket.create_server(("0.0.0.0", port)))
os.write(1, b"ready\\n")
sys.stdin.read()
"""
    words = [TOOL, "--name", case.cluster.name, "exec", case.hosts[1], sys.executable, "-c"]
    with subprocess.Popen(
        [sys.executable, *words, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:  # ends when its input does
        assert holder.stdout is not None
        assert [holder.stdout.readline() for _ in range(2)] == 2 * ["ready\n"]
        job = case.job()
        job.completes()
        holder.communicate()
    _, line = (job.run_dir / "ip_config.txt").read_text().splitlines()
    assert 31000 <= int(line.split()[1]) < 31010


@row(
    "fewer hosts than parts",
    "28 s, `The partition policy does not match the input shape`",
    *("wheel", "mpich", "intel"),
)
def fewer_hosts(case: Case) -> None:
    job = case.job(parts=case.parts[4])
    job.strike()
    job.completes()


@row("more hosts than parts", "22 s, `part-3 does not exist`", "site", "srun")
def more_hosts(case: Case) -> None:
    job = case.job(parts=case.parts[1])
    preflight_fails(
        job, rf"^preflight, parts: .* has 1 parts but the job runs on 2 hosts \({case.hosts[0]}, "
    )


def mpirun_by_hand(case: Case, *options: str) -> TrainingJob:
    """A batch script of the user's own, with the virtual environment's mpirun."""
    words = [
        *("mpirun", *options, "--bind-to none python -m mpi4py -m distsage train"),
        f"--parts {case.parts[2]} --run-dir run --num-epochs 1",
    ]
    env = {
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    new = submit(
        case.cluster,
        case.hosts,
        case.directory / str(len(case.jobs)),
        request=["--wrap", " ".join(words)],
        script=(),
        env=env,
    )
    case.jobs.append(new)
    return new


@row("odd number of ranks", "40 s, assertion on clients")
def odd_ranks(case: Case) -> None:
    job = mpirun_by_hand(case, "-n 3", "--map-by ppr:2:node")
    preflight_fails(job, r"^preflight, pairing: the job has 3 ranks, an odd number; ")


@row("pairs straddle hosts (`--map-by node`)", "25-32 s, `Cannot assign requested address`")
def straddling_pairs(case: Case) -> None:
    job = mpirun_by_hand(case, "-n 4", "--map-by node")
    preflight_fails(job, r"^preflight, pairing: ranks 0 and 1 are a pair but run on .*--map-by ppr")


def wrong_ip_config(case: Case, lines: list[str], cause: str) -> None:
    (case.directory / "hosts.txt").write_text("".join(f"{line}\n" for line in lines))
    job = case.job(f"--ip-config={case.directory / 'hosts.txt'}")
    preflight_fails(job, f"^preflight, addresses: {cause}")


def address(host: str) -> str:
    return f"10.99.0.{host.removeprefix('node')}"


@row("ip_config: a wrong address", "21-26 s, `Cannot bind`")
def ip_config_wrong(case: Case) -> None:
    lines = [address(case.hosts[0]), "10.99.0.77"]
    wrong_ip_config(case, lines, f"line 2 of .* is 10.99.0.77, .* part 1 lies on {case.hosts[1]}")


@row("ip_config: an address missing", "21-26 s, `Trying to start server 3`")
def ip_config_missing(case: Case) -> None:
    wrong_ip_config(case, [address(case.hosts[0])], ".* lists 1 hosts but the job has 2 ")


@row("ip_config: addresses swapped", "21-26 s, `Cannot bind`")
def ip_config_swapped(case: Case) -> None:
    lines = [address(host) for host in reversed(case.hosts)]
    wrong_ip_config(case, lines, f"line 1 of .* belongs to {case.hosts[1]}, but part 0 lies on ")


@row("part file missing", "29 s, path named")
def part_file_missing(case: Case) -> None:
    parts = case.damaged_parts()
    (parts / "part1" / "graph.dgl").unlink()
    job = case.job(parts=parts)
    preflight_fails(
        job, rf"^preflight, checksums: {case.hosts[1]}: cannot read .*part1/graph.dgl: "
    )


def truncated(case: Case, name: str) -> None:
    parts = case.damaged_parts()
    file = parts / "part1" / name
    os.truncate(file, file.stat().st_size // 2)
    job = case.job(parts=parts)
    preflight_fails(
        job, rf"^preflight, checksums: {case.hosts[1]}: .*part1/{name} has \d+ bytes, the manifest"
    )


@row("graph.dgl truncated", "38 s, segmentation fault, no file named")
def graph_truncated(case: Case) -> None:
    truncated(case, "graph.dgl")


@row("node_feat.dgl truncated", "**trains, silently wrong**", "srun")
def features_truncated(case: Case) -> None:
    truncated(case, "node_feat.dgl")


@row("a byte of node_feat.dgl changed", "**trains, silently wrong**")
def byte_changed(case: Case) -> None:
    parts = case.damaged_parts()
    with open(parts / "part1" / "node_feat.dgl", "r+b") as stream:
        stream.seek(5000)
        byte = stream.read(1)[0]
        stream.seek(5000)
        stream.write(bytes([byte ^ 1]))
    job = case.job(parts=parts)
    preflight_fails(
        job, rf"^preflight, checksums: {case.hosts[1]}: .*node_feat.dgl has changed since it was "
    )


@row("stale segments of the same graph", "trains")
def stale_segments(case: Case) -> None:
    """What a dead job left is removed; what DGL itself may have left does not matter."""
    ours = f"distsage.{os.getuid()}.77.0badc0de.1.synthetic-3000-10_graph"
    dgls = "ndata:_N:features"
    for name in (ours, dgls):
        case.cluster.exec(case.hosts[1], "sh", "-c", f"echo stale >/dev/shm/{name}")
    job = case.job()
    job.completes()
    assert left_on(case.cluster, case.hosts[1]) == {f"/dev/shm/{dgls}"}
    case.cluster.exec(case.hosts[1], "rm", f"/dev/shm/{dgls}")


# The tests: the rows run side by side.


def train_again(case: Case) -> None:
    case.job().completes()


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    parts_of: Mapping[int, Path],
) -> Iterator[dict[str, Future[Case]]]:
    """What comes of each row that is asked for, and of a job on each pair of hosts afterwards."""
    wanted = [
        row
        for row in ROWS.values()
        if any(item.name == f"test_fault[{row.id}]" for item in request.session.items)
    ]
    base = tmp_path_factory.mktemp("faults")
    futures: dict[str, Future[Case]] = {row.id: Future() for row in wanted}
    rows: queue.SimpleQueue[Row] = queue.SimpleQueue()
    for one in sorted(wanted, key=lambda row: not row.long):
        rows.put(one)

    def happen(one: Row, cluster: SlurmCluster, hosts: list[str], outcome: Future[Case]) -> None:
        case = Case(cluster, hosts, base / f"{one.id}-{hosts[0]}", parts_of, one.launcher)
        case.directory.mkdir()
        try:
            try:
                one.act(case)
                nothing_left(cluster, hosts)
            finally:
                case.put_right()
        except BaseException as error:  # noqa: BLE001 - raised again in the row's test
            outcome.set_exception(error)
        else:
            outcome.set_result(case)

    def work(cluster: SlurmCluster, hosts: list[str]) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                one = rows.get_nowait()
                happen(one, cluster, hosts, futures[one.id])
        happen(Row("", "", train_again, "wheel", False), cluster, hosts, futures[hosts[0]])

    count = 2 * min(4, len(wanted))
    futures |= {f"node{k}": Future() for k in range(1, count, 2)}
    with start_cluster("faults", count, tmp_path_factory.getbasetemp()) as cluster:
        threads = [
            threading.Thread(target=work, args=(cluster, cluster.hosts[k : k + 2]))
            for k in range(0, count, 2)
        ]
        for thread in threads:
            thread.start()
        try:
            yield futures
        finally:
            with contextlib.suppress(queue.Empty):
                while True:
                    rows.get_nowait()
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def table(outcomes: dict[str, Future[Case]]) -> Iterator[None]:
    """Write the measured table where it is asked for."""
    yield
    if "DISTSAGE_FAULT_TABLE" in os.environ:
        cases = {
            i: future.result()
            for i, future in outcomes.items()
            if future.done() and not future.exception()
        }
        Path(os.environ["DISTSAGE_FAULT_TABLE"]).write_text(as_table(cases))


def as_table(cases: Mapping[str, Case]) -> str:
    lines = ["| fault | stock DGL | distsage: seconds | what it says |", "|---|---|---|---|"]
    for name in dict.fromkeys(row.name for row in ROWS.values()):
        rows = [row for row in ROWS.values() if row.name == name and row.id in cases]
        if rows:
            jobs = {row.launcher: cases[row.id].jobs[-1] for row in rows}
            times = [
                f"{job.seconds:.1f}{'' if len(jobs) == 1 else ' ' + launcher}"
                for launcher, job in jobs.items()
                if job.cause
            ]
            job = next(iter(jobs.values()))
            # Where the test's directories lie says nothing.
            cause = re.sub(r"/\S*/(?:faults|parts)\d+/(?:[\w.-]+/(?=\w))?", "", job.cause)
            said = f"`{cause}`" if cause else "nothing: it trains"
            lines.append(f"| {name} | {rows[0].stock} | {', '.join(times) or '–'} | {said} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("row_id", ROWS)
def test_fault(row_id: str, outcomes: dict[str, Future[Case]], table: None) -> None:
    outcomes[row_id].result(timeout=590)


def test_all_hosts_train_after_their_faults(outcomes: dict[str, Future[Case]]) -> None:
    for host in set(outcomes) - set(ROWS):
        outcomes[host].result(timeout=590)
