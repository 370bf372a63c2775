"""Makes a plan: replays, measures, adds up, recommends. Runs on the login host."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distsage import __version__
from distsage.config import PlanConfig, TrainConfig
from distsage.kernels import threads
from distsage.limits import free_memory, usable_cores
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.kept_plans import Expectation
from distsage.partitioning.parts import Parts
from distsage.plan.estimate import Hosts, Seconds, seconds
from distsage.plan.evaluation import exchange
from distsage.plan.machine import Machine, calibrated, measure, sampling
from distsage.plan.memory import HostMemory, host_memory
from distsage.plan.replay import CURVE_RATIOS, Replay, replay, train_nodes
from distsage.sampling.partitioned import choose_topology
from distsage.train.loop import new_model
from distsage.train.records import read_run

SCHEMA = 1
"""Of a plan as JSON."""

Topologies = Literal["replicated", "partitioned"]

_MEMORY_MARGIN, _TIME_MARGIN = 1.2, 1.5
_DEARER = 1.25
"""A faster number of hosts may take so many times the core-hours of the cheapest."""
_STARTUP_SECONDS = 60.0
_STOP_SECONDS = 120.0
"""As sbatch/train.sh has it: for a step, the checkpoint and the ranks' goodbye."""
_CHECKPOINT_COPIES = 4  # weights, two moments of Adam, the best weights


@dataclass(frozen=True)
class HostsPlan:
    """What a job on so many hosts takes.

    Attributes:
        num_hosts, trainers: of the job.
        steps: of an epoch; `sampled` batches of each trainer were counted.
        error: two standard errors of the counts, as a fraction.
        topology: what trainers sample from, and why.
        batch: means of a batch: seeds, edges, rows by where they come from, bytes received.
        memory: of each host.
        fits: whether every host has the memory; None where nobody said what there is.
        traffic: bytes that each host receives from each in an epoch; float `[H][H]`.
        evaluation_traffic: the same for an evaluation.
        curve: (cache ratio, bytes an epoch).
        knee: of the curve: a larger cache pays less than before.
        seconds: of an epoch and an evaluation.
        run_seconds, core_hours: of the whole run.
    """

    num_hosts: int
    trainers: int
    steps: int
    sampled: int
    error: float
    topology: Topologies
    topology_note: str
    batch: dict[str, float]
    memory: list[HostMemory]
    fits: bool | None
    traffic: list[list[float]]
    evaluation_traffic: list[list[float]]
    curve: list[tuple[float, float]]
    knee: float
    seconds: Seconds
    run_seconds: float
    core_hours: float

    @property
    def received(self) -> float:
        """Bytes that all hosts receive in an epoch."""
        return float(np.sum(self.traffic))

    @property
    def wanted(self) -> int:
        """Bytes of the host that needs most."""
        return max(host.wanted for host in self.memory)


@dataclass(frozen=True)
class Change:
    """What another option would do to the recommended job: factors of the present figures."""

    option: str
    epoch: float
    received: float
    memory: float


@dataclass(frozen=True)
class Plan:
    """A plan for several numbers of hosts.

    Attributes:
        parts: directory.
        graph: facts of it.
        machine: the figures that seconds come from.
        cores, network: of a host; bytes a second, None: unlimited.
        mem: bytes of a host, None: nobody said.
        checkpoint_bytes: of one checkpoint.
        hosts: one for each number of hosts.
        recommended: how many; None where none fits.
        why: a sentence.
        bound: what these parts cannot tell, a sentence; empty if nothing.
        request: the line that asks Slurm for it.
        changes: of the recommended job, or of the largest.
    """

    parts: str
    graph: dict[str, Any]
    options: dict[str, Any]
    machine: Machine
    cores: float
    network: float | None
    mem: int | None
    checkpoint_bytes: int
    hosts: list[HostsPlan]
    recommended: int | None
    why: str
    bound: str
    request: str | None
    changes: list[Change]

    def to_json(self) -> dict[str, Any]:
        """As `--json` writes it; bytes, seconds."""
        return {"schema": SCHEMA, "distsage": __version__, **asdict(self)}


