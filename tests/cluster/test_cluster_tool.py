"""tools/cluster: hosts are apart, jobs run on them, faults are seen, nothing is left."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_login import STATES, TOOL, SlurmCluster, run_tool

pytestmark = pytest.mark.cluster

CGROUPS = Path("/sys/fs/cgroup/freezer")

# Each host answers everybody and asks everybody, itself included.
MEET = """
import socket, sys, threading, time
hosts, me = sys.argv[1].split(","), socket.gethostname()
server = socket.create_server((me, 5000), backlog=len(hosts))

def answer():
    for _ in hosts:
        with server.accept()[0] as connection:
            connection.sendall(me.encode())

def ask(host):
    for _ in range(100):
        try:
            with socket.create_connection((host, 5000), timeout=5) as connection:
                return connection.recv(99).decode()
        except ConnectionRefusedError:
            time.sleep(0.1)

thread = threading.Thread(target=answer)
thread.start()
print(me, socket.gethostbyname(me), ",".join(map(ask, hosts)))
thread.join()
"""

LISTEN = """
import socket
with socket.create_server(("node4", 5001)) as server:
    print("ready", flush=True)
    with server.accept()[0] as connection:
        connection.recv(1)
"""

HEAR = """
import socket, sys
with socket.create_connection(("node4", 5001), timeout=5) as connection:
    print("connected", flush=True)
    sys.stdin.readline()
    connection.settimeout(2)
    try:
        print("heard", connection.recv(1))
    except TimeoutError:
        print("silence")
"""


def python_on(cluster: SlurmCluster, host: str, script: str) -> subprocess.Popen[str]:
    """Start a Python script on a host, with pipes to and from it."""
    return subprocess.Popen(
        [sys.executable, TOOL, "--name", cluster.name, "exec", host, sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def traces(name: str, namespaces: set[str]) -> list[str]:
    """Return what is there of a cluster: files, processes, or members of its namespaces."""
    found = [str(path) for path in (STATES, CGROUPS) for path in path.glob(f"*-cluster-{name}")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"distsage-cluster-{name}\0" in (process / "cmdline").read_text(errors="replace"):
                found.append((process / "cmdline").read_text(errors="replace"))
            found += [f"{process} {ns}" for ns in namespaces_of(process) & namespaces]
        except OSError:
            continue  # it ended while we looked
    return found


def namespaces_of(process: Path) -> set[str]:
    return {os.readlink(entry) for entry in (process / "ns").iterdir()}


def machine() -> tuple[list[str], list[str]]:
    """Return the mounts and the network links of the machine itself."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    links = subprocess.run(["ip", "-o", "-br", "link"], capture_output=True, text=True, check=True)
    return sorted(mounts), links.stdout.splitlines()


@pytest.fixture
def other(cluster: SlurmCluster) -> Iterator[str]:
    """The name of another cluster, which is taken down when the test has ended, however it did."""
    name = f"{cluster.name}-other"
    yield name
    assert run_tool("--name", name, "down").returncode == 0


def test_up_again_says_so(cluster: SlurmCluster) -> None:
    assert "up already" in cluster.tool("up")
    assert cluster.tool("status").count("idle") == 4


def test_hosts_are_apart(cluster: SlurmCluster) -> None:
    for host in cluster.hosts:
        assert cluster.exec(host, "hostname").strip() == host
        cluster.exec(host, "sh", "-c", "hostname >/dev/shm/own; hostname >/tmp/own")
    for host in cluster.hosts:
        assert cluster.exec(host, "cat", "/dev/shm/own", "/tmp/own").split() == [host, host]
    assert not Path("/dev/shm/own").exists()
    assert not Path("/tmp/own").exists()
    daemons = cluster.exec("node1", "ps", "ax", "-o", "comm").split()
    assert daemons.count("slurmd") == 1
    assert "slurmctld" not in daemons


def test_exec_keeps_directory_environment_and_status(cluster: SlurmCluster, tmp_path: Path) -> None:
    words = ("--name", cluster.name, "exec", "node2", "sh", "-c", 'pwd; echo "$GREETING"; exit 7')
    answer = run_tool(*words, cwd=tmp_path, env={"GREETING": "a b"})
    assert answer.stdout.splitlines() == [str(tmp_path), "a b"]
    assert answer.returncode == 7


