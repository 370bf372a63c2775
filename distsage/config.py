"""Typed configuration of every command; the help texts are these docstrings.

Runs on the login host and on every rank; imports nothing heavy. A field `num_parts` is the option
`--num-parts` (`--num_parts` is accepted too) and the YAML key `num_parts`.
"""

import os
import re
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from distsage.errors import UserError

DEFAULT_CACHE_RATIO = 0.2
POSITIONAL = {"positional": True}
"""Metadata of a field that a command takes without an option's name."""
PartMethod = Literal["auto", "kaminpar", "metis", "random"]

NODES = ("all", "train", "val", "test")
"""Sets of nodes that have a name."""

IN_MEMORY = ":memory:"
"""The dataset of a run on a graph that Python code gave it; no file or dataset has this name."""


def parse_fan_out(text: str) -> tuple[int, ...]:
    """Read `"10,25"` as (10, 25): one number per layer, input layer first, -1 for all neighbours.

    Raises:
        UserError: not a comma-separated list of integers that are positive or -1.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or any(number < 1 and number != -1 for number in numbers):
        raise UserError(
            f"--fan-out {text!r} is no list of fan-outs; give one number per layer, such as 10,25 "
            "(-1 takes all neighbours)"
        )
    return numbers


def parse_bytes(text: str) -> int:
    """Read a size such as `4G`, `500M` or `1.5T`; K, M, G and T are powers of 1024.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or float(match.group(1)) == 0:
        raise ValueError(f"{text!r} is no size")
    return int(float(match.group(1)) * 1024 ** ("KMGT".index(match.group(2).upper()) + 1))


def _memory_bytes(memory: str | None) -> int | None:
    """--memory in bytes.

    Raises:
        UserError: it is no size.
    """
    try:
        return None if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise UserError(
            f"--memory {error}; give a number with K, M, G or T behind it, such as 4G"
        ) from error


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise UserError(sentence)


def _check_nodes(nodes: str) -> None:
    _require(
        nodes in NODES or Path(nodes).is_file(),
        f"--nodes is {nodes!r}, which is no file; give one, or {', '.join(NODES[:-1])} or "
        f"{NODES[-1]}",
    )


