"""`make test` itself: a run ends whatever its tests do, and says what it has skipped."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

import distsage as package

REPOSITORY = Path(package.__file__).parents[1]
DIE = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
# More files than workers, so that there is work left for one that would take a dead one's place.
FINE = {f"test_fine_{k}.py": "def test_1(): pass\ndef test_2(): pass\n" for k in range(4)}


def make_test(directory: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run on a directory of tests what `make test` runs on distsage's."""
    for name, content in files.items():
        (directory / name).write_text(content)
    arguments = f"ARGS=-c pyproject.toml --rootdir={directory}"
    make = ["make", "--dry-run", "test", f"TESTS={directory}", arguments]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(
        make, cwd=REPOSITORY, env=own, capture_output=True, text=True, check=True, timeout=60
    )
    command = next(line for line in shown.stdout.splitlines() if " -m pytest " in line)
    return subprocess.run(
        shlex.split(command), cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("deadly", "named"),
    [
        ({"test_a.py": f"def test_1(): pass\ndef test_2(): {DIE}\n"}, ["test_a.py::test_2"]),
        (
            {f"test_{k}.py": f"def test_1(): {DIE}\ndef test_2(): pass\n" for k in "ab"},
            ["test_a.py::test_1", "test_b.py::test_1"],
        ),
        ({"test_fine_9.py": f"def test_1(): {DIE}\n"}, ["test_fine_9.py::test_1"]),
        ({"test_a.py": DIE}, ["test_a.py"]),
    ],
    ids=["one test", "a test in each worker", "the last test", "while tests are collected"],
)
def test_a_crash_ends_the_run_and_is_named(
    deadly: dict[str, str], named: list[str], tmp_path: Path
) -> None:
    ended = make_test(tmp_path, {**FINE, **deadly})
    assert ended.returncode != 0, ended.stdout
    said = ended.stdout + ended.stderr
    assert "INTERNALERROR" not in said
    assert any(name in said for name in named), said


def test_what_is_skipped_is_said(tmp_path: Path) -> None:
    skipping = "import pytest\ndef test_1(): pytest.skip('there is no GPU here')\n"
    ended = make_test(tmp_path, {**FINE, "test_a.py": skipping})
    assert ended.returncode == 0, ended.stdout
    assert "there is no GPU here" in ended.stdout
