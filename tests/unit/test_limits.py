"""What a job may use: control groups as files, and real ones where they can be made here."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distsage import limits
from distsage.limits import free_disk, free_memory, human_bytes, usable_cores
from tests.unit.memory_group import MemoryGroup

FREE_MEMORY = "from distsage.limits import free_memory; print(free_memory())"
V2 = "35 31 0:32 {root} {mount} rw,relatime - cgroup2 cgroup2 rw\n"
V1 = "35 31 0:32 {root} {mount} rw,relatime shared:9 - cgroup cgroup rw,{controllers}\n"


class Host:
    """A host with so much memory and so many cores, and control groups as plain files."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.groups = path / "groups"
        self.own = path / "proc" / "self"
        self.own.mkdir(parents=True)
        self.groups.mkdir()
        self.is_in("0::/\n", "")
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            patch.delenv(name)
        patch.setattr(limits, "_PROC", path / "proc")
        patch.setattr(limits.psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def is_in(self, groups: str, mounts: str) -> None:
        """This process is in `groups`, as /proc/self/cgroup says."""
        (self.own / "cgroup").write_text(groups)
        (self.own / "mountinfo").write_text(
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n" + mounts
        )

    def group(self, name: str, **files: str) -> None:
        """Make a group; a file memory_max is memory.max."""
        folder = self.groups / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file.replace("_", ".", 1)).write_text(content + "\n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_host_without_limits(host: Host) -> None:
    assert free_memory() == 10_000
    assert usable_cores() == 8


def test_the_tightest_group_around_the_process_counts(host: Host) -> None:
    """Version 2. Pages of files are given back under pressure."""
    host.is_in("0::/job/step/task\n", V2.format(root="/", mount=host.groups))
    used = "anon 1\nactive_file 40\ninactive_file 60\nshmem 7"
    host.group("job", memory_max="2000", memory_current="500", memory_stat=used)
    host.group("job/step", memory_max="max", memory_current="400", memory_stat=used)
    host.group("job/step", cpu_max="250000 100000")
    host.group("job/step/task", cpu_max="max 100000")
    assert free_memory() == 1600
    assert usable_cores() == 2
    host.group("job/step/task", memory_max="90", memory_current="100", memory_stat="anon 100")
    host.group("job", cpu_max="50000 100000")
    assert free_memory() == 0
    assert usable_cores() == 1


def test_version_1_counts_the_groups_below_as_well(host: Host) -> None:
    mounts = V1.format(root="/", mount=host.groups / "memory", controllers="memory")
    mounts += V1.format(root="/", mount=host.groups / "cpu", controllers="cpu,cpuacct")
    host.is_in("7:memory:/slurm/job\n4:cpu,cpuacct:/slurm/job\n0::/\n", mounts)
    statistics = "inactive_file 0\nactive_file 0\nhierarchical_memory_limit {}\n"
    statistics += "total_inactive_file 10\ntotal_active_file 20"
    unlimited = "9223372036854771712"
    host.group(
        "memory/slurm/job",
        memory_limit_in_bytes="3000",
        memory_usage_in_bytes="1000",
        memory_stat=statistics.format(3000),
    )
    host.group("cpu/slurm/job", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    host.group("cpu/slurm", cpu_cfs_quota_us="400000", cpu_cfs_period_us="100000")
    assert free_memory() == 2030
    assert usable_cores() == 4
    # A group that the container does not show is tighter.
    host.group("memory/slurm/job", memory_limit_in_bytes=unlimited)
    host.group("memory/slurm/job", memory_stat=statistics.format(1500))
    assert free_memory() == 530


def test_a_container_that_sees_a_subtree(host: Host) -> None:
    """Slurm's job in a container, and a group of its own inside."""
    mounts = V1.format(root="/docker/a", mount=host.groups / "memory", controllers="memory")
    host.is_in("7:memory:/docker/a/slurm/job\n", mounts)
    for name, limit in (("memory", "5000"), ("memory/slurm/job", "800")):
        host.group(
            name, memory_limit_in_bytes=limit, memory_usage_in_bytes="100", memory_stat="cache 0"
        )
    assert free_memory() == 700
    host.group("memory", memory_limit_in_bytes="600")
    assert free_memory() == 500


@pytest.mark.parametrize(
    ("variables", "mebibytes"),
    [
        ({"SLURM_MEM_PER_NODE": "500"}, 500),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # all of the host
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_JOB_CPUS_PER_NODE": "8(x2),4"}, 800),
        # A step, such as mpirun's daemons, has fewer cores than its job.
        (
            {
                "SLURM_MEM_PER_CPU": "100",
                "SLURM_JOB_CPUS_PER_NODE": "6(x3)",
                "SLURM_CPUS_ON_NODE": "1",
            },
            600,
        ),
        ({"SLURM_MEM_PER_CPU": "100"}, None),
    ],
)
def test_what_the_job_asked_slurm_for(
    variables: dict[str, str], mebibytes: int | None, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = 1 << 40
    monkeypatch.setattr(
        limits.psutil, "virtual_memory", lambda: SimpleNamespace(available=unlimited)
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert free_memory() == (unlimited if mebibytes is None else mebibytes << 20)


def test_processes_of_the_job_count(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one: what it holds in memory and in shared memory, not what it has read of files."""
    monkeypatch.setattr(limits, "_PROC", Path("/proc"))
    holds = "import mmap,sys; a = bytearray(b'x') * (40 << 20); m = mmap.mmap(-1, 24 << 20); "
    holds += "m.write(b'x' * (24 << 20)); print(flush=True); sys.stdin.read()"
    job = f"test-{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", holds],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"SLURM_JOB_ID": job},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = limits._job_memory(job)
        assert limits._job_memory("another") == 0
        process.communicate()
    assert 64 <= found / 2**20 < 100


def test_a_real_group(memory_group: MemoryGroup) -> None:
    memory_group.limit(300 << 20)

    def free_after(program: str) -> float:
        said = subprocess.run(
            [*memory_group.within, sys.executable, "-c", program], capture_output=True, text=True
        )
        assert said.returncode == 0, said.stderr
        return int(said.stdout) / 2**20

    empty = free_after(FREE_MEMORY)
    assert 200 < empty <= 300
    full = free_after(f"held = bytearray(b'x') * (100 << 20); {FREE_MEMORY}")
    assert 90 < empty - full < 110


def test_free_disk_of_a_directory_to_be(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.1)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text
