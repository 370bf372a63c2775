"""From the configuration's dataclasses to option parsers, their help and shell completion.

Runs on the login host and on rank 0; imports nothing heavy. Names, types, defaults and words come
from `distsage.config`; what is said here is the order in which people meet the options.
"""

import argparse
import ast
import inspect
import os
import re
import reprlib
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import shtab

from distsage import config as configuration
from distsage.config import (
    POSITIONAL,
    EvaluateConfig,
    LocalConfig,
    PartitionConfig,
    PlanConfig,
    PredictConfig,
    PreflightConfig,
    ReportConfig,
    RunsConfig,
    TrainConfig,
    WatchConfig,
)
from distsage.errors import UserError

CONFIGS: dict[str, type] = {
    "partition": PartitionConfig,
    "plan": PlanConfig,
    "train": TrainConfig,
    "preflight": PreflightConfig,
    "local": LocalConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "runs": RunsConfig,
    "watch": WatchConfig,
}
"""The configuration of each command."""

EXAMPLES = {
    "partition": "partition --dataset ogbn-products --num-parts 4 --output parts/products-4",
    "plan": "plan --parts parts/products-16 --hosts 2,4,8,16 --mem 64G --network 25gbit",
    "train": "mpirun -n 8 --hostfile hosts --map-by ppr:2:node:OVERSUBSCRIBE --bind-to none \\\n"
    "    python -m mpi4py -m distsage train --parts parts/products-4 --run-dir runs/products\n"
    "sbatch --nodes=4 sbatch/train.sh --parts parts/products-4 --run-dir runs/products",
    "preflight": "mpirun -n 8 --hostfile hosts --map-by ppr:2:node:OVERSUBSCRIBE "
    "--bind-to none \\\n"
    "    python -m mpi4py -m distsage preflight --parts parts/products-4",
    "local": "local --dataset synthetic --run-dir runs/try --num-epochs 5",
    "predict": "predict --run-dir runs/products --output classes.csv",
    "evaluate": "evaluate --run-dir runs/products",
    "report": "report runs/products --output products.html",
    "runs": "runs runs",
    "watch": "watch runs/products",
}
"""One for each command; those that stand alone lack `python -m distsage`."""

FIRST = {
    "partition": "dataset num_parts output undirected split",
    "plan": "parts hosts mem network cores pairs_per_host json output",
    "train": "parts run_dir num_epochs fan_out batch_size num_hidden lr cache_ratio feat_dtype "
    "resume",
    "preflight": "parts cache_ratio feat_dtype interface",
    "local": "dataset parts run_dir num_epochs fan_out batch_size num_hidden lr num_workers device",
    "predict": "run_dir output what nodes parts dataset",
    "evaluate": "run_dir nodes parts dataset",
    "report": "runs output",
    "runs": "directory",
    "watch": "run",
}
"""What people need first, in this order; the others follow by subject."""

SUBJECTS = {
    "planning": "hosts pairs_per_host cores mem network batches calibrate json output",
    "data": "dataset undirected split split_index feature_norm categorical fill dataset_root "
    "ignore_edges",
    "parts": "parts conf_file num_parts part_method attempts balance_train balance_edges "
    "num_trainers_per_host memory force stage topology",
    "model": "num_hidden dropout precision input_layer device",
    "sampling": "fan_out sampler replace batch_size num_workers",
    "training": "num_epochs lr weight_decay eval_every on_nan seed",
    "features and cache": "feat_dtype cache_ratio cache_bytes",
    "hosts and network": "interface ip_config emulated_hosts",
    "time": "startup_timeout stall_timeout",
    "run directory and checkpoints": "run_dir resume checkpoint_minutes tensorboard",
    "predictions": "output what layer nodes file_format",
}
"""Every option's subject."""

# Where the type alone says too little.
_PLACEHOLDERS = {
    "dataset": "NAME|PATH",
    "split": "TRAIN/VAL/TEST",
    "fan_out": "N,N,...",
    "resume": "auto|never|PATH",
    "interface": "NAME|SUBNET",
    "cache_bytes": "BYTES",
    "memory": "SIZE",
    "mem": "SIZE",
    "hosts": "N,N,...",
    "network": "SPEED",
    "startup_timeout": "SECONDS",
    "stall_timeout": "SECONDS",
    "checkpoint_minutes": "MINUTES",
}
_WIDEST = 100
_OPTION_COLUMNS = 30


def option(name: str) -> str:
    """`num_parts` -> `--num-parts`."""
    return f"--{name.replace('_', '-')}"


@cache
def _words() -> dict[tuple[str, str], str]:
    """The string below each field in `distsage.config`, by class and field."""
    words = {}
    for node in ast.parse(inspect.getsource(configuration)).body:
        if isinstance(node, ast.ClassDef):
            for field, after in pairwise(node.body):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    text = inspect.cleandoc(str(after.value.value))
                    words[node.name, field.target.id] = " ".join(text.split())
    return words


def words_of(config: type, name: str) -> str:
    """What a field of a configuration is for: the string below it."""
    for owner in config.__mro__:
        if (owner.__name__, name) in _words():
            return _words()[owner.__name__, name]
    raise AssertionError(f"{config.__name__}.{name} has no string below it")


def whole_number(text: str) -> int:
    """Read an option's value."""
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is no whole number") from error
    if not -(2**63) <= number < 2**63:
        digits = len(text.strip("+-"))
        raise argparse.ArgumentTypeError(f"a number of {digits} digits, more than can be counted")
    return number