@dataclass(frozen=True)
class ReadingOptions:
    """How a dataset is read."""

    undirected: bool = False
    """Add the reverse of every edge and drop duplicates."""
    split: str | None = None
    """Draw the masks: fractions of the labelled nodes for train/val/test, such as 0.6/0.2/0.2.
    Replaces masks that the data has."""
    split_index: int = 0
    """Which split to take from data that comes with several."""
    feature_norm: Literal["auto", "none", "row", "standard"] = "auto"
    """row: divide each node's features by their sum; auto: where they are stored sparse (bags of
    words); standard: take the train nodes' mean from each dense column, divide by their deviation;
    the model keeps both for predictions."""
    categorical: str | None = None
    """Columns of a node table, with commas between, that hold categories (integers or texts): each
    of their values becomes a column of zeros and ones. In Parquet, dictionaries of texts are
    categories, too."""
    fill: Literal["mean", "zero"] | None = None
    """What a cell of a node table without a value becomes: the mean of the train nodes, or zero; a
    category cell belongs to no category. Left out, such a cell is a mistake."""
    dataset_root: Path | None = None
    """Where downloaded datasets are kept (default: $DISTSAGE_DATASETS or
    ~/.cache/distsage/datasets)."""

    @property
    def reading(self) -> dict[str, Any]:
        """These options by name, as `distsage.data.datasets.load_graph` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(ReadingOptions)}


@dataclass(frozen=True)
class _Dataset:
    dataset: str
    """ogbn-products, ogbn-arxiv, ogbn-papers100M, reddit, cora, citeseer, pubmed,
    synthetic[:NODES[:DEGREE[:COLUMNS]]], synthetic-onehot[:NODES[:DEGREE]], or a path: an .npz
    file, a DGL graph file, or a directory of node and edge tables."""


@dataclass(frozen=True)
class DatasetOptions(ReadingOptions, _Dataset):
    """Which graph, and how it is read."""

    seed: int = 0
    """Everything drawn at random derives from this number."""


@dataclass(frozen=True)
class PartitionConfig(DatasetOptions):
    """Split a graph into parts that `distsage train` and stock DGL can load."""

    # Both are required; a dataclass that extends one with defaults needs defaults to say so.
    num_parts: int = 0
    """Number of parts: as many as hosts, or more, since a host may hold several (required)."""
    output: Path | None = None
    """Directory to write; it appears only when it is whole (default: parts/DATASET-NUM_PARTS)."""
    part_method: str = "auto"
    """kaminpar and metis keep neighbours together, kaminpar in less time and memory; auto is
    kaminpar, but metis with --balance-train or --balance-edges; random is quick and balanced. Or a
    file with an assignment of your own: .npy, or text with a part's number on each line, one for
    each node, in the order of the data."""
    attempts: int = 1
    """Draw so many assignments, from --seed and the numbers after it, and keep the one whose
    batches need the fewest rows of other parts (kaminpar and random)."""
    balance_train: bool = False
    """Also give each part its share of the train, val and test nodes."""
    balance_edges: bool = False
    """Also give each part its share of the edges."""
    num_trainers_per_host: int = 1
    """Trainers that will share a host: each part's nodes are also grouped by trainer, which makes
    their batches smaller, at a somewhat larger edge cut."""
    fan_out: str = "10,25"
    """Fan-outs that will be trained with, input layer first: with the batch size they decide which
    rows of other parts are ranked as worth a place in the cache."""
    batch_size: int = 1000
    """Seed nodes per trainer and step that will be trained with."""
    memory: str | None = None
    """Memory that may be used, such as 4G; pages of files do not count (default: what the job may
    use)."""
    force: bool = False
    """Go on although there seems to be too little memory or disk."""
    interface: str | None = None
    """Network interface (ib0) or subnet (10.1.0.0/16) that several hosts talk over. Left out, the
    fastest on which every host has an address."""

    @property
    def memory_bytes(self) -> int | None:
        """--memory in bytes."""
        return _memory_bytes(self.memory)

    def __post_init__(self) -> None:
        _ = self.memory_bytes
        _require(
            self.num_parts >= 1,
            f"--num-parts is {self.num_parts}; give at least as many as hosts to train on",
        )
        _require(
            self.num_trainers_per_host >= 1,
            f"--num-trainers-per-host is {self.num_trainers_per_host}; it must be at least 1",
        )
        _require(self.attempts >= 1, f"--attempts is {self.attempts}; it must be at least 1")
        _require(
            self.part_method in get_args(PartMethod) or Path(self.part_method).is_file(),
            f"--part-method is {self.part_method!r}, which is no file; give one, or "
            f"{', '.join(get_args(PartMethod)[:-1])} or {get_args(PartMethod)[-1]}",
        )
        parse_fan_out(self.fan_out)
        _require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; it must be at least 1")

    @property
    def method_or_file(self) -> PartMethod | Path:
        """What `--part-method` names."""
        if self.part_method in get_args(PartMethod):
            return cast(PartMethod, self.part_method)
        return Path(self.part_method)


def job_name() -> str:
    """Slurm's number of this job; without Slurm, that of this process."""
    return os.environ.get("SLURM_JOB_ID", str(os.getpid()))


_RUN_DIR = Path("runs/DATE-JOB")


