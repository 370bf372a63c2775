"""A job that just fits runs; one that just does not is refused in one sentence."""

import mmap
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from jobs import Job, distsage, train_arguments

from distsage import limits
from distsage.config import TrainConfig
from distsage.launch.preflight import shared_memory_need
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.parts import Parts

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]

# Of the MPI library, of which the preflight sees what it has taken by then.
MPI_BYTES = 1 << 20
# A /dev/shm of SIZE; LOG gets what is in use in it, a line every tenth of a second.
PRIVATE = """
size=$0 log=$1
shift
mount --make-rprivate / && mount -t tmpfs -o size="$size" tmpfs /dev/shm || exit 125
"$@" & job=$!
while kill -0 $job 2>&-; do df -B1 --output=used /dev/shm | tail -n 1 >>"$log"; sleep 0.1; done
wait $job
"""
ENTER = 'echo $$ >"$0/cgroup.procs" && exec "$@"'


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "parts"
    distsage("partition", "--dataset", "synthetic:40000:20", "--num-parts", 2, "--output", path)
    return path


def end(within: Sequence[str], parts: Path, run_dir: Path, status: int, *options: object) -> str:
    """Run a short job of two hosts on a machine with a limit; what it said on standard error."""
    arguments = train_arguments(parts, run_dir, "--num-epochs", 1, *options, hosts=2)
    return Job(4, *arguments, within=within).wait(status).stderr


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feat_dtype": "bfloat16", "cache_ratio": 1.0},
        {"feat_dtype": "float16", "cache_bytes": 300_000},
    ],
    ids=str,
)
def test_shared_memory(options: dict[str, object], parts: Path, tmp_path: Path) -> None:
    def with_shared_memory(size: int) -> list[str]:
        return ["unshare", "-m", "sh", "-c", PRIVATE, str(size), str(log)]

    log = tmp_path / "used"
    tried = subprocess.run([*with_shared_memory(1 << 20), "true"], capture_output=True)
    if tried.returncode != 0:
        pytest.skip("this user may not mount a /dev/shm of a chosen size")
    config = TrainConfig(parts=parts, **options)  # type: ignore[arg-type]
    held = HostParts.deal(Parts.open(parts), ["a", "b"])
    need = sum(shared_memory_need(held, host, config) for host in (0, 1))
    need = -(-need // mmap.PAGESIZE) * mmap.PAGESIZE
    given = [x for k, v in options.items() for x in (f"--{k.replace('_', '-')}", v)]
    end(with_shared_memory(need + MPI_BYTES), parts, tmp_path / "fits", 0, *given)
    # Nothing is counted that nobody takes, but for rounding to whole pages.
    assert max(map(int, log.read_text().split())) >= need - 2 * 32 * mmap.PAGESIZE
    short = with_shared_memory(need - mmap.PAGESIZE)
    said = end(short, parts, tmp_path / "not", 2, *given)
    assert said.count(": /dev/shm has ") == 1
    assert "free but part 0, part 1 needs " in said
    assert "Traceback" not in said
    assert not (tmp_path / "not").exists()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of memory below this process's."""
    for folder in limits._own_groups("memory"):
        made = folder / f"distsage-test-{os.getpid()}"
        try:
            made.mkdir()
        except OSError:
            continue
        entered = subprocess.run(["sh", "-c", ENTER, str(made), "true"], capture_output=True)
        if entered.returncode == 0 and limits._words(made / "memory.stat"):
            yield made
            made.rmdir()
            return
        made.rmdir()
    pytest.skip("this machine lets us make no control group of memory")


def test_memory_of_the_job(group: Path, parts: Path, tmp_path: Path) -> None:
    version_2 = (group / "memory.max").exists()
    limit = group / ("memory.max" if version_2 else "memory.limit_in_bytes")
    within = ["sh", "-c", ENTER, str(group)]
    limit.write_text(str(1500 << 20))
    end(within, parts, tmp_path / "fits", 0)
    limit.write_text(str(900 << 20))
    said = end(within, parts, tmp_path / "not", 2)
    assert said.count("of memory are left for this job but part 0, part 1 needs ") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(("asked", "status"), [(2000, 0), (700, 2)])
def test_memory_that_slurm_was_asked_for(
    asked: int, status: int, parts: Path, tmp_path: Path
) -> None:
    within = ["env", f"SLURM_MEM_PER_NODE={asked}", f"SLURM_JOB_ID=test-{os.getpid()}"]
    said = end(within, parts, tmp_path / "run", status)
    assert ("of memory are left for this job" in said) == (status == 2)
