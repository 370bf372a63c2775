"""Hosts of unlike processors in one job: all compute at the lowest of their levels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Partitioned, planted
from jobs import OURS, train_arguments

from distsage.kernels.level import VARIABLE, Level, of_processor
from tools.mpirun import launcher

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(300)]


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "epochs.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.skipif(of_processor() < Level.AVX512, reason="this processor has no two levels")
def test_a_job_takes_the_lowest_level_of_its_hosts(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    """The first host's ranks are held to avx2: the job gives what it gives at avx2, to the bit."""
    parts = partitioned(planted(), 2)
    found = {}
    for name, levels in {"mixed": ("avx2", ""), "avx2": ("avx2", "avx2")}.items():
        run_dir = tmp_path / name
        arguments = train_arguments(parts, run_dir, "--num-epochs", 3, hosts=2)
        program = [sys.executable, "-m", "mpi4py", *map(str, arguments)]
        command, environment = launcher(2)
        first, second = (["env", f"{VARIABLE}={level}", *program] for level in levels)
        ended = subprocess.run(
            [*command, *first, ":", "-n", "2", *second],
            env={**os.environ, **environment, **OURS},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert json.loads((run_dir / "summary.json").read_text())["kernels"] == "avx2"
        assert ("kernels avx2 on all hosts, because" in ended.stdout) == (name == "mixed")
        found[name] = losses(run_dir)
    assert len(found["mixed"]) == 3
    assert found["mixed"] == found["avx2"]