def number(text: str) -> float:
    """Read an option's value."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is no number") from error


_READERS = {
    int: (whole_number, "N"),
    float: (number, "X"),
    Path: (Path, "PATH"),
    str: (str, "TEXT"),
}


class Parser(argparse.ArgumentParser):
    """Of one command; a mistake is a UserError."""

    def error(self, message: str) -> NoReturn:
        """Say it in one sentence."""
        raise UserError(f"{message} ({self.prog} --help lists all)")

    def print_help(self, file: Any = None) -> None:
        """As it is asked for by `--help`."""
        show(self.format_help())


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, _WIDEST)
        super().__init__(prog, max_help_position=_OPTION_COLUMNS, width=width)


def _arguments(config: type, field: Field[Any]) -> dict[str, Any]:
    """What `add_argument` needs to know of a field."""
    words = words_of(config, field.name).replace("%", "%%")
    default, kind = field.default, field.type
    assert not isinstance(kind, str)
    if kind is bool:
        return {"action": "store_true", "help": words}
    given = "(default:" in words or "(required)" in words
    if default is not MISSING and default is not None and not given:
        shown = f"{default:g}" if isinstance(default, int | float) else default
        words += f" (default: {shown})"
    arguments = {"help": words, "default": None if default is MISSING else default}
    if default is MISSING:
        arguments |= {"required": True, "help": f"{words} (required)"}
    plain = next((one for one in get_args(kind) if one is not NoneType), kind)
    choices = get_args(kind if get_origin(kind) is Literal else plain)
    if choices:
        return arguments | {"choices": choices, "metavar": "|".join(choices)}
    reader, placeholder = _READERS[plain]
    return arguments | {"type": reader, "metavar": _PLACEHOLDERS.get(field.name, placeholder)}


def _takes(field: Field[Any]) -> str:
    """What a usage line says of a field: nothing of an option."""
    if field.metadata != POSITIONAL:
        return ""
    if get_origin(field.type) is tuple:
        return f"{_place(field)} [{_place(field)} ...] "
    return f"{_place(field)} " if field.default is MISSING else f"[{_place(field)}] "


def _place(field: Field[Any]) -> str:
    several = get_origin(field.type) is tuple
    return (field.name.removesuffix("s") if several else field.name).upper()


def _add(group: argparse._ArgumentGroup, config: type, field: Field[Any]) -> argparse.Action:
    """Add a field to a parser's group, as an option, or as what stands without one."""
    if field.metadata != POSITIONAL:
        return group.add_argument(option(field.name), dest=field.name, **_arguments(config, field))
    several = get_origin(field.type) is tuple
    words = words_of(config, field.name)
    if field.default is not MISSING:
        words += f" (default: {field.default})"
    return group.add_argument(
        field.name,
        metavar=_place(field),
        help=words,
        type=Path,
        nargs="+" if several else None if field.default is MISSING else "?",
        default=None if field.default is MISSING else field.default,
    )


def groups_of(command: str) -> dict[str, list[str]]:
    """A command's fields by the title that they stand under in its help."""
    left = [field.name for field in fields(CONFIGS[command])]
    groups = {}
    for title, listed in {"needed first": FIRST[command], **SUBJECTS}.items():
        groups[title] = [name for name in listed.split() if name in left]
        left = [name for name in left if name not in groups[title]]
    assert not left, f"{left} have no subject"
    return {title: names for title, names in groups.items() if names}


def parser_of(command: str) -> Parser:
    """The parser of a command's options, with its help."""
    config = CONFIGS[command]
    known = {field.name: field for field in fields(config)}
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(config.__doc__ or ""))
    example = EXAMPLES[command]
    if example.startswith(command):
        example = f"python -m distsage {example}"
    parser = Parser(
        prog=f"distsage {command}",
        usage=f"distsage {command} {''.join(_takes(field) for field in known.values())}[OPTIONS]",
        description="\n\n".join(textwrap.fill(" ".join(p.split()), width) for p in paragraphs),
        epilog=f"example:\n{textwrap.indent(example, '  ')}",
        formatter_class=_Formatter,
        add_help=False,
        allow_abbrev=False,
    )
    for title, names in groups_of(command).items():
        group = parser.add_argument_group(title)
        for name in names:
            action = _add(group, config, known[name])
            if action.type is Path or name == "dataset":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    others = parser.add_argument_group("also")
    others.add_argument(
        "--config",
        metavar="PATH",
        help="a YAML file of `option: value` lines; what follows it wins",
    )
    others.add_argument("-h", "--help", action="help", help="show this and leave")
    return parser


def completion(shell: str, commands: Mapping[str, str]) -> str:
    """A script that has the shell complete commands, options, choices and paths.

    Args:
        shell: bash, zsh or tcsh.
        commands: names, and what each does.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        raise UserError(
            f"distsage completion is for {', '.join(shtab.SUPPORTED_SHELLS)}, not for {shell!r}"
        )
    whole = argparse.ArgumentParser(prog="distsage", add_help=False)
    subparsers = whole.add_subparsers()
    for name, what in commands.items():
        parents = [parser_of(name)] if name in CONFIGS else []
        subparsers.add_parser(name, help=what, parents=parents, add_help=False)
    return str(shtab.complete(whole, shell))


def show(text: str) -> None:
    """Print what was asked for, to a reader that may have seen enough of it, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
