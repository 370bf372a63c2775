"""A run that is interrupted goes on, and comes to the same numbers to the last bit."""

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distsage.config import LocalConfig
from distsage.data.encoding import Encoding
from distsage.errors import UserError
from distsage.features.slots import local_input
from distsage.sampling.sampler import Sampler
from distsage.sampling.seeds import SeedPlan
from distsage.train.batches import Batch
from distsage.train.checkpoint import Origin
from distsage.train.collectives import Collectives
from distsage.train.loop import Trainer, new_model
from distsage.train.resumption import StopWanted, begin_run, find_resumption
from distsage.train.run_directory import RunDirectory
from distsage.train.saver import Saver
from distsage.train.tensor_file import DamagedError, read_tensors, write_tensors
from tests.unit import runs
from tests.unit.graphs import random_topology

TOPOLOGY = random_topology(80, 400)
FEATURES = torch.from_numpy(np.random.default_rng(0).random((80, 5), np.float32))
LABELS = torch.arange(80) % 3
PLAN = SeedPlan(np.arange(40), [40], 10, 7, 0)  # four steps
EPOCHS = 5
STANDARD = Encoding(5, mean=(0.5,) * 5, deviation=(1.0,) * 5)

Source = Callable[[int, int, Mapping[int, int]], Iterator[Batch]]


def config(run_dir: Path, **changes: object) -> LocalConfig:
    options = {"num_epochs": EPOCHS, "eval_every": 2, "fan_out": "3,4", "num_hidden": 8}
    return LocalConfig(dataset="none", run_dir=run_dir, **{"resume": "auto", **options, **changes})


def origin(options: LocalConfig, **changes: object) -> Origin:
    return runs.origin(options, new_model(options, 5, 3), **changes)


def batches(epoch: int, first: int, attempts: Mapping[int, int]) -> Iterator[Batch]:
    sampler = Sampler(TOPOLOGY, (3, 4))
    for step in PLAN.steps(epoch, first, attempts.get(epoch, 0)):
        sampled = sampler.sample(step.seed_gid, step.sample_key, step.dropout_key)
        inputs = local_input(sampled, FEATURES)
        labels = LABELS[torch.from_numpy(step.seed_gid)]
        yield Batch(inputs, sampled.blocks, sampled.key, labels, step.global_size, {"edges": 1.0})


def run(options: LocalConfig, stop_after: int = 10**9, source: Source = batches) -> object:
    """Train until so many steps are taken, or to the end; as the local run does."""
    facts = origin(options)
    resumption = find_resumption(options, facts)
    directory = begin_run(options, resumption)
    saver = Saver(directory, resumption.position if resumption else (0, 0))
    steps = iter(range(1, 10**9))
    model = new_model(options, 5, 3)
    trainer = Trainer(
        options,
        model,
        Collectives(),
        saver,
        facts,
        PLAN.num_steps,
        stop_wanted=lambda: next(steps) >= stop_after,
    )
    if resumption is not None:
        trainer.go_on(resumption.load(), next_step=resumption.next_step)

    def scores() -> dict[str, dict[str, float]]:
        # Any function of the weights that is not the same in every epoch.
        value = math.modf(1000 * float(model.layers[0].weight.detach().double().sum()))[0]
        return {"val": {"accuracy": value}, "test": {"accuracy": value}}

    result = trainer.fit(source, scores)
    if result is not None:
        directory.finish(result)
    saver.close()
    return result


def records(run_dir: Path) -> list[dict[str, object]]:
    timed = re.compile("seconds")
    lines = (run_dir / "epochs.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not timed.search(name)}
        for line in lines
    ]


def assert_same(one: Path, other: Path) -> None:
    """The records, the final weights and optimiser, and the best model are equal to the bit."""
    assert records(one) == records(other)
    a, b = (RunDirectory(path).load_checkpoint() for path in (one, other))
    assert a is not None
    assert b is not None
    assert a.position == b.position == (EPOCHS, 0)
    assert a.best is not None
    assert b.best is not None
    assert (a.best.epoch, a.best.scores) == (b.best.epoch, b.best.scores)
    for mine, its in (
        (a.weights, b.weights),
        (a.optimizer, b.optimizer),
        (a.best.weights, b.best.weights),
        (RunDirectory(one).load_model()[1], RunDirectory(other).load_model()[1]),
    ):
        assert set(mine) == set(its) != set()
        assert all(torch.equal(mine[name], its[name]) for name in mine)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir: Path = tmp_path_factory.mktemp("undisturbed")
    assert run(config(run_dir)) is not None
    return run_dir