def _own_run_dir() -> Path:
    """The run's own directory: a new one, or that of the job when Slurm runs it again."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        earlier = sorted(Path("runs").glob(f"????-??-??-??????-{job_name()}"))
        if earlier:
            return earlier[-1]
    return Path("runs", time.strftime(f"%Y-%m-%d-%H%M%S-{job_name()}"))


@dataclass(frozen=True)
class FeatureOptions:
    """How feature rows are kept."""

    feat_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """Type in which feature rows are kept, and sent over the network. Sums stay in float32. int8
    has a scale per column: the largest magnitude of the column becomes 127."""


@dataclass(frozen=True)
class DeviceOption:
    """What computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU where there is one."""


@dataclass(frozen=True)
class TrainingOptions(FeatureOptions, DeviceOption):
    """What `train` and `local` have in common."""

    run_dir: Path = _RUN_DIR
    """Directory for the resolved configuration, records, checkpoint and summary. Left out, one of
    the run's own below runs/, named by date, time and job, as in runs/2026-11-26-131502-4711."""
    num_epochs: int = 20
    """Passes over the train nodes."""
    num_hidden: int = 256
    """Width of the hidden layers."""
    fan_out: str = "10,25"
    """Neighbours sampled per layer, input layer first; as many layers as numbers; -1 takes all."""
    sampler: Literal["neighbor", "labor"] = "neighbor"
    """neighbor: every node picks its neighbours by itself. labor (LABOR-0, arXiv 2210.13339): as
    many picks, but nodes of one layer pick the same neighbours where they can, so that a batch
    needs fewer feature rows."""
    replace: bool = False
    """Pick with replacement: a neighbour may be picked twice (sampler neighbor)."""
    batch_size: int = 1000
    """Seed nodes per trainer and step, at most."""
    lr: float = 0.003
    """Learning rate of Adam."""
    weight_decay: float = 0.0
    """L2 penalty of Adam."""
    dropout: float = 0.5
    """Probability of dropping a hidden unit."""
    eval_every: int = 5
    """Evaluate on all val nodes after every so many epochs, and after the last one."""
    num_workers: int = 1
    """Workers that prepare the next batches meanwhile: background threads of each trainer
    (train), worker processes of the DataLoader (local); 0 prepares them in line."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the rows between layers and of matrix products; bf16 takes about half the time where the
    processor has it. Parameters, gradients and the optimiser's state stay fp32."""
    seed: int = 0
    """Everything drawn at random derives from this number."""
    resume: str = "never"
    """Go on from the newest checkpoint: auto of the run directory, where it has one; a path of that
    run's directory; never begins anew, and moves what is there aside. sbatch/train.sh and
    sbatch/local.sh say auto."""
    checkpoint_minutes: float = 10.0
    """Minutes from one checkpoint to the next; there is one at every evaluation, too."""
    tensorboard: bool = False
    """Also write TensorBoard's event files, to RUN_DIR/tensorboard."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """When the loss is no number: stop, or go back to the last checkpoint and draw other neighbours
    and dropout for the rest of that epoch; stops after three such attempts."""
    input_layer: Literal["auto", "gather", "multiply"] = "auto"
    """Layer 1 averages feature rows and multiplies the means (gather; fills sparse rows in), or
    multiplies each distinct row of a batch and averages the products (multiply); auto takes what is
    less work, by counts."""

    def __post_init__(self) -> None:
        if self.run_dir == _RUN_DIR:
            object.__setattr__(self, "run_dir", _own_run_dir())
        _require(
            self.checkpoint_minutes > 0,
            f"--checkpoint-minutes is {self.checkpoint_minutes}; it must be above 0",
        )
        parse_fan_out(self.fan_out)
        _require(
            not (self.replace and self.sampler == "labor"),
            "--replace goes with --sampler neighbor; labor picks without replacement",
        )
        for name in ("num_epochs", "num_hidden", "batch_size", "eval_every"):
            value = getattr(self, name)
            option = name.replace("_", "-")
            _require(value >= 1, f"--{option} is {value}; it must be at least 1")
        _require(
            self.num_workers >= 0, f"--num-workers is {self.num_workers}; it must be 0 or more"
        )
        _require(self.lr > 0, f"--lr is {self.lr}; it must be above 0")
        _require(self.weight_decay >= 0, f"--weight-decay is {self.weight_decay}; it must be >= 0")
        _require(
            0 <= self.dropout < 1, f"--dropout is {self.dropout}; it must be at least 0 and below 1"
        )

    @property
    def sampling_method(self) -> Literal["uniform", "replacement", "labor"]:
        """As `distsage.sampling.sampler` names it."""
        if self.sampler == "labor":
            return "labor"
        return "replacement" if self.replace else "uniform"

    @property
    def fan_outs(self) -> tuple[int, ...]:
        """One fan-out per layer, input layer first."""
        return parse_fan_out(self.fan_out)


@dataclass(frozen=True)
class HostOptions:
    """Where the ranks of an MPI job are, and how long they may take to come up."""

    ip_config: Path | None = None
    """A list of hosts to hold the job to: one address per line, in the order of the parts. Left
    out, the list comes from Slurm or MPI."""
    interface: str | None = None
    """Network interface (ib0) or subnet (10.1.0.0/16) that the ranks talk over. Left out, the
    fastest on which every host has an address."""
    emulated_hosts: int | None = None
    """Act as so many hosts on this one machine."""
    startup_timeout: float = 120.0
    """Seconds that all ranks together may take to come up; longer where they read or copy parts and
    get on with it."""

    def __post_init__(self) -> None:
        _require(
            self.startup_timeout > 0,
            f"--startup-timeout is {self.startup_timeout}; it must be above 0",
        )
        _require(
            self.emulated_hosts is None or self.emulated_hosts >= 1,
            f"--emulated-hosts is {self.emulated_hosts}; it must be at least 1",
        )

    @property
    def where(self) -> dict[str, Any]:
        """These options by name."""
        return {field.name: getattr(self, field.name) for field in fields(HostOptions)}


@dataclass(frozen=True)
class JobOptions(FeatureOptions, HostOptions):
    """Which parts an MPI job works on, where, and what each host keeps of them."""

    parts: Path | None = None
    """Directory that `distsage partition` wrote (this or --conf-file is required)."""
    conf_file: Path | None = None
    """The parts' DGL configuration (GRAPH.json), as DGL's recipe names it; same as --parts with
    its directory."""
    cache_ratio: float | None = None
    """Fraction of the nodes of other parts whose feature rows each host keeps a copy of, those most
    likely to be sampled (default: 0.2). The host's trainers share it; 0 keeps none."""
    cache_bytes: int | None = None
    """The size of that cache as a number of bytes per host, instead of --cache-ratio."""

    def __post_init__(self) -> None:
        _require(
            (self.parts is None) != (self.conf_file is None),
            "give either --parts DIR or --conf-file DIR/GRAPH.json, as `distsage partition` wrote",
        )
        HostOptions.__post_init__(self)
        _require(
            self.cache_ratio is None or self.cache_bytes is None,
            "give --cache-ratio or --cache-bytes, not both: each is the size of the cache",
        )
        _require(
            self.cache_ratio is None or 0 <= self.cache_ratio <= 1,
            f"--cache-ratio is {self.cache_ratio}; it must be between 0 and 1",
        )
        _require(
            self.cache_bytes is None or self.cache_bytes >= 0,
            f"--cache-bytes is {self.cache_bytes}; it must be 0 or more",
        )

    def cache_rows(self, num_remote: int) -> int:
        """How many of the feature rows of other parts a host caches by the ratio."""
        ratio = DEFAULT_CACHE_RATIO if self.cache_ratio is None else self.cache_ratio
        return int(num_remote * ratio)

    @property
    def parts_dir(self) -> Path:
        """The directory of parts."""
        path = self.parts or self.conf_file
        assert path is not None
        return path