def plan(config: PlanConfig) -> Plan:
    """Plan for every number of hosts that the options name. Takes up to a minute or so.

    Raises:
        UserError: there are fewer parts than hosts, a file of the parts cannot be read, or the run
            to calibrate with does not fit.
    """
    run = None if config.calibrate is None else read_run(config.calibrate)
    parts = Parts.open(config.parts_dir)
    dealt = [_deal(parts, count) for count in config.host_counts]
    parts.check_sizes()
    manifest = parts.manifest
    train_gid = train_nodes(dealt[0])
    replays = [_replay(each, config, train_gid) for each in dealt]
    hosts = _hosts(config)
    machine = measure(dealt[0], config, replays[0], hosts.threads)
    if run is not None:
        machine = calibrated(machine, run, config)
    model = new_model(config, manifest.num_features, manifest.num_classes)
    size = sum(parameter.numel() for parameter in model.parameters())
    plans = [
        _hosts_plan(each, config, replayed, machine, hosts, size)
        for each, replayed in zip(dealt, replays, strict=True)
    ]
    chosen, why = recommend(plans)
    best = chosen or plans[-1]
    at = plans.index(best)
    changes = _changes(dealt[at], config, train_gid, machine, hosts, size, best)
    return Plan(
        parts=str(parts.path),
        graph={
            "name": manifest.graph_name,
            "nodes": manifest.num_nodes,
            "edges": manifest.num_edges,
            "features": manifest.num_features,
            "parts": parts.num_parts,
        },
        options=_given(config),
        machine=machine,
        cores=hosts.cores,
        network=hosts.network,
        mem=config.mem_bytes,
        checkpoint_bytes=4 * _CHECKPOINT_COPIES * size,
        hosts=plans,
        recommended=None if chosen is None else chosen.num_hosts,
        why=why,
        bound=bound_of(best.num_hosts, parts.num_parts),
        request=None if chosen is None else request(chosen, config, hosts.cores),
        changes=changes,
    )


def _hosts(config: PlanConfig) -> Hosts:
    """What each host of the job has."""
    cores = config.cores or float(usable_cores())
    if "OMP_NUM_THREADS" in os.environ:  # sbatch hands it on to the job
        return Hosts(cores, config.network_bytes, threads.budget())
    share = max(1, int(cores / config.pairs_per_host))  # as batch scripts and ranks share them
    return Hosts(cores, config.network_bytes, share)


def expectations(plan: Mapping[str, Any]) -> dict[int, Expectation]:
    """What jobs are expected to take by a plan as JSON, by their numbers of hosts.

    Raises:
        ValueError: it is of another schema.
        KeyError, TypeError: it is no plan.
    """
    if plan["schema"] != SCHEMA:
        raise ValueError("another schema")
    found = {}
    for each in plan["hosts"]:
        took, batches = each["seconds"], each["steps"] * each["trainers"]
        found[each["num_hosts"]] = Expectation(
            by=f"distsage plan, its seconds {plan['machine']['source']}",
            memory_bytes=[
                sum(host["shared"].values()) + max(sum(host["own"].values()), host["loading"])
                for host in each["memory"]
            ],
            epoch_seconds=took["epoch"],
            epoch_seconds_low=took["low"],
            epoch_seconds_high=took["high"],
            eval_seconds=took["evaluation"],
            edges=each["batch"]["edges"] * batches,
            missed_rows=each["batch"]["from other hosts"] * batches,
        )
    return found


def bound_of(num_hosts: int, num_parts: int) -> str:
    """What parts cannot tell of more hosts than `num_hosts`; empty if they can."""
    if num_hosts < num_parts:
        return ""
    which = "this is 1 part" if num_parts == 1 else f"these are {num_parts} parts"
    return (
        f"{which}, so nothing is known of more hosts: partition into more, such as "
        f"--num-parts {2 * num_parts}, to see what those would take"
    )


