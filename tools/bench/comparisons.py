"""What is compared: graphs, networks, programs. One table each."""

import os
from dataclasses import dataclass, replace

from .runs import Workload


@dataclass(frozen=True)
class Graph:
    """A graph to train on.

    Attributes:
        dataset: as `distsage partition --dataset` takes it.
        what: in words.
        partition_options: of `distsage partition`.
    """

    dataset: str
    what: str
    partition_options: list[str]

    def is_there(self) -> bool:
        """Whether the data can be had: synthetic, or a file that exists."""
        return self.dataset.startswith("synthetic") or os.path.exists(self.dataset)


@dataclass(frozen=True)
class Program:
    """One of the programs that take turns.

    Attributes:
        name: in the tables.
        options: of distsage, or of the baseline.
        is_baseline: plain DGL.
    """

    name: str
    options: list[str]
    is_baseline: bool = False


@dataclass(frozen=True)
class Comparison:
    """Programs on the emulated cluster.

    Attributes:
        name: in the tables and on the command line.
        graph: to train on.
        rate: bandwidth of each host, as tc writes it; None: unlimited.
        workload: of every run.
        programs: that take turns; the first one is the baseline.
        rounds: how often each program runs.
    """

    name: str
    graph: Graph
    rate: str | None
    workload: Workload
    programs: list[Program]
    rounds: int


@dataclass(frozen=True)
class LocalComparison:
    """Programs on this machine alone; fields as of Comparison."""

    name: str
    graph: Graph
    workload: Workload
    programs: list[Program]
    rounds: int


def _real(name: str, what: str) -> Graph:
    return Graph(os.path.join(os.environ.get("DISTSAGE_DATA", ""), f"{name}.npz"), what, [])


SYNTHETIC = Graph("synthetic:400000:42", "400k nodes, 17M directed edges, 100 features", [])
PRODUCTS = Graph(
    "synthetic:2400000:52", "the size of ogbn-products: 2.4M nodes, 124M directed edges", []
)
ONEHOT = Graph(
    "synthetic-onehot",
    "15k nodes, 1.3M directed edges, 4,687 columns of one-hot attributes, 4.7 ones in a row",
    [],
)
WIDE = Graph(
    "synthetic:100000:30:768", "100k nodes, 2.5M directed edges, 768 features, as of text", []
)
TOLOKERS = _real("tolokers", "tolokers: 12k nodes, 1.0M directed edges, 10 features")
COAUTHOR = _real("coauthor_cs", "coauthor_cs: 18k nodes, 164k directed edges, 6,805 features")

BASELINE = Program("DGL", [], is_baseline=True)

# One technique each, on top of the first.
_PLAIN = {
    "--num-workers": "0",
    "--cache-ratio": "0",
    "--feat-dtype": "float32",
    "--sampler": "neighbor",
    "--precision": "fp32",
}


def _distsage(name: str, **changed: str) -> Program:
    options = _PLAIN | {f"--{key.replace('_', '-')}": value for key, value in changed.items()}
    return Program(name, [word for pair in options.items() for word in pair])


PLAIN = _distsage("distsage, plain")
CACHED = _distsage("+ cache 0.2", cache_ratio="0.2")
# The same maths as the baseline: exact sampler, float32 everywhere.
FP32 = _distsage("distsage, fp32", num_workers="1", cache_ratio="0.2")
ALL = _distsage(
    "distsage, all",
    num_workers="1",
    cache_ratio="0.5",
    feat_dtype="float16",
    sampler="labor",
    precision="bf16",
)
# The same, but for the bytes that features take.
FLOAT16 = _distsage(
    "distsage, float16 features", num_workers="1", cache_ratio="0.2", feat_dtype="float16"
)
INT8 = _distsage("distsage, int8 features", num_workers="1", cache_ratio="0.2", feat_dtype="int8")
# Where the network is not the limit, LABOR's reading of all neighbours costs more than it saves.
NO_LABOR = _distsage(
    "distsage, all but LABOR",
    num_workers="1",
    cache_ratio="0.5",
    feat_dtype="float16",
    precision="bf16",
)
TECHNIQUES = [
    PLAIN,
    _distsage("+ a worker", num_workers="1"),
    CACHED,
    _distsage("+ float16 features", feat_dtype="float16"),
    _distsage("+ LABOR", sampler="labor"),
    _distsage("+ bf16", precision="bf16"),
    FP32,
    NO_LABOR,
    ALL,
]


