"""The images: the steps that make their environment are run here; no test builds an image."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "packaging/Dockerfile").read_text()
DEFINITION = (ROOT / "packaging/apptainer.def").read_text()


def copied_by_docker() -> dict[str, str]:
    """What is copied from the checkout, and where it lies in the image's /opt/distsage."""
    pairs = {}
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            pairs[source] = os.path.normpath(
                f"{target}/{Path(source).name}" if target.endswith("/") else target
            )
    return pairs


def copied_by_apptainer() -> dict[str, str]:
    section = DEFINITION.partition("%files")[2].partition("%post")[0]
    pairs = (line.split() for line in section.splitlines() if line.strip())
    return {source: os.path.relpath(target, "/opt/distsage") for source, target in pairs}


@pytest.mark.parametrize(
    ("text", "copied"), [(DOCKERFILE, copied_by_docker()), (DEFINITION, copied_by_apptainer())]
)
def test_the_environment_is_that_of_the_lock(
    text: str, copied: dict[str, str], tmp_path: Path
) -> None:
    """Their files and their command, in an empty directory, come to the environment in use."""
    for source, target in copied.items():
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / target)
    environment = (ROOT / ".venv").resolve()
    steps = re.findall(r"DISTSAGE_HOME=/opt/environments (tools/\S+)$", text, re.MULTILINE)
    assert len(steps) == 1
    settings = {
        "DISTSAGE_HOME": str(environment.parent),
        "DISTSAGE_MPI": "wheel" if (environment / "bin/mpirun").exists() else "site",
        "PYTHON": f"{sys.base_prefix}/bin/python3.11",
    }
    subprocess.run(
        shlex.split(steps[0]), cwd=tmp_path, env={**os.environ, **settings}, check=True, timeout=120
    )
    assert (tmp_path / ".venv").resolve() == environment
    program = [tmp_path / ".venv/bin/python", "-m", "distsage", "--version"]
    said = subprocess.run(program, cwd="/", env={"PYTHONPATH": tmp_path}, stdout=subprocess.PIPE)
    assert (said.returncode, said.stdout) == (0, b"0.1.0\n")


def test_the_lock_fits_the_python_of_debian_12() -> None:
    """Which is 3.11.2; the tests may run with a later one."""
    wanted = {each.name: each.metadata["Requires-Python"] for each in distributions()}
    refusing = {
        name: versions
        for name, versions in wanted.items()
        if versions is not None and not SpecifierSet(versions).contains("3.11.2")
    }
    assert refusing == {}


def test_both_images_are_made_alike() -> None:
    assert copied_by_docker() == copied_by_apptainer()
    bases = re.findall(r"^F(?:ROM|rom:) (.*)$", DOCKERFILE + DEFINITION, re.MULTILINE)
    assert len(bases) == 2
    assert bases[0] == bases[1]
    version = re.search(r"python:(\d+\.\d+)-", bases[0])
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert version
    assert wanted.startswith(f">={version[1]},")
    packages = re.findall(
        r"apt-get install .* ([a-z0-9 ]+?)(?: \\)?$", DOCKERFILE + DEFINITION, re.M
    )
    assert len(packages) == 2
    assert packages[0] == packages[1]


def test_docker_is_sent_what_is_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied_by_docker())
