"""The emulated cluster that the distributed runs have to themselves, ended whatever happens."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import counters

REPOSITORY = Path(__file__).resolve().parents[2]
_TOOL = REPOSITORY / "tools" / "cluster"
_STATES = Path("/run")
_PREFIX = "bench-"


class Cluster:
    """A cluster that is up, with hosts node1 .. nodeN."""

    def __init__(self, name: str, num_hosts: int) -> None:
        self._name = name
        self.hosts = [f"node{k}" for k in range(1, num_hosts + 1)]
        self.find = counters.of_namespaces(
            [self.ask(host, "readlink", "/proc/self/ns/pid") for host in self.hosts]
        )

    def ask(self, host: str, *words: str) -> str:
        """Run a short command on a host; return what it prints."""
        return _run_tool("--name", self._name, "exec", host, *words).strip()

    def start(
        self, host: str, words: list[str], env: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a process on a host, in the checkout; its output is appended to `log`."""
        with open(log, "ab") as stream:
            return subprocess.Popen(
                [sys.executable, str(_TOOL), "--name", self._name, "exec", host, *words],
                cwd=REPOSITORY,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def submit(self, words: list[str], env: Mapping[str, str]) -> str:
        """Submit a job with sbatch's arguments; return its id."""
        return _run_tool("--name", self._name, "submit", *words, env=env).strip()


@contextlib.contextmanager
def cluster(num_hosts: int, rate: str | None) -> Iterator[Cluster]:
    """Bring a cluster up for as long as the block runs.

    Args:
        num_hosts: how many hosts.
        rate: bandwidth of every host and direction as tc writes it; None leaves it unlimited.
    """
    _sweep()
    name = f"{_PREFIX}{os.getpid()}"
    limit = ["--rate", rate] if rate else []
    try:
        _run_tool("--name", name, "up", "--hosts", str(num_hosts), *limit, timeout=300)
        yield Cluster(name, num_hosts)
    finally:
        _run_tool("--name", name, "down")


def _sweep() -> None:
    """End the clusters of benchmarks that were killed."""
    for state in _STATES.glob(f"distsage-cluster-{_PREFIX}*"):
        pid = state.name.rpartition("-")[2]
        if not Path("/proc", pid).exists():
            _run_tool("--name", f"{_PREFIX}{pid}", "down")


def _run_tool(*words: str, env: Mapping[str, str] | None = None, timeout: float = 60) -> str:
    answer = subprocess.run(
        [sys.executable, str(_TOOL), *words],
        cwd=REPOSITORY,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"tools/cluster {' '.join(words)}: {answer.stdout}{answer.stderr}")
    return answer.stdout