def recommend(plans: Sequence[HostsPlan]) -> tuple[HostsPlan | None, str]:
    """The number of hosts to take, and why."""
    fitting = [each for each in plans if each.fits is not False]
    if not fitting:
        least = min(plans, key=lambda each: each.wanted)
        gib = math.ceil(least.wanted * _MEMORY_MARGIN / 2**30)
        return None, (
            f"no number of hosts fits --mem: with {least.num_hosts} a host needs {gib}G; give more "
            "memory, use more hosts, a shorter --feat-dtype or a smaller cache"
        )
    cheapest = min(fitting, key=lambda each: each.core_hours)
    affordable = [each for each in fitting if each.core_hours <= _DEARER * cheapest.core_hours]
    fastest = min(affordable, key=lambda each: each.run_seconds)
    if fastest is cheapest:
        return fastest, "it takes the fewest core-hours of those that fit"
    dearer = 100 * (fastest.core_hours / cheapest.core_hours - 1)
    return fastest, (
        f"it is the fastest that takes at most a quarter more core-hours than the cheapest "
        f"({cheapest.num_hosts}): {dearer:.0f} % more"
    )


def request(chosen: HostsPlan, config: PlanConfig, cores: float) -> str:
    """The line that asks Slurm for a job, with margins."""
    ranks = 2 * config.pairs_per_host
    memory = math.ceil(chosen.wanted * _MEMORY_MARGIN / 2**30)
    slower = chosen.seconds.high / chosen.seconds.epoch if chosen.seconds.epoch else 1.0
    minutes = math.ceil(chosen.run_seconds * max(_TIME_MARGIN, slower) / 60) + 5
    hours, minutes = divmod(minutes, 60)
    notice = 10 * math.ceil((_STOP_SECONDS + chosen.seconds.evaluation) / 10)
    words = [
        "sbatch",
        f"--nodes={chosen.num_hosts}",
        f"--ntasks-per-node={ranks}",
        f"--cpus-per-task={max(1, math.ceil(cores / ranks))}",
        f"--mem={memory}G",
        f"--time={hours}:{minutes:02}:00",
        f"--signal=B:USR2@{notice}",
        "sbatch/train.sh",
    ]
    for name, value in _given(config).items():
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else [str(value)]
    return shlex.join(words)


def _given(config: PlanConfig) -> dict[str, Any]:
    """The options of training that are not the defaults; those of the plan's own apart."""
    given = {"parts": str(config.parts_dir)}
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if field.name not in ("parts", "conf_file", "run_dir") and value != field.default:
            given[field.name] = str(value) if isinstance(value, Path) else value
    return given


def _deal(parts: Parts, num_hosts: int) -> HostParts:
    return HostParts.deal(parts, [f"host {number}" for number in range(num_hosts)])


def _replay(parts: HostParts, config: PlanConfig, train_gid: np.ndarray) -> Replay:
    return replay(parts, config, train_gid, config.pairs_per_host, config.batches)