@pytest.mark.parametrize("stops", [[1], [4], [5], [8], [17], [20], [3, 1, 4, 1, 5], [1] * 20])
def test_an_interrupted_run_is_the_undisturbed_one(
    stops: list[int], undisturbed: Path, tmp_path: Path
) -> None:
    """`stops`: after how many steps of each run; 4 is the end of an epoch, 8 an evaluation's."""
    for steps in stops:
        assert run(config(tmp_path), steps) is None
        assert not (tmp_path / "summary.json").exists()
    assert run(config(tmp_path)) is not None
    assert_same(undisturbed, tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_run_that_is_killed_does_its_last_steps_again(undisturbed: Path, tmp_path: Path) -> None:
    """Records of epochs that were finished after the last checkpoint are not there twice."""
    assert run(config(tmp_path), 18) is None
    newest = RunDirectory(tmp_path).checkpoint_files()[0]
    newest.unlink()  # as if it had not been written yet
    assert [record["epoch"] for record in records(tmp_path)] == [0, 1, 2, 3]
    run(config(tmp_path))
    assert_same(undisturbed, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_a_damaged_checkpoint_is_left_out(
    damage: str, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config(tmp_path), 18)
    newest, before = RunDirectory(tmp_path).checkpoint_files()
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[-40] ^= 4
    newest.write_bytes(
        {
            "truncated": bytes(content[:-100]),
            "flipped": bytes(content),
            "empty": b"",
            "other": b"{" * 4000,
        }[damage]
    )
    assert run(config(tmp_path)) is not None
    assert_same(undisturbed, tmp_path)
    said = capsys.readouterr().err
    assert said.startswith(f"distsage: {newest} is damaged: ")
    assert said.endswith("; taking the one before it\n")
    assert said.count("\n") == 1

    for path in (newest, before, *RunDirectory(tmp_path).checkpoint_files()):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="all checkpoints in .* are damaged; give --resume never"):
        run(config(tmp_path))


def test_more_epochs_may_be_asked_for(undisturbed: Path, tmp_path: Path) -> None:
    run(config(tmp_path, num_epochs=2))
    finished = find_resumption(config(tmp_path, num_epochs=2), origin(config(tmp_path)))
    assert finished is not None
    assert finished.finished
    assert str(finished).startswith(f"{tmp_path} is finished: its 2 epochs are trained; raise")
    run(config(tmp_path))
    assert_same(undisturbed, tmp_path)


def test_another_run_can_be_named(undisturbed: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(config(first), 11)
    assert run(config(second, resume=str(first)), 6) is None  # as when Slurm runs the job again
    run(config(second, resume=str(first)))
    assert_same(undisturbed, second)
    assert not (second / "earlier-1").exists()
    assert not (first / "summary.json").exists()
    with pytest.raises(UserError, match=f"--resume {tmp_path}: there is no checkpoint"):
        run(config(second, resume=str(tmp_path)))


def test_never_moves_what_is_there_aside(tmp_path: Path) -> None:
    run(config(tmp_path), 11)
    run(config(tmp_path, resume="never"), 1)
    assert records(tmp_path / "earlier-1") != []
    assert len(RunDirectory(tmp_path / "earlier-1").checkpoint_files()) == 2
    newest = RunDirectory(tmp_path).load_checkpoint()
    assert newest is not None
    assert newest.position == (0, 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"graph": "h"}, r"is of another graph \(g, not h\); name another --run-dir, or"),
        ({"content": {"nodes": 81}}, r"is of another graph \(nodes 80, not 81\)"),
        ({"task": "multilabel"}, r"is of another task \(multiclass, not multilabel\)"),
        ({"num_hidden": 16}, r"is of another model \(hidden 8, not 16\)"),
        ({"encoding": STANDARD.to_json()}, r"is of other features \(theirs are standardised, and"),
    ],
    ids=["name", "size", "task", "model", "features"],
)
def test_another_graph_task_or_model_is_refused(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    run(config(tmp_path), 3)
    options = config(tmp_path, **{k: v for k, v in changes.items() if k == "num_hidden"})
    facts = origin(options, **{k: v for k, v in changes.items() if k != "num_hidden"})
    with pytest.raises(UserError, match=sentence):
        find_resumption(options, facts)


@pytest.mark.parametrize(
    ("changes", "next_step", "note"),
    [
        ({"trainers": 4}, False, "4 trainers instead of 1: the epoch begins anew with the weights"),
        ({"checksum": "d"}, False, "another partitioning of the graph: the epoch begins anew"),
        ({"batch_size": 5}, False, "--batch-size 5 instead of 1000: the epoch begins anew"),
        ({"lr": 0.1}, True, "--lr 0.1 instead of 0.003: results"),
        ({"kernels": "torch"}, True, "kernels torch instead of avx2: results will not be those"),
        ({"versions": {"torch": "3"}}, True, "torch 3 instead of 2: results"),
        ({}, True, None),
    ],
    ids=["trainers", "parts", "batches", "rate", "kernels", "versions", "same"],
)
def test_what_differs_is_said(
    changes: dict[str, object], next_step: bool, note: str | None, tmp_path: Path
) -> None:
    changes = dict(changes)
    run(config(tmp_path), 6)
    options = {name: changes.pop(name) for name in ("batch_size", "lr") if name in changes}
    found = find_resumption(config(tmp_path), origin(config(tmp_path, **options), **changes))
    assert found is not None
    assert found.next_step == next_step
    assert found.position == ((1, 2) if next_step else (1, 0))
    lines = str(found).splitlines()
    assert lines[0] == f"going on from {tmp_path} at step 2 of epoch 1"
    assert [line.startswith(note) for line in lines[1:]] == ([True] if note else [])


def test_an_epoch_that_begins_anew_leaves_its_later_checkpoints_behind(tmp_path: Path) -> None:
    run(config(tmp_path), 7)
    assert run(config(tmp_path, batch_size=500), 1) is None
    files = RunDirectory(tmp_path).checkpoint_files()
    assert [file.stem for file in files] == ["000001-00000001", "000001-00000000"]
    resumption = find_resumption(
        config(tmp_path, batch_size=500), origin(config(tmp_path, batch_size=500))
    )
    assert resumption is not None
    assert (resumption.position, resumption.notes) == ((1, 1), ())


def test_an_epoch_that_begins_anew_is_whole(tmp_path: Path) -> None:
    """A run of other options takes all steps of the epoch, and its record counts only those."""
    run(config(tmp_path), 6)
    options = config(tmp_path, seed=8)
    facts = origin(options, trainers=4)
    resumption = find_resumption(options, facts)
    assert resumption is not None
    trainer = Trainer(options, new_model(options, 5, 3), Collectives(), None, facts, PLAN.num_steps)
    trainer.go_on(resumption.load(), next_step=resumption.next_step)
    seen: list[tuple[int, int]] = []

    def source(epoch: int, first: int, attempts: Mapping[int, int]) -> Iterator[Batch]:
        seen.append((epoch, first))
        return batches(epoch, first, attempts)

    scores = {"val": {"accuracy": 0.5}, "test": {"accuracy": 0.5}}
    assert trainer.fit(source, lambda: scores) is not None
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 0)]


