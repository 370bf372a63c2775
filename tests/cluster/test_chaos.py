"""Eight rounds of `make chaos`: eight kinds of faults at random moments, and no run is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_login import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

# The kinds that go on in different ways; lost hosts, which take Slurm a minute, are in test_faults.
FAULTS = [
    "trainer-killed",
    "mpirun-killed",
    "trainer-stopped",
    "scancel",
    "preemption",
    "requeue",
    "disk-full",
    "checkpoint-truncated",
]


def test_every_run_comes_to_the_same_end(tmp_path: Path) -> None:
    record = tmp_path / "chaos.json"
    words = [sys.executable, "-m", "tools.chaos", f"--rounds={len(FAULTS)}", "--seed=1"]
    answer = subprocess.run(
        [*words, f"--faults={','.join(FAULTS)}", f"--output={record}"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0, said
    rounds = json.loads(record.read_text())["rounds"]
    assert sorted(one["fault"] for one in rounds) == sorted(FAULTS)
    for one in rounds:
        assert one["struck"], said
        assert (one["lost"], one["problems"]) == (False, []), said
