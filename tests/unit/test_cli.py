"""The command line: spellings, YAML, and what a mistake is answered with."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys

import pytest
from hypothesis import given

from distsage.cli import main, parse
from distsage.config import POSITIONAL, LocalConfig, PartitionConfig, TrainConfig, parse_fan_out
from distsage.errors import UserError
from distsage.parser import CONFIGS
from tests.unit.fuzzing import damaged, examples, nested, success_or_one_sentence


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
        (
            ["partition", "--dataset", "x", "--num-parts", "2", "--part-method", "kamipar"],
            "--part-method is 'kamipar', which is no file; give one, or auto, kaminpar, metis or",
        ),
        (["partition", "--dataset", "x", "--num-parts", "2", "--attempts", "0"], "attempts is 0"),
        (
            [
                *("partition", "--dataset", "x", "--num-parts", "2", "--balance-edges"),
                *("--part-method", "kaminpar"),
            ],
            "KaMinPar balances the number of nodes and no more",
        ),
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
    ("arguments", "sentence"),
    [
        (["partition", "--num-parts", "two", "--dataset", "x"], "--num-parts: 'two' is no whole"),
        (["partition"], "required: --dataset"),
        (["partition", "--dataset", "--num-parts", "2"], "--dataset: expected one argument"),
        (["local", "--dataset", "x", "--lr", "fast"], "--lr: 'fast' is no number"),
        (["local", "--dataset", "x", "--device", "tpu"], "choose from 'auto', 'cpu', 'cuda'"),
        (["local", "--dataset", "x", "--replace=yes"], "--replace"),
        (["local", "--dataset", "x", "more"], "unrecognized arguments: more"),
    ],
)
def test_malformed_and_missing_values_get_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    printed = capsys.readouterr()
    assert (len(printed.err.splitlines()), printed.out) == (1, "")
    assert sentence in printed.err


def test_an_unknown_yaml_key_is_answered_like_an_option(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("learning_rat: 1\n")
    with pytest.raises(UserError, match="no option --learning-rat"):
        parse(LocalConfig, "local", ["--config", str(path), "--dataset", "x"])


def test_fan_outs():
    assert parse_fan_out("15,10,5") == (15, 10, 5)
    assert parse_fan_out("-1") == (-1,)


def help_of(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", CONFIGS)
@pytest.mark.parametrize("columns", [60, 80, 300])
def test_help(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = help_of(command, capsys)
    for field in dataclasses.fields(CONFIGS[command]):
        name = f"--{field.name.replace('_', '-')}"
        if field.metadata == POSITIONAL:
            name = "RUN" if field.name.startswith("run") else field.name.upper()
            assert shown.startswith(f"usage: distsage {command} ")
            assert name in shown.splitlines()[0]
        assert len(re.findall(rf"^  {name}(?= |$)", shown, re.MULTILINE)) == 1
    needed = shown.partition("needed first:")[2].partition("\n\n")[0]
    assert 1 <= len(re.findall(r"^  (--|[A-Z])", needed, re.MULTILINE)) <= 10
    for sign in ("{", "None", "%%", "{}"):
        assert sign not in shown
    options = shown.partition("needed first:")[2].partition("example:")[0]
    assert max(map(len, options.splitlines())) <= min(columns, 100)


@pytest.mark.parametrize("command", CONFIGS)
def test_the_example_of_a_command(command, capsys):
    example = help_of(command, capsys).partition("example:\n")[2].replace("\\\n", " ")
    for line in filter(None, example.splitlines()):
        _, found, given = line.partition(f"{command} ")
        if "sbatch/" in line:
            _, found, given = line.partition(f"{command}.sh ")
        assert found
        parse(CONFIGS[command], command, shlex.split(given))


def test_types_are_written_as_people_write_them(capsys):
    shown = help_of("train", capsys)
    for spelling in (
        *("--parts PATH", "--fan-out N,N,...", "--device auto|cpu|cuda", "--num-epochs N"),
        *("--lr X", "--stall-timeout SECONDS", "--replace ", "(default: 0.003)"),
    ):
        assert spelling in shown


def test_a_reader_of_the_help_may_leave_early():
    command = f"{sys.executable} -m distsage train --help | head -1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "usage: distsage train [OPTIONS]\n"
    reading, writing = os.pipe()
    os.close(reading)  # this one left before the first line
    for arguments in (["train", "--help"], ["--help"], ["completion", "bash"]):
        ended = subprocess.run(
            [sys.executable, "-m", "distsage", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
    os.close(writing)


def complete(words, tmp_path):
    """What bash offers for the last of these words."""
    script = subprocess.run(
        [sys.executable, "-m", "distsage", "completion", "bash"], capture_output=True, text=True
    ).stdout
    asked = " ".join(map(shlex.quote, words))
    program = (
        f"{script}\nCOMP_WORDS=({asked}); COMP_CWORD={len(words) - 1}; "
        'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; '
        f"_shtab_distsage distsage {shlex.quote(words[-1])} {shlex.quote(words[-2])}; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    return ended.stdout.split()


def test_the_shell_completes_commands_options_choices_and_paths(tmp_path):
    (tmp_path / "products.npz").touch()
    assert complete(["distsage", "pre"], tmp_path) == ["preflight", "predict"]
    assert complete(["distsage", "train", "--cache"], tmp_path) == [
        "--cache-ratio",
        "--cache-bytes",
    ]
    assert complete(["distsage", "local", "--device", "c"], tmp_path) == ["cpu", "cuda"]
    assert complete(["distsage", "local", "--dataset", "pro"], tmp_path) == ["products.npz"]


def test_there_is_completion_for_shells_only(capsys):
    for arguments in (["completion"], ["completion", "cmd.exe"]):
        with pytest.raises(SystemExit) as leaving:
            main(arguments)
        assert leaving.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_values_that_begin_with_a_dash():
    for arguments in (["--fan-out", "-1,10"], ["--fan-out=-1,10"], ["--fan_out", "-1,10"]):
        assert parse(LocalConfig, "local", ["--dataset", "x", *arguments]).fan_outs == (-1, 10)


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, distsage.cli; "
        "print([m for m in ('torch', 'dgl', 'numba', 'mpi4py') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


GOOD_YAML = b"""# a job
parts: some/dir
num_epochs: 3
lr: 0.01
fan-out: [5, 10]
replace: true
cache_ratio: ~
"""


def parse_yaml(path, content):
    path.write_bytes(content)
    return parse(TrainConfig, "train", ["--config", str(path)])


def test_yaml_values_are_passed_on_as_they_are_written(tmp_path):
    config = parse_yaml(tmp_path / "job.yaml", GOOD_YAML + b"run_dir: 2026-11-26\nseed: 010\n")
    assert (config.fan_outs, config.lr, config.replace) == ((5, 10), 0.01, True)
    assert (str(config.run_dir), config.seed, config.cache_ratio) == ("2026-11-26", 10, None)


BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 9))
    for level in range(1, 30)
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (BOMB, "anchor, alias or tag"),
        (b"parts: &here x\n", "anchor, alias or tag"),
        (b"parts: [a, [b]]\n", "lines of `option: value`"),
        (b"parts: {a: b}\n", "has lines of its own"),
        (b"? [a]\n: b\n", "lines of `option: value`"),
        (b"- a\n- b\n", "lines of `option: value`"),
        (b"", "lines of `option: value`"),
        (b"a: b\n---\nc: d\n", "is no YAML"),
        (b"parts: !!python/object/apply:os.system [id]\n", "anchor, alias or tag"),
        (b"lr: \xff\n", "is no YAML"),
        (b"parts: 'a\n", "is no YAML"),
        (b'parts: "a\\0b"\n', "which no file or option is named"),
        (b"parts: x\nnum_epochs: " + b"9" * 4000 + b"\n", "--num-epochs: a number of 4000 digits"),
        (b"x" * 100_000, "longer than 64 KiB"),
        *((content, "--config") for content in nested(20_000)),
    ],
)
def test_yaml_that_is_no_list_of_options(tmp_path, content, sentence):
    with pytest.raises(UserError) as caught:
        parse_yaml(tmp_path / "job.yaml", content)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_with_a_number_of_5000_digits(tmp_path):
    with pytest.raises(UserError, match=r"--seed: '9+\.\.\.9+' is no whole number"):
        parse_yaml(tmp_path / "job.yaml", b"parts: x\nseed: " + b"9" * 5000 + b"\n")


@examples(150)
@given(content=damaged(GOOD_YAML))
def test_damaged_yaml(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    with success_or_one_sentence():
        parse_yaml(path, content)