@pytest.mark.parametrize(
    ("left", "asked", "stops"),
    [
        (None, False, False),
        (None, True, True),
        (3600, False, False),  # two minutes are wanted at the end of an hour
        (60, False, False),  # and a tenth of a minute
        (0, False, True),
        (-10, False, True),
    ],
)
def test_when_a_run_stops_early(
    left: int | None, asked: bool, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "" if left is None else str(int(time.time()) + left))
    stop_wanted = StopWanted(lambda: asked)
    assert stop_wanted() == stops


@pytest.mark.parametrize(("left", "early"), [(36_000, 120), (3600, 120), (600, 60), (60, 6)])
def test_how_early_it_stops(left: int, early: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = float(int(time.time()))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(now) + left))
    monkeypatch.setattr(time, "time", lambda: now)
    stop_wanted = StopWanted(lambda: False)
    for seconds, stops in ((left - early - 1, False), (left - early + 1, True)):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: now + seconds)
        assert stop_wanted() == stops
    assert stop_wanted.why == "Slurm's time limit is near"


def bad_at(epoch: int, step: int, failing_attempts: int) -> Source:
    """Batches of which one has huge features, in the first so many attempts at its epoch."""

    def source(at: int, first: int, attempts: Mapping[int, int]) -> Iterator[Batch]:
        for number, batch in enumerate(batches(at, first, attempts), first):
            if (at, number) == (epoch, step) and attempts.get(at, 0) < failing_attempts:
                inputs = replace(batch.inputs, tables=(FEATURES * 3e38,))
                yield replace(batch, inputs=inputs)
            else:
                yield batch

    return source