@dataclass(frozen=True)
class PreflightConfig(JobOptions):
    """Check hosts, network and parts as a training job would, and train nothing.

    Start it as you would start training: with mpirun, 2 ranks per pair, and with training's
    --feat-dtype, --cache-ratio or --cache-bytes, which decide how much memory the features take.
    """


@dataclass(frozen=True)
class RankOptions(JobOptions, DeviceOption):
    """What servers and trainers have to know beside the parts and the hosts."""

    stage: Path | None = None
    """Copy each host's part to this directory on its own disk first; removed when it is open."""
    stall_timeout: float = 300.0
    """Seconds that a rank may go without progress before the job is ended; a rank that waits for
    others counts as stuck only if none of them gets on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.stall_timeout > 0,
            f"--stall-timeout is {self.stall_timeout}; it must be above 0",
        )


@dataclass(frozen=True)
class TrainConfig(TrainingOptions, RankOptions):
    """Train on the parts of a graph: one MPI job, even ranks serve, odd ranks train.

    Start it with `mpirun -n 2*PAIRS*HOSTS ... python -m mpi4py -m distsage train`, or through
    sbatch/train.sh.
    """

    topology: Literal["auto", "replicated", "partitioned"] = "auto"
    """replicated: every host samples from the whole topology, memory-mapped. partitioned: from its
    part's, and asks the servers for the rest: slower, the same batches, and less memory. auto:
    replicated if the topology takes less than half of the memory that the job can still take on
    every host."""

    def __post_init__(self) -> None:
        TrainingOptions.__post_init__(self)
        RankOptions.__post_init__(self)


@dataclass(frozen=True)
class LocalConfig(ReadingOptions, TrainingOptions):
    """Train on this machine alone: no servers, no MPI, a PyTorch DataLoader."""

    dataset: str | None = None
    """As for `distsage partition` (this or --parts is required)."""
    parts: Path | None = None
    """Directory that `distsage partition` wrote."""
    ignore_edges: bool = False
    """Train without the graph: what the features alone give, for comparison."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            (self.parts is None) != (self.dataset is None),
            "give either --dataset NAME_OR_PATH or --parts DIR: the graph to train on",
        )
        given = [
            f"--{option.name.replace('_', '-')}"
            for option in fields(ReadingOptions)
            if getattr(self, option.name) != option.default
        ]
        _require(
            self.parts is None or not given,
            f"--parts takes no {', '.join(given)}: its graph was read when it was partitioned; "
            "give it to `distsage partition`, or train on --dataset",
        )


