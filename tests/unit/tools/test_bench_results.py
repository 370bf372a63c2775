"""The figures of benchmarks: kept one run a line, at several levels of kernels side by side."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distsage.kernels.level import Level, of_processor
from tools.bench import page, results
from tools.bench.comparisons import FULL, LOCAL_PROGRAMS
from tools.bench.results import Results
from tools.bench.runs import Epoch, Run


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    monkeypatch.setattr(results, "of_processor", lambda: Level.AVX512)


def run_of(seconds: float) -> Run:
    epoch = Epoch(seconds, seconds, 0, 0.0, {"seconds": seconds})
    return Run("python", [epoch], accuracy=0.9, evaluation_seconds=1.0, memory=2**30)


def measure(path: Path, at: Level, seconds: float) -> Results:
    """A local comparison in which distsage takes `seconds`, DGL 12 s."""
    measured = Results(path, at)
    measured.begin("local")
    for program in LOCAL_PROGRAMS:
        measured.add("local", program.name, run_of(12.0 if program.is_baseline else seconds))
    return measured


def seconds_at(measured: Results, at: str | None) -> float | None:
    found = measured.find("local", at)
    return found and found.medians("distsage, fp32, in line")["seconds"]


def test_a_level_leaves_the_figures_of_another_alone(tmp_path):
    path = tmp_path / "benchmarks.json"
    measure(path, Level.AVX512, 2.0)
    measure(path, Level.AVX2, 3.0)
    measured = measure(path, Level.AVX2, 4.0)
    assert measured.levels() == ["avx512", "avx2"]
    assert (seconds_at(measured, "avx512"), seconds_at(measured, "avx2")) == (2.0, 4.0)
    assert measured.ratios("avx512")["local_fp32"] == 6.0
    assert measured.ratios("avx2")["local_fp32"] == 3.0


def test_the_processors_own_level_replaces_what_has_no_level(tmp_path):
    path = tmp_path / "benchmarks.json"
    measure(path, Level.AVX512, 2.0)
    path.write_text(path.read_text().replace('"level":"avx512"', '"level":null'))
    measured = measure(path, Level.AVX2, 3.0)
    assert (seconds_at(measured, None), seconds_at(measured, "avx2")) == (2.0, 3.0)
    measured = measure(path, Level.AVX512, 2.5)
    assert measured.levels() == ["avx512", "avx2"]


def test_a_run_that_is_added_adds_a_line(tmp_path):
    path = tmp_path / "benchmarks.json"
    measured = measure(path, Level.AVX512, 2.0)
    before = path.read_text().splitlines()
    measured.add("local", "distsage, fp32, in line", run_of(2.0))
    after = path.read_text().splitlines()
    assert [line.rstrip(",") for line in after[: len(before) - 1]] == [
        line.rstrip(",") for line in before[:-1]
    ]
    assert len(after) == len(before) + 1
    assert len(json.loads(path.read_text())) == len(after) - 2


def test_the_page_has_the_figures_of_every_level(tmp_path):
    path = tmp_path / "benchmarks.json"
    measure(path, Level.AVX512, 2.0)
    page.write(tmp_path / "page.md", measure(path, Level.AVX2, 3.0), FULL)
    text = (tmp_path / "page.md").read_text()
    assert "| | goal | reached, kernels avx512 | reached, kernels avx2 |" in text
    assert "| local run, epoch seconds, fp32 | 3x | 6.0x | 4.0x |" in text
    assert text.count("## local\n") == 1
    for level, ratio in (("avx512", "2.00 (6.0x)"), ("avx2", "3.00 (4.0x)")):
        section = text.partition(f", kernels {level}.\n")[2].partition("<details>")[0]
        assert f"| distsage, fp32, in line | {ratio} |" in section


def test_a_level_that_was_not_recorded_is_not_invented(tmp_path):
    path = tmp_path / "benchmarks.json"
    measure(path, Level.AVX512, 2.0)
    path.write_text(path.read_text().replace('"level":"avx512"', '"level":null'))
    page.write(tmp_path / "page.md", Results(path, Level.AVX512), FULL)
    assert ", kernels " not in (tmp_path / "page.md").read_text()


@pytest.mark.skipif(of_processor() <= Level.AVX2, reason="no level below to force")
def test_a_forced_level_holds_dgls_program_too():
    code = (
        "import tools.bench.baseline_model, torch; print(torch.backends.cpu.get_cpu_capability())"
    )
    forced = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**forced, "DISTSAGE_KERNELS": "avx2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert said.stdout == "AVX2\n"


def test_a_level_that_does_not_exist_is_refused_in_one_sentence():
    said = subprocess.run(
        [sys.executable, "-m", "tools.bench", "--help"],
        env={**os.environ, "DISTSAGE_KERNELS": "sse9"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 2
    assert said.stderr.startswith("bench: DISTSAGE_KERNELS is 'sse9'; give one of torch, avx2, ")
    assert said.stderr.count("\n") == 1
