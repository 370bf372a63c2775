"""The command line: `python -m distsage COMMAND ...`. Runs on the login host and on every rank."""

import dataclasses
import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

from distsage import __version__
from distsage.config import (
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
    parse_fan_out,
)
from distsage.errors import UserError
from distsage.kernels import level
from distsage.launch.roles import launched_ranks
from distsage.parser import completion, option, parser_of, show

if TYPE_CHECKING:
    from distsage.partitioning.shares import Hosts

Config = TypeVar("Config")

_MOST_CONFIG_BYTES = 1 << 16


def _nearest(wrong: str, real: Sequence[str]) -> str:
    matches = difflib.get_close_matches(wrong, real, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""


def _yaml_options(path: str) -> list[str]:
    """The options that a YAML file of `option: value` lines stands for.

    Values are passed on as they are written: nothing is constructed from them here.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MOST_CONFIG_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}") from error
    if len(content) > _MOST_CONFIG_BYTES:
        raise UserError(f"--config {path} is longer than {_MOST_CONFIG_BYTES >> 10} KiB")
    lines = f"--config {path} must hold lines of `option: value`"
    try:
        text = content.decode()
        depth = 0
        # Before anything is built: an alias may stand for very much, and nesting takes stack.
        for event in yaml.parse(text, yaml.SafeLoader):
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise UserError(
                    f"--config {path} has an anchor, alias or tag (&, * or !); write values out"
                )
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > 2:
                raise UserError(f"{lines}, or of `option: [value, value]`")
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(lines)
    options = []
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(lines)
        name = option(key.value)
        if isinstance(value, yaml.SequenceNode) and all(
            isinstance(item, yaml.ScalarNode) for item in value.value
        ):
            options += [name, ",".join(item.value for item in value.value)]
        elif not isinstance(value, yaml.ScalarNode):
            raise UserError(f"{lines}, but {name} has lines of its own")
        elif value.tag == "tag:yaml.org,2002:bool":
            if value.value.lower() in ("true", "yes", "on"):
                options.append(name)  # what is false is left at its default
        elif value.tag != "tag:yaml.org,2002:null":
            options += [name, value.value]
    return options


def parse(config_class: type[Config], command: str, arguments: Sequence[str]) -> Config:
    """Read a command's configuration from its arguments.

    `--config FILE` stands for the options in that YAML file; what follows it on the command line
    wins.

    Raises:
        UserError: an unknown option, or a value that is missing or does not fit.
        SystemExit: help was asked for and has been printed (status 0).
    """
    expanded: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, has_value, value = argument.partition("=")
        if name != "--config":
            expanded.append(argument)
            continue
        if not has_value and not remaining:
            raise UserError("--config needs the path of a YAML file")
        expanded += _yaml_options(value if has_value else remaining.pop(0))

    parser = parser_of(command)
    given = parser.parse_args(_one_spelling(expanded, config_class, command))
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(given).items()
        if name != "config"
    }
    return config_class(**values)


def _one_spelling(arguments: Sequence[str], config_class: type, command: str) -> list[str]:
    """The same arguments with `-` in all names, and with each value joined to its option by `=`.

    A value may begin with `-` itself: `--fan-out -1,10`.

    Raises:
        UserError: there is no such option.
    """
    kinds = {option(field.name): field.type for field in dataclasses.fields(config_class)}
    for argument in arguments:
        if "\0" in argument:
            raise UserError(f"{command} was given {argument!r}, which no file or option is named")
    joined: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--") or argument == "--help":
            joined.append(argument)
            continue
        given, has_value, value = argument.partition("=")
        name = given.replace("_", "-")
        if name not in kinds:
            raise UserError(
                f"{command} has no option {given}{_nearest(name, list(kinds))} "
                f"(distsage {command} --help lists all)"
            )
        takes_next = kinds[name] is not bool and not has_value and remaining
        if takes_next and remaining[0].partition("=")[0].replace("_", "-") not in kinds:
            has_value, value = "=", remaining.pop(0)
        joined.append(f"{name}{has_value}{value}")
    return joined


def _is_rank(arguments: Sequence[str]) -> bool:
    """Whether this process is a rank of an MPI job, and not only asked for help."""
    return launched_ranks(os.environ) > 1 and not {"--help", "-h"} & set(arguments)


def _partition(arguments: Sequence[str]) -> None:
    if _is_rank(arguments):
        from distsage.launch.sharing import partition_on_hosts

        # Only rank 0 of an MPI job reads the configuration; the job carries it to the others.
        partition_on_hosts(lambda: parse(PartitionConfig, "partition", arguments), _lead_partition)
        return
    _lead_partition(parse(PartitionConfig, "partition", arguments), lambda _: None)


def _lead_partition(config: PartitionConfig, hosts_of: "Callable[[Path], Hosts | None]") -> None:
    """Partition, with the hosts that `hosts_of` gives for the folder of the stages."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from distsage.data.datasets import graph_name, known_sizes, load_graph
    from distsage.files import explain_write_errors
    from distsage.limits import hold_to
    from distsage.partitioning import estimate
    from distsage.partitioning.assignment import choose
    from distsage.partitioning.run import partition
    from distsage.partitioning.stages import origin_of, unfinished

    method = config.method_or_file
    # `partition` asks too, also for memory, but for a large graph that is much later.
    choice = choose(
        method,
        balance_train=config.balance_train,
        balance_edges=config.balance_edges,
        attempts=config.attempts,
    )
    hold_to(config.memory_bytes)
    output = config.output or Path("parts") / f"{graph_name(config.dataset)}-{config.num_parts}"
    if output.exists():
        raise UserError(f"{output} exists already; name another --output or remove it first")
    sizes = None if config.force else known_sizes(config.dataset, undirected=config.undirected)
    if sizes is not None:
        num_trainers = config.num_parts * config.num_trainers_per_host
        estimate.check_before_reading(sizes, choice.method, num_trainers)
    sources = [Path(config.dataset)] + ([method] if isinstance(method, Path) else [])
    origin = origin_of(sources, dataclasses.asdict(config))
    with explain_write_errors(output, "--output"), unfinished(output, origin) as stages:
        hosts = hosts_of(stages.folder)
        graph = stages.graph(
            lambda scratch: load_graph(
                config.dataset, **config.reading, seed=config.seed, scratch=scratch
            )
        )
        report = partition(
            graph,
            config.num_parts,
            output,
            method=method,
            attempts=config.attempts,
            balance_train=config.balance_train,
            balance_edges=config.balance_edges,
            num_trainers_per_host=config.num_trainers_per_host,
            seed=config.seed,
            fan_out=parse_fan_out(config.fan_out),
            batch_size=config.batch_size,
            force=config.force,
            configuration={
                "dataset": config.dataset,
                "undirected": config.undirected,
                "split": config.split,
                "split_index": config.split_index,
                "feature_norm": config.feature_norm,
                "categorical": config.categorical,
                "fill": config.fill,
            },
            stages=stages,
            hosts=hosts,
        )
    print(report)
    print(f"written to {output}")


def _plan(arguments: Sequence[str]) -> None:
    config = parse(PlanConfig, "plan", arguments)
    level.hold_to(level.chosen())
    from distsage.partitioning.kept_plans import keep
    from distsage.partitioning.parts import Parts
    from distsage.plan.run import expectations, plan
    from distsage.report.plan import plan_text, write_plan

    found = plan(config)
    write_plan(found, json_file=config.json, page=config.output)
    parts = Parts.open(config.parts_dir)
    kept = keep(parts, config, config.pairs_per_host, expectations(found.to_json()))
    show(f"{plan_text(found)}\n\n{kept}")


def _train(arguments: Sequence[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        parse(TrainConfig, "train", ["--help"])
    # Only rank 0 of an MPI job reads the configuration; the job carries it to the others.
    from distsage.train.distributed import train

    train(lambda: parse(TrainConfig, "train", arguments))


def _preflight(arguments: Sequence[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        parse(PreflightConfig, "preflight", ["--help"])
    from distsage.launch.watch.progress import Watched
    from distsage.launch.watch.watcher import run_watched

    def check(watched: Watched) -> None:
        # Imports MPI, which initialises it: only after the fork.
        from distsage.launch import agreement

        world, config = agreement.join_mpi(
            lambda: parse(PreflightConfig, "preflight", arguments), watched
        )
        agreement.check(world, config, watched)

    run_watched(check, PreflightConfig.startup_timeout)


def _local(arguments: Sequence[str]) -> None:
    config = parse(LocalConfig, "local", arguments)
    level.hold_to(level.chosen())
    from distsage.train.local import train

    train(config)


def _predict(arguments: Sequence[str]) -> None:
    if _is_rank(arguments):
        from distsage.prediction.distributed import be_a_rank

        # Only rank 0 of an MPI job reads the configuration; the job carries it to the others.
        be_a_rank(lambda: parse(PredictConfig, "predict", arguments))
        return
    config = parse(PredictConfig, "predict", arguments)
    level.hold_to(level.chosen())
    from distsage.limits import hold_to
    from distsage.prediction.run import write_predictions

    hold_to(config.memory_bytes)
    write_predictions(config)


def _evaluate(arguments: Sequence[str]) -> None:
    if _is_rank(arguments):
        from distsage.prediction.distributed import be_a_rank

        be_a_rank(lambda: parse(EvaluateConfig, "evaluate", arguments))
        return
    config = parse(EvaluateConfig, "evaluate", arguments)
    level.hold_to(level.chosen())
    from distsage.limits import hold_to
    from distsage.prediction.scores import evaluate, lines

    hold_to(config.memory_bytes)
    print(lines(*evaluate(config)))


def _report(arguments: Sequence[str]) -> None:
    config = parse(ReportConfig, "report", arguments)
    from distsage.report.html import write_report

    write_report(config.runs, config.output)
    print(f"written to {config.output}")


def _runs(arguments: Sequence[str]) -> None:
    config = parse(RunsConfig, "runs", arguments)
    from distsage.report.text import list_runs
    from distsage.train.records import find_runs

    show(list_runs(find_runs(config.directory)))


def _watch(arguments: Sequence[str]) -> None:
    config = parse(WatchConfig, "watch", arguments)
    from distsage.report.watch import watch

    if not watch(config.run):
        raise SystemExit(1)


def _completion(arguments: Sequence[str]) -> None:
    if len(arguments) != 1:
        raise UserError("completion takes the name of a shell, such as bash")
    show(completion(arguments[0], {name: what for name, (_, what) in COMMANDS.items()}))


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "partition": (_partition, "split a graph into parts, one per host"),
    "plan": (_plan, "say what a job would take, before it is queued"),
    "train": (_train, "train on the parts: one MPI job over all hosts"),
    "preflight": (_preflight, "check hosts, network and parts as a training job would"),
    "local": (_local, "train on this machine alone"),
    "predict": (_predict, "write a trained model's predictions by original node id"),
    "evaluate": (_evaluate, "score a trained model on the masks, or on other nodes"),
    "report": (_report, "write an HTML page about runs, or about parts"),
    "runs": (_runs, "list runs, and the options in which they differ"),
    "watch": (_watch, "follow a run from its directory until it is over"),
    "completion": (_completion, "print a script for the shell: bash, zsh or tcsh"),
}


def _usage() -> str:
    lines = [f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items()]
    return (
        "usage: distsage COMMAND [OPTIONS]\n\n"
        "GraphSAGE on graphs that outgrow one machine.\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\ndistsage COMMAND --help lists a command's options."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; users' mistakes end with one sentence and status 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        show(_usage())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(__version__)
        return
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise UserError(
                f"there is no command {name!r}{_nearest(name, list(COMMANDS))} (commands: {known})"
            )
        COMMANDS[name][0](rest)
    except UserError as error:
        print(f"distsage: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