@dataclass(frozen=True, kw_only=True)
class ModelOptions(HostOptions):
    """Which trained model, and the graph that it is applied to."""

    run_dir: Path
    """Run directory of `distsage train` or `distsage local`."""
    parts: Path | None = None
    """Where the parts lie now, if not where they lay in training; or other parts of this graph or
    of one like it."""
    dataset: str | None = None
    """Where the dataset lies now, if not where it lay in training; or another one, to be read in
    the same way."""
    memory: str | None = None
    """Memory that each process may use, such as 4G (default: its share of what the job may use).
    Rows that do not fit lie in files meanwhile, beside the output or in the run directory, whose
    pages do not count."""

    @property
    def memory_bytes(self) -> int | None:
        """--memory in bytes."""
        return _memory_bytes(self.memory)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.memory_bytes
        _require(
            self.parts is None or self.dataset is None,
            "give --parts or --dataset, not both: the graph that the model is applied to",
        )


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ModelOptions):
    """Write what a trained model says of nodes, by original node id.

    Alone it runs on this machine, without MPI. Under an MPI launcher, or through sbatch/predict.sh,
    it is a job like training: every host computes the nodes of its parts, and writes them.
    """

    output: Path
    """Directory to write: a file for each part and _manifest.json, which comes last. Without MPI
    also a file, in the order of the original ids: .csv, .parquet or .npz (ids, values)."""
    what: Literal["probabilities", "logits", "embeddings"] = "probabilities"
    """Class probabilities (columns p0, p1, ...), what they are made of (l0, ...), or what a hidden
    layer says, one vector per node (e0, ...)."""
    layer: int | None = None
    """Of embeddings: the hidden layer, from 1 (default: the last one)."""
    nodes: str = "all"
    """all, train, val or test; or a file of original ids: .npy, or text with one on each line."""
    file_format: Literal["parquet", "npy"] = "parquet"
    """Of a directory's files: tables, or arrays of values beside arrays of ids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.output.suffix in ("", ".csv", ".parquet", ".npz") or self.output.is_dir(),
            f"--output {self.output} ends in none of .csv, .parquet and .npz; name a file that "
            "does, or a directory",
        )
        _check_nodes(self.nodes)
        _require(
            self.layer is None or self.what == "embeddings",
            f"--layer goes with --what embeddings; --what {self.what} is of the last layer",
        )
        _require(
            self.file_format == "parquet" or not self.is_file,
            f"--file-format is for a directory; the ending of --output {self.output} says what is "
            "written",
        )

    @property
    def is_file(self) -> bool:
        """Whether --output is one file, not a directory."""
        return self.output.suffix in (".csv", ".parquet", ".npz")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelOptions):
    """Score a trained model as its run did: all nodes of each mask, from whole neighbourhoods.

    Alone it runs on this machine, without MPI; under an MPI launcher it is a job like training.
    """

    nodes: str | None = None
    """all (every node with a label), train, val or test; or a file of original ids: .npy, or text
    with one on each line (default: train, val and test, one by one)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes is not None:
            _check_nodes(self.nodes)


