"""Plans are kept beside the parts, and a job finds the one that is of its kind."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from distsage.config import TrainConfig
from distsage.errors import UserError
from distsage.partitioning.kept_plans import PLANS, Expectation, find, keep
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from tests.unit.partition_graphs import random_directed

PLANNED = {
    1: Expectation("a plan", [5000], 2.0, 1.5, 3.0, 4.0, 100.0, 0.0),
    2: Expectation("a plan", [3000, 2500], 1.0, 0.5, 3.0, 2.0, 100.0, 7.5),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    path = tmp_path_factory.mktemp("kept") / "parts"
    partition(random_directed(60, 400), 2, path, method="random")
    return Parts.open(path)


def test_a_job_finds_the_plan_of_its_kind(parts: Parts, tmp_path: Path) -> None:
    config = TrainConfig(parts=parts.path, batch_size=20)
    assert find(parts, config, 2, 1) is None
    assert str(parts.path / PLANS) in keep(parts, config, 1, PLANNED)
    # Where the run is, how long it is and what it learns with decide nothing of an epoch.
    other = TrainConfig(
        conf_file=parts.dgl_config,
        batch_size=20,
        run_dir=tmp_path,
        num_epochs=3,
        lr=0.1,
        seed=4,
        stage=tmp_path,
        tensorboard=True,
    )
    for num_hosts in (1, 2):
        assert find(parts, other, num_hosts, 1) == PLANNED[num_hosts]
    for stranger in ({"batch_size": 21}, {"fan_out": "3,3"}, {"cache_ratio": 0.5}):
        given = TrainConfig(parts=parts.path, **{"batch_size": 20, **stranger})
        assert find(parts, given, 2, 1) is None
    assert find(parts, config, 2, 2) is None, "of two pairs on each host"
    assert find(parts, config, 3, 1) is None
    again = {2: Expectation("a later plan", [1, 2])}
    keep(parts, config, 1, again)
    assert find(parts, config, 2, 1) == again[2]


def test_other_parts_have_other_plans(parts: Parts, tmp_path: Path) -> None:
    partition(random_directed(60, 401), 2, tmp_path / "other", method="random")
    other = Parts.open(tmp_path / "other")
    config = TrainConfig(parts=parts.path, num_hidden=17)
    keep(parts, config, 1, PLANNED)
    (other.path / PLANS).mkdir()
    for kept in (parts.path / PLANS).iterdir():
        (other.path / PLANS / kept.name).write_bytes(kept.read_bytes())
    assert find(parts, config, 2, 1) is not None
    assert find(other, config, 2, 1) is None


def test_parts_that_cannot_be_written_are_a_sentence(tmp_path: Path) -> None:
    partition(random_directed(60, 400), 2, tmp_path / "parts", method="random")
    parts = Parts.open(tmp_path / "parts")
    (parts.path / PLANS).touch()
    said = keep(parts, TrainConfig(parts=parts.path), 1, PLANNED)
    assert f"{parts.path / PLANS} cannot be written (File exists)" in said
    assert "plan.json (--json)" in said


RIGHT = asdict(PLANNED[2])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        json.dumps({**RIGHT, "edges": "many"}),
        json.dumps({**RIGHT, "edges": True}),
        json.dumps({**RIGHT, "memory_bytes": []}),
        json.dumps({**RIGHT, "memory_bytes": [1]}),
        json.dumps({**RIGHT, "memory_bytes": [1, None]}),
        json.dumps({**RIGHT, "by": None}),
    ],
)
def test_what_is_no_plan_is_named(parts: Parts, content: str) -> None:
    config = TrainConfig(parts=parts.path, num_hidden=18)
    before = set((parts.path / PLANS).glob("*"))
    keep(parts, config, 1, {2: PLANNED[2]})
    (kept,) = set((parts.path / PLANS).iterdir()) - before
    kept.write_text(content)
    with pytest.raises(UserError, match=kept.name):
        find(parts, config, 2, 1)
    kept.unlink()