def test_a_directory_that_is_not_shared_is_named(cluster: SlurmCluster) -> None:
    elsewhere = Path("/tmp") / f"not-shared-{os.getpid()}"
    elsewhere.mkdir()
    try:
        answer = run_tool("--name", cluster.name, "exec", "node2", "true", cwd=elsewhere)
    finally:
        elsewhere.rmdir()
    assert answer.returncode == 2
    assert f"do not see {elsewhere}" in answer.stderr


def test_unknown_host(cluster: SlurmCluster) -> None:
    answer = run_tool("--name", cluster.name, "exec", "node9", "true")
    assert answer.returncode == 2
    assert "no host node9" in answer.stderr


def test_every_host_reaches_every_other(cluster: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "meet.py"
    script.write_text(MEET)
    hosts = ",".join(cluster.hosts)
    command = f"srun -N4 {sys.executable} {script} {hosts}"
    log = cluster.complete(cluster.submit("-N4", "--wrap", command, cwd=tmp_path))
    assert sorted(line.split() for line in log.splitlines()) == [
        [f"node{k}", f"10.99.0.{k}", hosts] for k in range(1, 5)
    ]


@pytest.mark.parametrize("mpirun", ["/usr/bin/mpirun", f"{sys.prefix}/bin/mpirun"])
def test_mpirun_starts_two_ranks_on_each_host(
    cluster: SlurmCluster, tmp_path: Path, mpirun: str
) -> None:
    # The job's file is the proof: Slurm can say COMPLETED 0:0 of a job that never ran.
    (tmp_path / "job.sh").write_text(
        "#!/bin/bash\n"
        f"{mpirun} -n 4 --map-by ppr:2:node bash -c "
        """'echo "$(hostname) $OMPI_COMM_WORLD_RANK"' >ranks\n"""
    )
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    words = ("-N2", "--ntasks-per-node=2", "-w", "node1,node2", "job.sh")
    cluster.complete(cluster.submit(*words, cwd=tmp_path, env=root))
    ranks = sorted((tmp_path / "ranks").read_text().replace("\0", "").splitlines())
    assert ranks == ["node1 0", "node1 1", "node2 2", "node2 3"]


def test_srun_with_pmix_makes_one_world(cluster: SlurmCluster, tmp_path: Path) -> None:
    python = "from mpi4py import MPI; print(MPI.COMM_WORLD.allgather(MPI.Get_processor_name()))"
    command = f"srun --mpi=pmix {sys.executable} -c '{python}'"
    site = {"MPI4PY_LIBMPI": "/usr/lib/x86_64-linux-gnu/libmpi.so.40"}
    words = ("-N2", "--ntasks-per-node=2", "-w", "node1,node2", "--wrap", command)
    log = cluster.complete(cluster.submit(*words, cwd=tmp_path, env=site))
    assert log.splitlines() == ["['node1', 'node1', 'node2', 'node2']"] * 4


def test_crash_is_silence_and_restore_brings_the_host_back(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    with python_on(cluster, "node4", LISTEN) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        with python_on(cluster, "node1", HEAR) as hearer:
            assert hearer.stdout is not None
            assert hearer.stdout.readline() == "connected\n"
            cluster.tool("crash", "node4")
            output, _ = hearer.communicate("\n", timeout=20)
            assert output == "silence\n"
        assert listener.wait(timeout=20) != 0
    try:
        assert "node4       down" in cluster.tool("status")
        answer = run_tool("--name", cluster.name, "exec", "node4", "true")
        assert (answer.returncode, "node4 is down" in answer.stderr) == (2, True)
        deadline = time.monotonic() + 60
        while not (state := cluster.node_state("node4")).endswith("*"):
            assert time.monotonic() < deadline, f"Slurm still sees node4 as {state}"
            time.sleep(0.5)
    finally:
        cluster.tool("restore", "node4")
    assert cluster.node_state("node4") == "idle"
    job = cluster.submit("-w", "node4", "--wrap", "hostname", cwd=tmp_path)
    assert cluster.complete(job) == "node4\n"


def test_an_urgent_job_preempts_a_scavenger_and_nobody_else(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    jobs = {
        partition: cluster.submit(
            *("-p", partition, "-w", host, "--wrap", f"touch {host}; sleep 300"), cwd=tmp_path
        )
        for partition, host in (("scavenger", "node1"), ("main", "node2"))
    }
    try:
        deadline = time.monotonic() + 20
        while not all((tmp_path / host).exists() for host in ("node1", "node2")):
            assert time.monotonic() < deadline, "the jobs do not run"
            time.sleep(0.1)
        urgent = {
            host: cluster.submit(
                *("-p", "urgent", "--exclusive", "-w", host, "--wrap", "hostname"), cwd=tmp_path
            )
            for host in ("node1", "node2")
        }
        jobs |= urgent
        assert cluster.complete(urgent["node1"]) == "node1\n"
        scavenger = cluster.job(jobs["scavenger"])
        assert (scavenger["JobState"], scavenger["Restarts"]) == ("PENDING", "1")
        assert cluster.job(jobs["main"])["JobState"] == "RUNNING"
        assert cluster.job(urgent["node2"])["JobState"] == "PENDING"
    finally:
        for job in jobs.values():
            cluster.exec("controller", "scancel", str(job))


def test_second_cluster_with_bandwidth_and_down_leaves_nothing(
    cluster: SlurmCluster, other: str
) -> None:
    before = machine()
    second = SlurmCluster(other, ["node1", "node2"])
    second.tool("up", "--hosts", "2", "--rate", "100mbit", "--shm-size", "64m")
    # Both directions: what the host sends, and what the bridge sends to it.
    for host, device in (("node2", "eth0"), ("controller", "node2")):
        limits = second.exec(host, "tc", "qdisc", "show", "dev", device)
        assert "tbf" in limits
        assert "rate 100Mbit" in limits
    assert "tbf" not in cluster.exec("node2", "tc", "qdisc", "show", "dev", "eth0")
    assert "64M" in second.exec("node1", "df", "-h", "/dev/shm")
    assert second.exec("node1", "hostname", "-i") == cluster.exec("node1", "hostname", "-i")
    second.exec("node2", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo segment >/dev/shm/it")
    own = {
        ns
        for host in ("controller", "node1", "node2")
        for ns in second.exec(
            host, "sh", "-c", "readlink /proc/1/ns/net /proc/1/ns/mnt /proc/1/ns/pid"
        ).split()
    }
    assert len(own) == 9
    assert traces(other, own)
    second.tool("down")
    assert traces(other, own) == []
    assert machine() == before
    assert "down already" in second.tool("down")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_up_leaves_nothing(other: str, end: signal.Signals, tmp_path: Path) -> None:
    before = machine()
    # node2 says that it has come so far, and goes no further: `up` waits for it.
    come = tmp_path / "come"
    os.mkfifo(come)
    path = fake_hostname(tmp_path, f"echo here >{come}; exec sleep infinity")
    up = subprocess.Popen(
        [sys.executable, TOOL, "--name", other, "up"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": path},
    )
    try:
        listening = os.open(come, os.O_RDWR)  # does not wait for a writer
        assert select.select([listening], [], [], 30)[0], "node2 does not start"
        os.close(listening)
        up.send_signal(end)
        _, errors = up.communicate(timeout=30)
    finally:
        up.kill()
        up.wait()
    assert up.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[end]
    assert "Traceback" not in errors
    if end == signal.SIGKILL:  # nobody can clean up after itself then: down does
        assert traces(other, set())
        assert run_tool("--name", other, "status").returncode == 2
        assert run_tool("--name", other, "down").returncode == 0
    assert traces(other, set()) == []
    assert machine() == before


def test_host_that_does_not_come_is_named(other: str, tmp_path: Path) -> None:
    path = fake_hostname(tmp_path, "echo its disk is broken; exit 1")
    answer = run_tool("--name", other, "up", env={"PATH": path})
    assert answer.returncode == 2
    assert answer.stderr.startswith("cluster: node2 ")
    assert "its disk is broken" in answer.stderr
    assert traces(other, set()) == []


def fake_hostname(directory: Path, on_node2: str) -> str:
    """A PATH where hosts of a cluster find a `hostname` that does something else on node2."""
    fake = directory / "hostname"
    fake.write_text(f'#!/bin/sh\n[ "$1" != node2 ] || {{ {on_node2}; }}\n')
    fake.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_without_root_one_sentence(tmp_path: Path) -> None:
    words = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", TOOL, "up"]
    answer = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert "root" in answer.stderr