def _hosts_plan(
    parts: HostParts,
    config: PlanConfig,
    replayed: Replay,
    machine: Machine,
    hosts: Hosts,
    num_parameters: int,
) -> HostsPlan:
    exchanged = exchange(parts, config, config.pairs_per_host)

    def memory_with(topology: Topologies) -> list[HostMemory]:
        return [
            host_memory(parts, host, config, topology, replayed, exchanged, num_parameters)
            for host in range(parts.num_hosts)
        ]

    memory = memory_with("replicated")
    most = max(host.taken for host in memory)
    left = free_memory() if config.mem_bytes is None else max(config.mem_bytes - most, 0)
    topology, note = choose_topology(config.topology, parts.parts.topology(), left)
    if topology == "partitioned":
        memory = memory_with(topology)
    received = replayed.received_bytes(topology)
    traffic = replayed.by_host(replayed.of_epoch(received))
    evaluation = replayed.by_host(exchanged.halo_bytes.astype(float))
    hidden = replayed.by_host(replayed.by_host(exchanged.hidden_bytes.astype(float)).T).T
    evaluation += hidden - np.diag(np.diag(hidden))
    scale = replayed.num_steps / replayed.num_sampled
    others = int(received.sum() - replayed.missed_bytes.sum())  # picks: no cache spares them
    curve = [
        (ratio, float((count + others) * scale))
        for ratio, count in zip(CURVE_RATIOS, replayed.curve_bytes, strict=True)
    ]
    expected = seconds(replayed, exchanged, machine, hosts, config, topology, num_parameters)
    evaluations = math.ceil(config.num_epochs / config.eval_every)
    run_seconds = (
        _STARTUP_SECONDS + config.num_epochs * expected.epoch + evaluations * expected.evaluation
    )
    wanted = max(host.wanted for host in memory)
    return HostsPlan(
        num_hosts=parts.num_hosts,
        trainers=len(replayed.trainer_hosts),
        steps=replayed.num_steps,
        sampled=replayed.num_sampled,
        error=replayed.error(topology),
        topology=topology,
        topology_note=note,
        batch={
            "edges": float(replayed.edges.mean()),
            "nodes of layer 1": float(replayed.inner_nodes.mean()),
            "feature rows": float(replayed.input_nodes.mean()),
            "of the own host": float(replayed.local_rows.mean()),
            "from the cache": float(replayed.cached_rows.mean()),
            "from other hosts": float(replayed.missed_rows.sum(2).mean()),
            "bytes received": float(received.sum(2).mean()),
        },
        memory=memory,
        fits=None if config.mem_bytes is None else wanted <= config.mem_bytes,
        traffic=traffic.tolist(),
        evaluation_traffic=evaluation.tolist(),
        curve=curve,
        knee=knee_of(curve),
        seconds=expected,
        run_seconds=run_seconds,
        core_hours=run_seconds * hosts.cores * parts.num_hosts / 3600,
    )


def knee_of(curve: Sequence[tuple[float, float]]) -> float:
    """Where a falling curve lies farthest below the line between its ends."""
    x, y = np.array(curve).T
    if y[0] <= y[-1]:
        return float(x[0])
    chord = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    return float(x[np.argmax(chord - y)])


def _changes(
    parts: HostParts,
    config: PlanConfig,
    train_gid: np.ndarray,
    machine: Machine,
    hosts: Hosts,
    num_parameters: int,
    now: HostsPlan,
) -> list[Change]:
    """What other options, and more hosts, would change of a job, each by itself."""
    others: dict[str, tuple[HostParts, PlanConfig]] = {}
    if config.sampler == "neighbor" and not config.replace:
        others["--sampler labor"] = parts, replace(config, sampler="labor")
    if config.feat_dtype == "float32":
        others["--feat-dtype float16"] = parts, replace(config, feat_dtype="float16")
    if config.cache_bytes is None and parts.num_hosts > 1:
        others[f"--cache-ratio {now.knee:g}"] = parts, replace(config, cache_ratio=now.knee)
    if parts.num_hosts > 1:
        other: Topologies = "partitioned" if now.topology == "replicated" else "replicated"
        others[f"--topology {other}"] = parts, replace(config, topology=other)
    more = min(2 * now.num_hosts, parts.parts.num_parts)
    if more > now.num_hosts and more not in config.host_counts:
        others[f"--hosts {more}"] = _deal(parts.parts, more), config
    changes = []
    for option, (dealt, changed) in others.items():
        replayed = _replay(dealt, changed, train_gid)
        samples = machine
        if changed.sampler != config.sampler:
            samples = replace(machine, sample_edge=sampling(dealt, changed, replayed))
        then = _hosts_plan(dealt, changed, replayed, samples, hosts, num_parameters)
        changes.append(
            Change(
                option,
                _factor(then.seconds.epoch, now.seconds.epoch),
                _factor(then.received, now.received),
                _factor(then.wanted, now.wanted),
            )
        )
    return changes


def _factor(then: float, now: float) -> float:
    return then / now if now else 1.0
