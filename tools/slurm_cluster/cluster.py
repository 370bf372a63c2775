"""The life of an emulated cluster. Run as root on the machine that carries it.

Nothing is remembered about processes: a host is up when its pid 1 is found among the machine's
processes by its command line, so that a run which was interrupted anywhere can be cleaned up.
"""

import dataclasses
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from . import network, settings
from .settings import CONTROLLER

RUN = Path("/run")
FREEZER = Path("/sys/fs/cgroup/freezer")
HOST_SCRIPT = Path(__file__).resolve().with_name("host.sh")
REPOSITORY = Path(__file__).resolve().parents[2]
PRIVATE = (Path("/tmp"), Path("/run"))  # each host has its own; /dev/shm is never shared
START_SECONDS = 30.0
END_SECONDS = 20.0
LOCK_SECONDS = 120.0
EXEC_SECONDS = 1.0


class ClusterError(Exception):
    """What went wrong, with the host's name, and what to do."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a cluster was asked to be; stored as cluster.json in its state directory."""

    hosts: list[str]
    cpus: int
    rate: str | None
    shm_size: str
    shared: list[str]
    proctrack: str
    ready: bool = False


class Cluster:
    """One emulated cluster, known by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = RUN / f"distsage-cluster-{name}"
        self.cgroup = FREEZER / f"distsage-cluster-{name}"

    # What is there

    def plan(self) -> Plan | None:
        """Return the stored plan, or None when there is no cluster of this name."""
        try:
            return Plan(**json.loads((self.state / "cluster.json").read_text()))
        except FileNotFoundError:
            return None

    def running(self) -> Plan:
        """Return the plan of a cluster that is up.

        Raises:
            ClusterError: it is not up, or only in part.
        """
        plan = self.plan()
        if plan is None or not plan.ready:
            raise ClusterError(f"cluster {self.name} is not up; start it with: tools/cluster up")
        return plan

    def first_processes(self) -> dict[str, int]:
        """Return host -> process id, as the machine sees it, of the pid 1 of each living host."""
        return {host: pid for host, pid, inner_pid in self._processes() if inner_pid == 1}

    def _processes(self) -> Iterator[tuple[str, int, int]]:
        """Yield (host, pid, pid in its own namespace) of each process that runs host.sh."""
        script, state = os.fsencode("/" + HOST_SCRIPT.name), os.fsencode(self.state)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
                words = _command_line(entry)
                for before, at, host in zip(words, words[1:], words[2:], strict=False):
                    if before.endswith(script) and at == state:
                        status = (entry / "status").read_text()
                        pids = status.partition("\nNSpid:")[2].partition("\n")[0].split()
                        yield os.fsdecode(host), int(entry.name), int(pids[-1])

    def first_process(self, host: str) -> int:
        """Return the process id, as the machine sees it, of a host's pid 1.

        Raises:
            ClusterError: there is no such host, or it is down.
        """
        self._check_host(host)
        pid = self.first_processes().get(host)
        if pid is None:
            raise ClusterError(f"{host} is down; bring it back: tools/cluster restore {host}")
        return pid

    def _check_host(self, host: str) -> Plan:
        plan = self.running()
        if host not in (CONTROLLER, *plan.hosts):
            known = ", ".join([CONTROLLER, *plan.hosts])
            raise ClusterError(f"cluster {self.name} has no host {host}; it has {known}")
        return plan

    # Commands inside hosts

    def command(self, host: str, words: Sequence[str], directory: Path | None = None) -> list[str]:
        """Return the command line that runs `words` on `host`.

        They run in `directory`, or in the caller's, which the hosts have to see.
        """
        change = (
            'cd "$1" 2>/dev/null || { echo "cluster: the hosts do not see $1, for their /tmp and '
            '/run are their own; share it with: tools/cluster up --share DIR" >&2; exit 2; }; '
            'shift; exec "$@"'
        )
        enter = network.enter(self.first_process(host), "muinp")
        return [*enter, "bash", "-c", change, "bash", str(directory or Path.cwd()), *words]

    def ask(self, words: Sequence[str], seconds: float = 10.0) -> str:
        """Run a command of Slurm on the controller; return its output, "" when it failed."""
        pid = self.first_processes().get(CONTROLLER)
        if pid is None:
            return ""
        try:
            answer = subprocess.run(
                [*network.enter(pid, "muinp"), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ""
        return answer.stdout if answer.returncode == 0 else ""

    def slurm_states(self) -> dict[str, str]:
        """Return host -> state as Slurm sees it: "idle", "alloc", "down*", ..."""
        lines = self.ask(["sinfo", "-h", "-N", "-o", "%N %t"]).splitlines()
        return dict(line.split() for line in lines)

    # Up and down

    def up(
        self, count: int, cpus: int, rate: str | None, shm_size: str, shared: Sequence[Path]
    ) -> str:
        """Start the cluster and return a sentence about it; waits `START_SECONDS` at most.

        When it fails or is interrupted, nothing is left. `shared` are directories below /tmp or
        /run that all hosts have to see; the checkout and its virtual environment always are.

        Raises:
            ClusterError: a host did not come; the message names it and shows its log.
        """
        with locked():
            present = self.plan()
            if present is not None and present.ready:
                return f"cluster {self.name} is up already, with {len(present.hosts)} hosts"
            self._remove()
            with ExitStack() as undo:
                undo.callback(self._remove)
                began = time.monotonic()
                plan = self._prepare(count, cpus, rate, shm_size, shared)
                self._start(plan, [CONTROLLER, *plan.hosts])
                self._prove_that_jobs_run(plan)
                self._store(dataclasses.replace(plan, ready=True))
                undo.pop_all()
            seconds = time.monotonic() - began
            return f"cluster {self.name} is up: {count} hosts of {cpus} CPUs, {seconds:.1f} s"

    def down(self) -> str:
        """End the cluster, whatever state it is in, and return a sentence about it."""
        with locked():
            known = self.plan() is not None
            self._remove()
        return f"cluster {self.name} is down" + ("" if known else " already")

    def _prepare(
        self, count: int, cpus: int, rate: str | None, shm_size: str, shared: Sequence[Path]
    ) -> Plan:
        """Write the state directory and create the control groups."""
        hosts = settings.host_names(count)
        self.state.mkdir()
        environment = Path(os.environ.get("DISTSAGE_VENV", REPOSITORY / ".venv")).resolve()
        plan = Plan(
            hosts=hosts,
            cpus=cpus,
            rate=rate,
            shm_size=shm_size,
            shared=hidden([self.state, REPOSITORY, environment, *shared]),
            proctrack="cgroup" if self._make_cgroups(hosts) else "linuxproc",
        )
        self._store(plan)
        (self.state / "log").mkdir()
        slurm = self.state / "etc" / "slurm"
        slurm.mkdir(parents=True)
        (slurm / "slurm.conf").write_text(
            settings.slurm_conf(self.name, hosts, cpus, plan.proctrack, self.state)
        )
        (slurm / "cgroup.conf").write_text(settings.cgroup_conf())
        (slurm.parent / "hosts").write_text(settings.etc_hosts(hosts))
        (slurm.parent / "nsswitch.conf").write_text(settings.nsswitch_conf())
        key = self.state / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        return plan

    def _store(self, plan: Plan) -> None:
        (self.state / "cluster.json").write_text(json.dumps(dataclasses.asdict(plan), indent=2))

    def _make_cgroups(self, hosts: Sequence[str]) -> bool:
        """Create one freezer group per host; False where the machine has none to give."""
        if not (FREEZER / "cgroup.procs").exists():
            return False
        try:
            for host in hosts:
                (self.cgroup / host).mkdir(parents=True)
        except OSError:  # mounted read-only, as in most containers
            return False
        return True

    def _start(self, plan: Plan, hosts: Sequence[str]) -> None:
        """Start hosts and wait until Slurm can use them; the controller is up or among them."""
        deadline = time.monotonic() + START_SECONDS
        starters: dict[str, subprocess.Popen[bytes]] = {}

        def wait(missing: Callable[[], list[str]], what: str) -> None:
            while hosts_missing := missing():
                dead = [host for host, starter in starters.items() if starter.poll() is not None]
                if dead:
                    raise ClusterError(self._complaint(dead, "ended while starting"))
                if time.monotonic() > deadline:
                    raise ClusterError(
                        self._complaint(hosts_missing, f"{what} within {START_SECONDS:.0f} s")
                    )
                time.sleep(0.02)

        pids: dict[str, int] = {}

        def without_process() -> list[str]:
            pids.update(self.first_processes())
            return [host for host in (CONTROLLER, *hosts) if host not in pids]

        def not_usable() -> list[str]:
            states = self.slurm_states()
            usable = {"idle", "mix", "alloc", "comp"}
            return [h for h in hosts if h != CONTROLLER and states.get(h) not in usable]

        for host in hosts:
            starters[host] = self._start_first_process(plan, host)
        wait(without_process, "did not start")
        for host in hosts:
            self._network(host, pids, plan.rate)
        for starter in starters.values():
            assert starter.stdin is not None
            with suppress(BrokenPipeError):  # it died: the wait below says so
                starter.stdin.write(b"go\n")
                starter.stdin.close()
        wait(not_usable, "did not register with Slurm")

    def _start_first_process(self, plan: Plan, host: str) -> subprocess.Popen[bytes]:
        """Start host.sh as pid 1 of new namespaces; it waits for "go" on its standard input."""
        cgroup = self.cgroup / host
        with open(self.state / "log" / host, "ab") as log:
            return subprocess.Popen(
                [
                    *("unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork"),
                    *("--kill-child=KILL", "bash", str(HOST_SCRIPT), str(self.state), host),
                    plan.shm_size,
                    str(cgroup) if cgroup.is_dir() else "none",
                    *plan.shared,
                ],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _network(self, host: str, pids: dict[str, int], rate: str | None) -> None:
        try:
            if host == CONTROLLER:
                network.make_bridge(pids[CONTROLLER])
            else:
                network.connect(host, pids[host], pids[CONTROLLER], rate)
        except network.NetworkError as error:
            raise ClusterError(self._complaint([host], f"has no network: {error}")) from error

    def _prove_that_jobs_run(self, plan: Plan) -> None:
        """Run a job on all hosts: wrong control groups end one as completed, but never run it."""
        words = ["srun", "-N", str(len(plan.hosts)), "--ntasks-per-node=1", "-t", "1", "hostname"]
        answered = set(self.ask(words, START_SECONDS).split())
        silent = [host for host in plan.hosts if host not in answered]
        if silent:
            raise ClusterError(self._complaint(silent, "did not run a job"))

    def _complaint(self, hosts: Sequence[str], what: str) -> str:
        """Return a message with the end of the logs of the first of `hosts`."""
        lines = [f"{', '.join(hosts)} {what}"]
        daemon = "slurmctld" if hosts[0] == CONTROLLER else f"{hosts[0]}.slurmd"
        for log in (self.state / "log" / hosts[0], self.state / "log" / daemon):
            if log.exists():
                lines += log.read_text(errors="replace").splitlines()[-10:]
        return "\n  ".join(lines)

    def _remove(self) -> None:
        """End every host and remove what is left besides: control groups and state directory."""
        self._kill(list({host for host, _, _ in self._processes()}))
        self._remove_cgroups(self.cgroup)
        if self.state.exists():
            shutil.rmtree(self.state)

    def _kill(self, hosts: Sequence[str]) -> None:
        """End all processes of hosts, and wait until they are gone."""
        deadline = time.monotonic() + END_SECONDS
        while living := [(host, pid) for host, pid, _ in self._processes() if host in hosts]:
            if time.monotonic() > deadline:
                raise ClusterError(f"{living[0][0]} does not end: process {living[0][1]}")
            for _, pid in living:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _remove_cgroups(self, top: Path) -> None:
        """Remove a tree of control groups; their processes are ending or have ended."""
        deadline = time.monotonic() + END_SECONDS
        while top.exists():
            try:
                for folder, _, _ in os.walk(top, topdown=False):
                    os.rmdir(folder)
            except OSError as error:  # busy until the last process is reaped
                if time.monotonic() > deadline:
                    raise ClusterError(f"cannot remove {error.filename}: {error}") from error
                time.sleep(0.05)

    # Faults

    def crash(self, host: str) -> str:
        """Let a host lose its power: its peers see silence, then it is gone.

        Raises:
            ClusterError: there is no such host, it is down, or it is the controller.
        """
        with locked():
            pid = self.first_process(host)
            if host == CONTROLLER:
                raise ClusterError("the controller cannot crash: it carries the network")
            controller = self.first_process(CONTROLLER)
            network.cut(host, controller)
            os.kill(pid, signal.SIGKILL)
            self._kill([host])
            network.remove(host, controller)
            self._remove_cgroups(self.cgroup / host)
        return f"{host} has lost its power"

    def cut_link(self, host: str) -> None:
        """Take a host off the network; it runs on.

        Raises:
            ClusterError: there is no such host, or it is down.
        """
        self.first_process(host)
        network.cut(host, self.first_process(CONTROLLER))

    def mend_link(self, host: str) -> None:
        """Put a host back on the network.

        Raises:
            ClusterError: there is no such host, or it is down.
        """
        self.first_process(host)
        network.mend(host, self.first_process(CONTROLLER))

    def start_slurmd(self, host: str) -> None:
        """Start a host's slurmd, which has ended, again.

        Raises:
            ClusterError: there is no such host, it is down, or slurmd does not start.
        """
        log = str(self.state / "log" / f"{host}.slurmd")
        words = [*network.enter(self.first_process(host), "muinp"), "slurmd", "-N", host, "-L", log]
        if subprocess.run(words, stdin=subprocess.DEVNULL, timeout=START_SECONDS).returncode != 0:
            raise ClusterError(self._complaint([host], "has no slurmd"))

    def restore(self, host: str) -> str:
        """Boot a crashed host again; waits until Slurm can use it, `START_SECONDS` at most.

        Raises:
            ClusterError: there is no such host, or it did not come.
        """
        with locked():
            plan = self._check_host(host)
            if host in self.first_processes():
                return f"{host} is up already"
            if plan.proctrack == "cgroup":
                (self.cgroup / host).mkdir()
            with ExitStack() as undo:
                undo.callback(self._kill, [host])
                self._start(plan, [host])
                undo.pop_all()
        return f"{host} is up again"


def _command_line(process: Path) -> list[bytes]:
    """Words of a process, of which /proc/PID is given.

    In the middle of exec a process has none yet, but a program already, unlike a kernel thread or
    one that has ended: it is asked again, for `EXEC_SECONDS` at most.

    Raises:
        FileNotFoundError, ProcessLookupError: it has ended, or is a kernel thread.
    """
    deadline = time.monotonic() + EXEC_SECONDS
    while not (words := (process / "cmdline").read_bytes()) and time.monotonic() < deadline:
        os.readlink(process / "exe")
        time.sleep(0.001)
    return words.split(b"\0")


@contextmanager
def locked() -> Iterator[None]:
    """Change one cluster at a time on this machine; a lock on /run leaves no file behind.

    Raises:
        ClusterError: another run held the lock for longer than any run takes.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    descriptor = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"another tools/cluster has been at work for {LOCK_SECONDS:.0f} s"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def hidden(directories: Sequence[Path]) -> list[str]:
    """Return those of `directories` that a host's own /tmp or /run would hide, outermost only.

    Raises:
        ClusterError: one is no directory, or is /tmp or /run itself.
    """
    kept: list[Path] = []
    for directory in sorted(path.resolve() for path in directories):
        if directory in PRIVATE:
            raise ClusterError(f"{directory} is each host's own; share a directory below it")
        below_private = any(directory.is_relative_to(private) for private in PRIVATE)
        if below_private and not any(directory.is_relative_to(path) for path in kept):
            if not directory.is_dir():
                raise ClusterError(f"{directory} cannot be shared: it is no directory")
            kept.append(directory)
    return [str(path) for path in kept]