def _local(name: str, num_workers: int, precision: str, feat_dtype: str) -> Program:
    return Program(
        name,
        [
            *("--num-workers", str(num_workers), "--precision", precision),
            *("--feat-dtype", feat_dtype),
        ],
    )


LOCAL_PROGRAMS = [
    Program("DGL, in line", ["--num-workers", "0"], is_baseline=True),
    Program("DGL, a worker", ["--num-workers", "1"], is_baseline=True),
    _local("distsage, fp32, in line", 0, "fp32", "float32"),
    _local("distsage, fp32, a worker", 1, "fp32", "float32"),
    _local("distsage, bf16, in line", 0, "bf16", "bfloat16"),
    _local("distsage, bf16, a worker", 1, "bf16", "bfloat16"),
]


def _other_input_layer(program: Program, way: str, name: str) -> Program:
    return replace(
        program,
        name=f"{program.name}, {name}",
        options=[*program.options, "--input-layer", way],
    )


_IN_LINE = LOCAL_PROGRAMS[0], LOCAL_PROGRAMS[2]
# Beside the way that counts choose, the other one.
ONEHOT_PROGRAMS = [*_IN_LINE, _other_input_layer(LOCAL_PROGRAMS[2], "gather", "filled in")]
WIDE_PROGRAMS = [*_IN_LINE, _other_input_layer(LOCAL_PROGRAMS[2], "multiply", "multiplied first")]

QUICK: list[Comparison | LocalComparison] = [
    Comparison("4-hosts", SYNTHETIC, None, Workload("10,25", 2), [BASELINE, FP32, ALL], 2),
    # Both sides with a worker, as `make local` runs.
    LocalComparison("local", SYNTHETIC, Workload("10,25", 2), LOCAL_PROGRAMS[1::2], 2),
]

_SLOW = 3600.0
FULL: list[Comparison | LocalComparison] = [
    LocalComparison("local", SYNTHETIC, Workload("10,25", 3), LOCAL_PROGRAMS, 2),
    LocalComparison("local-onehot", ONEHOT, Workload("10,25", 3), ONEHOT_PROGRAMS, 2),
    LocalComparison("local-wide", WIDE, Workload("10,25", 3), WIDE_PROGRAMS, 2),
    Comparison("4-hosts", SYNTHETIC, None, Workload("10,25", 3), [BASELINE, *TECHNIQUES], 2),
    Comparison(
        "4-hosts-wide",
        WIDE,
        None,
        Workload("10,25", 3),
        [BASELINE, FP32, FLOAT16, INT8],
        2,
    ),
    Comparison(
        "4-hosts-1gbit",
        SYNTHETIC,
        "1gbit",
        Workload("10,25", 3),
        [BASELINE, PLAIN, FP32, NO_LABOR, ALL],
        2,
    ),
    Comparison(
        "4-hosts-100mbit",
        SYNTHETIC,
        "100mbit",
        Workload("10,25", 5, timeout=_SLOW),
        [BASELINE, PLAIN, FP32, NO_LABOR, ALL],
        1,
    ),
    *(
        Comparison(
            name, SYNTHETIC, rate, Workload("15,10,5", 3, timeout=_SLOW), [BASELINE, FP32, ALL], 2
        )
        for name, rate in (("3-layers", None), ("3-layers-1gbit", "1gbit"))
    ),
    *(
        Comparison(
            name, PRODUCTS, rate, Workload("10,25", 5, timeout=_SLOW), [BASELINE, FP32, ALL], 1
        )
        for name, rate in (("large", None), ("large-1gbit", "1gbit"))
    ),
    *(
        Comparison(name, graph, None, Workload("10,25", 18), [BASELINE, FP32, ALL], 2)
        for name, graph in (("tolokers", TOLOKERS), ("coauthor_cs", COAUTHOR))
    ),
]
