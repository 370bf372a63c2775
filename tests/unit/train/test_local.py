"""The local run, whichever way layer 1 computes: the same losses, and each way the same bits."""

import contextlib
import json
import re
from itertools import count
from pathlib import Path

import pytest
import torch

from distsage.cli import main
from distsage.config import LocalConfig
from distsage.kernels import threads
from distsage.train import local
from distsage.train.run_directory import RunDirectory

pytestmark = pytest.mark.levels


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts hold sparse features as they are."""
    output: Path = tmp_path_factory.mktemp("parts") / "onehot"
    options = ["--dataset", "synthetic-onehot:400:12", "--num-parts", "1"]
    main(["partition", *options, "--output", str(output)])
    return output


def run(
    run_dir: Path, parts: Path | None, dataset: str = "synthetic-onehot:400:12", **changes: object
) -> dict[str, object] | None:
    graph = {"dataset": dataset} if parts is None else {"parts": parts}
    options = {
        "run_dir": run_dir,
        "num_epochs": 3,
        "eval_every": 2,
        "num_hidden": 32,
        "fan_out": "5,5",
        "batch_size": 50,
        "num_workers": 0,
        "device": "cpu",
    }
    return local.train(LocalConfig(**{**graph, **options, **changes}))


def records(run_dir: Path) -> list[dict[str, object]]:
    lines = (run_dir / "epochs.jsonl").read_text().splitlines()
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not re.search("seconds|hosts", name)
        }
        for line in lines
    ]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    checkpoint = RunDirectory(run_dir).load_checkpoint()
    assert checkpoint is not None
    return {**checkpoint.weights, **checkpoint.optimizer}


def test_all_ways_have_the_same_losses(tmp_path: Path) -> None:
    losses = {}
    for option, way in (("auto", "sparse"), ("multiply", "sparse"), ("gather", "gather")):
        summary = run(tmp_path / option, None, input_layer=option)
        assert summary is not None
        assert summary["input_layer"] == way
        losses[option] = [record["loss"] for record in records(tmp_path / option)]
    assert losses["auto"] == losses["multiply"]
    assert losses["auto"] == pytest.approx(losses["gather"], rel=1e-5)


@pytest.mark.parametrize("option", ["auto", "gather"])
def test_each_way_repeats_and_goes_on_to_the_bit(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "one", None, input_layer=option)
    monkeypatch.setattr(threads, "budget", lambda: 2)
    for stop_after in (3, 4, 10**9):
        steps = count(1)
        monkeypatch.setattr(
            local,
            "_stop_signals",
            lambda steps=steps, last=stop_after: contextlib.nullcontext(
                lambda: next(steps) >= last
            ),
        )
        ends_early = stop_after < 10**9
        with pytest.raises(SystemExit) if ends_early else contextlib.nullcontext():
            run(tmp_path / "two", None, input_layer=option, resume="auto")
    assert records(tmp_path / "one") == records(tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_parts_keep_sparse_rows(parts: Path, tmp_path: Path) -> None:
    summary = run(tmp_path / "run", parts)
    assert summary is not None
    assert summary["input_layer"] == "sparse"


def test_the_forced_way_of_tables(tmp_path: Path) -> None:
    losses = []
    for option, way in (("multiply", "multiply"), ("gather", "gather")):
        summary = run(tmp_path / option, None, "synthetic:400:12:300", input_layer=option)
        assert summary is not None
        assert summary["input_layer"] == way
        losses.append([record["loss"] for record in records(tmp_path / option)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