@dataclass(frozen=True, kw_only=True)
class ModelJobConfig(RankOptions):
    """What the ranks of a job know that applies a model; rank 0 makes it of what was asked."""

    asked: PredictConfig | EvaluateConfig
    """With what the user has asked for."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the manifest will say of predictions."""


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about runs, or about parts; it opens from disk, without a network."""

    runs: tuple[Path, ...] = field(metadata=POSITIONAL)
    """Run directories of `distsage train` or `distsage local`, or directories that `distsage
    partition` wrote; several stand side by side."""
    output: Path
    """File to write: .html."""

    def __post_init__(self) -> None:
        _require(
            self.output.suffix == ".html",
            f"--output {self.output} does not end in .html; a page is written there",
        )


@dataclass(frozen=True)
class RunsConfig:
    """List runs, and the options in which they differ."""

    directory: Path = field(default=Path("runs"), metadata=POSITIONAL)
    """Holds run directories, or directories of them."""


@dataclass(frozen=True)
class WatchConfig:
    """Follow a run from its directory alone, until it is over.

    Ends with status 0 when the run has finished, with 1 when it has stopped, failed or fallen
    silent; where `squeue` can be asked, not before Slurm has done with the run's job, so that a job
    that is queued again is followed, too.
    """

    run: Path = field(metadata=POSITIONAL)
    """Run directory of `distsage train` or `distsage local`."""


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """Say what a job would take, before it is queued: memory, bytes, seconds, and a request.

    Runs on a login host, without MPI: it samples some of the batches that the job would train on,
    counts, and measures this machine for some 20 s. It takes the options of training, and they mean
    what they mean there.
    """

    hosts: str = ""
    """Numbers of hosts to plan for, such as 2,4,8 (required)."""
    pairs_per_host: int = 1
    """Pairs of a server and a trainer on each host."""
    cores: float | None = None
    """Cores of a host for the job (default: those of this machine)."""
    mem: str | None = None
    """Memory of a host for the job, such as 64G."""
    network: str | None = None
    """What a host's network carries each way, such as 25gbit or 100mbit (default: unlimited)."""
    batches: int = 10
    """Batches of each trainer that are sampled."""
    calibrate: Path | None = None
    """A run directory of `distsage train` with this model: its records say how fast the hosts
    are."""
    json: Path | None = None
    """File to write the plan to as well: .json."""
    output: Path | None = None
    """File to write as well: .html, a page."""
    dataset: str | None = None
    """Not planned for: what a job takes follows from its parts. Says how to make them."""

    def __post_init__(self) -> None:
        if self.dataset is not None:
            raise UserError(
                f"a plan needs parts: partition first, with `distsage partition --dataset "
                f"{self.dataset} --num-parts 16`, then plan for any number of hosts up to 16 with "
                "--parts"
            )
        super().__post_init__()
        _ = self.host_counts, self.network_bytes
        try:
            _ = self.mem_bytes
        except ValueError as error:
            raise UserError(
                f"--mem {error}; give a number with K, M, G or T behind it, such as 64G"
            ) from error
        _require(
            self.pairs_per_host >= 1,
            f"--pairs-per-host is {self.pairs_per_host}; it must be at least 1",
        )
        _require(
            self.cores is None or self.cores > 0, f"--cores is {self.cores}; it must be above 0"
        )
        _require(self.batches >= 1, f"--batches is {self.batches}; it must be at least 1")
        for name, suffix in (("json", ".json"), ("output", ".html")):
            path = getattr(self, name)
            _require(
                path is None or path.suffix == suffix, f"--{name} {path} does not end in {suffix}"
            )

    @property
    def host_counts(self) -> tuple[int, ...]:
        """--hosts as numbers, ascending.

        Raises:
            UserError: it is no list of them.
        """
        try:
            counts = sorted({int(word) for word in self.hosts.split(",")})
        except ValueError:
            counts = []
        if not counts or not 1 <= counts[0] <= counts[-1] < 1 << 16:
            raise UserError(
                f"--hosts {self.hosts!r} is no list of numbers of hosts; give one such as 2,4,8"
            )
        return tuple(counts)

    @property
    def mem_bytes(self) -> int | None:
        """--mem in bytes."""
        return None if self.mem is None else parse_bytes(self.mem)

    @property
    def network_bytes(self) -> float | None:
        """--network in bytes a second.

        Raises:
            UserError: it is no such figure.
        """
        if self.network is None:
            return None
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([mg])bit", self.network.strip().lower())
        if match is None or float(match.group(1)) == 0:
            raise UserError(
                f"--network {self.network!r} is no speed of a network; give one such as 25gbit"
            )
        return float(match.group(1)) * {"m": 1e6, "g": 1e9}[match.group(2)] / 8
