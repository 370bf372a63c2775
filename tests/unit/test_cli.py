"""The command line: spellings, YAML, and what a mistake is answered with."""

import dataclasses
import subprocess
import sys

import pytest

from distsage.cli import main, parse
from distsage.config import (
    LocalConfig,
    PartitionConfig,
    PredictConfig,
    PreflightConfig,
    TrainConfig,
    parse_fan_out,
)
from distsage.errors import UserError


def test_both_spellings_of_an_option():
    for option in ("--num-parts", "--num_parts"):
        config = parse(PartitionConfig, "partition", ["--dataset", "cora", option, "2"])
        assert config.num_parts == 2
    config = parse(PartitionConfig, "partition", ["--dataset=cora", "--num_parts=2"])
    assert (config.dataset, config.num_parts) == ("cora", 2)


def test_yaml_stands_for_options_and_the_command_line_wins(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("parts: some/dir\nfan_out: [5, 10]\nlr: 0.5\nnum-hidden: 7\nconf_file: null\n")
    config = parse(TrainConfig, "train", ["--config", str(path), "--lr", "0.25"])
    assert config.fan_outs == (5, 10)
    assert (config.lr, config.num_hidden, str(config.parts_dir)) == (0.25, 7, "some/dir")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["partition", "--dataset", "x", "--num-part", "2"], "did you mean --num-parts"),
        (["train", "--parts", "x", "--batchsize", "2"], "did you mean --batch-size"),
        (["train", "--config", "missing.yaml"], "cannot read --config missing.yaml"),
        (["train", "--config"], "--config needs"),
        (["trian", "--parts", "x"], "did you mean train"),
        (["local"], "give either --dataset NAME_OR_PATH or --parts"),
        (["local", "--dataset", "x", "--fan-out", "10,x"], "--fan-out '10,x'"),
        (["local", "--dataset", "x", "--dropout", "1"], "--dropout is 1"),
        (["local", "--dataset", "x", "--num-epochs", "0"], "--num-epochs is 0"),
        (["local", "--parts", "x", "--undirected"], "--parts takes no --undirected: its graph"),
        (
            ["local", "--parts", "x", "--split", "0.6/0.2/0.2", "--split-index", "1"],
            "--parts takes no --split, --split-index",
        ),
        (
            ["local", "--parts", "x", "--feature-norm", "row", "--dataset-root", "y"],
            "--parts takes no --feature-norm, --dataset-root",
        ),
        (["partition", "--dataset", "x", "--num-parts", "0"], "--num-parts is 0"),
        (["partition", "--dataset", "x"], "--num-parts is 0"),
        (["partition", "--dataset", "x", "--num-parts", "2", "--fan-out", "x"], "--fan-out 'x'"),
        (["partition", "--dataset", "x", "--num-parts", "2", "--batch-size", "0"], "size is 0"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(arguments, sentence):
    # In a process of its own: `train` forks, and brings MPI up.
    command = [sys.executable, "-m", "distsage", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert ended.stdout == ""


@pytest.mark.parametrize(
    "arguments", [["partition", "--num-parts", "two", "--dataset", "x"], ["partition"]]
)
def test_malformed_and_missing_values_end_with_status_2(arguments):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2


def test_an_unknown_yaml_key_is_answered_like_an_option(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("learning_rat: 1\n")
    with pytest.raises(UserError, match="no option --learning-rat"):
        parse(LocalConfig, "local", ["--config", str(path), "--dataset", "x"])


def test_fan_outs():
    assert parse_fan_out("15,10,5") == (15, 10, 5)
    assert parse_fan_out("-1") == (-1,)


@pytest.mark.parametrize("command", ["partition", "train", "preflight", "local", "predict"])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    config = {
        "partition": PartitionConfig,
        "train": TrainConfig,
        "preflight": PreflightConfig,
        "local": LocalConfig,
        "predict": PredictConfig,
    }[command]
    shown = capsys.readouterr().out
    for field in dataclasses.fields(config):
        assert f"--{field.name.replace('_', '-')}" in shown


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, distsage.cli; "
        "print([m for m in ('torch', 'dgl', 'numba', 'mpi4py') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