def test_a_loss_that_is_no_number_ends_the_run_before_it_spoils_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was to be saved before is saved, on a slow disk as well."""
    save = RunDirectory.save_checkpoint

    def slowly(*args: Any) -> None:
        time.sleep(2.0)
        save(*args)

    monkeypatch.setattr(RunDirectory, "save_checkpoint", slowly)
    sentence = (
        r"the loss of step 1 of epoch 3 is nan \(learning rate 0.003, batch of trainer 0 with 10 "
        r"seed nodes\); lower --lr, or look for huge values in the features"
    )
    with pytest.raises(UserError, match=sentence):
        run(config(tmp_path), source=bad_at(3, 1, 1))
    newest = RunDirectory(tmp_path).load_checkpoint()
    assert newest is not None
    assert newest.position == (2, 0)
    assert all(bool(value.isfinite().all()) for value in newest.weights.values())


@pytest.mark.parametrize(("failing_attempts", "ends_well"), [(1, True), (3, True), (4, False)])
def test_going_back_to_the_last_checkpoint(
    failing_attempts: int, ends_well: bool, undisturbed: Path, tmp_path: Path
) -> None:
    source = bad_at(3, 1, failing_attempts)
    options = config(tmp_path, on_nan="rollback")
    if not ends_well:
        with pytest.raises(UserError, match="is nan .* in spite of 3 other seeds; lower --lr"):
            run(options, source=source)
        return
    assert run(options, source=source) is not None
    seen, expected = records(tmp_path), records(undisturbed)
    assert [record["epoch"] for record in seen] == [0, 1, 2, 3, 4]
    assert seen[:3] == expected[:3]
    assert seen[3]["loss"] != expected[3]["loss"]  # other neighbours
    assert all(math.isfinite(record["loss"]) for record in seen)  # type: ignore[arg-type]


def test_an_attempt_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    """A run that is interrupted after it has gone back is still the undisturbed one."""
    source = bad_at(3, 1, 1)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(config(whole, on_nan="rollback"), source=source)
    # Thirteen steps, one that is bad, four again, and one.
    assert run(config(stopped, on_nan="rollback"), 20, source) is None
    newest = RunDirectory(stopped).load_checkpoint()
    assert newest is not None
    assert newest.attempts == {3: 1}
    run(config(stopped, on_nan="rollback"), source=source)
    assert_same(whole, stopped)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_no_damage_goes_unnoticed(
    position: float, bit: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.zeros(0), "c": torch.ones(())}
    write_tensors(path, tensors, {"what": "a test", "numbers": [1, 2.5, None]})
    content = bytearray(path.read_bytes())
    at = int(position * len(content))
    if cut:
        del content[at:]
    else:
        content[at] ^= 1 << bit
    path.write_bytes(content)
    sentence = ""
    try:
        found, about = read_tensors(path)
    except DamagedError as error:
        sentence = str(error)
    if sentence:
        assert sentence.startswith(f"{path} is damaged: ")
        assert "\n" not in sentence
    else:  # white space in the header
        assert about == {"what": "a test", "numbers": [1, 2.5, None]}
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
