"""The README names files, options and defaults that exist."""

import dataclasses
import re
from pathlib import Path

from distsage.config import (
    LocalConfig,
    PartitionConfig,
    PredictConfig,
    PreflightConfig,
    TrainConfig,
)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = (PartitionConfig, TrainConfig, PreflightConfig, LocalConfig, PredictConfig)
OTHERS = {
    "sbatch, srun": "nodes ntasks-per-node cpus-per-task time mem export exclusive exclude mpi "
    "distribution no-requeue",
    "mpirun": "hostfile map-by bind-to oversubscribe version",
    "tools/cluster and docker": "hosts rate privileged",
    "every command": "config help",
}


def option(name: str) -> str:
    return name.replace("_", "-")


def test_every_option_exists() -> None:
    known = {option(field.name) for command in COMMANDS for field in dataclasses.fields(command)}
    known |= {name for names in OTHERS.values() for name in names.split()}
    named = {option(name) for name in re.findall(r"--([a-z][a-z_-]*)", README)}
    assert named <= known, named - known


def test_every_option_of_partition_and_predict_and_local_is_explained() -> None:
    for command in (PartitionConfig, PredictConfig):
        for field in dataclasses.fields(command):
            assert f"--{option(field.name)}" in README


def test_defaults_of_train() -> None:
    fields = {option(field.name): field.default for field in dataclasses.fields(TrainConfig)}
    checked = 0
    rows = re.findall(r"^\| (`--[^|]*`) \| ([^|]+) \|[^|]*\|$", README, re.MULTILINE)
    for names, defaults in rows:
        options = re.findall(r"--([a-z-]+)", names)
        values = [defaults] if len(options) == 1 else defaults.split(", ")
        for name, value in zip(options, values, strict=False):
            default = fields[name]
            if default is not None:  # the size of the cache has its default elsewhere
                shown = "off" if default is False else default
                assert value == (shown if isinstance(shown, str) else f"{shown:g}"), name
                checked += 1
    assert checked >= 15


def test_every_file_of_the_tree_exists() -> None:
    tree = README.split("## What is where")[1].split("```")[1]
    folders: list[str] = []
    for line in tree.splitlines():
        match = re.match(r"((?:│   |    )*)[├└]── (.*)", line)
        if not match:
            continue
        depth = len(match.group(1)) // 4
        for name in re.split(r"\s{2,}", match.group(2))[0].split():
            path = Path(*folders[:depth], name)
            assert (ROOT / path).exists(), path
        folders[depth:] = [match.group(2).split()[0]]


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (ROOT / target).exists(), target
