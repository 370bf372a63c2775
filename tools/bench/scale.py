"""What reading, partitioning, training and prediction take as a graph grows. Writes docs/scale.md.

`python -m tools.bench.scale` runs each step at three sizes, each time in a process of its own,
draws a line through what it took, and follows the lines to graphs that are not here. The graphs
have as many edges and features a node as ogbn-papers100M. Seconds are those of processors and
memory is without pages of files, so that other work on the machine changes little.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distsage.data.datasets import load_graph
from distsage.files import atomic_file
from distsage.limits import human_bytes
from distsage.partitioning.assignment import assigner, choose
from distsage.partitioning.run import partition
from distsage.partitioning.stages import Stages

from ..mpirun import launcher
from .processes import measured

SIZES = (200_000, 400_000, 800_000)
DEGREE, COLUMNS = 29, 128
NUM_PARTS, NUM_HOSTS = 4, 2
STEPS = ("read", "assign", "write")
_HIDDEN, _CACHE = 256, 0.2


@dataclass(frozen=True)
class Graph:
    """A graph's size, and that of its parts.

    Attributes:
        nodes: N.
        edges: E, directed, as they are trained on.
        features: F.
        train: T, train nodes.
        parts: P.
    """

    nodes: int
    edges: int
    features: int
    train: int
    parts: int = NUM_PARTS


# The first as its authors publish it (Hu et al., arXiv 2005.00687), each edge in both directions.
TARGETS = {
    "ogbn-papers100M": Graph(111_059_956, 3_231_371_744, 128, 1_207_179, 256),
    "ten times its size": Graph(1_110_599_560, 32_313_717_440, 128, 12_071_790, 256),
}
HOSTS = (4, 16, 64, 256)


@dataclass(frozen=True)
class Law:
    """Something that a step takes: a line in one number of the graph.

    Attributes:
        what: for the table.
        unit: "s" or "B".
        of: the number's name in the table.
        number: it.
    """

    what: str
    unit: str
    of: str
    number: Callable[[Graph], float]


LAWS = {
    "read cpu": Law("read: CPU", "s", "E", lambda g: g.edges),
    "read memory": Law("read: memory of one host", "B", "E", lambda g: g.edges),
    "read disk": Law("read: disk, until the end", "B", "E", lambda g: g.edges),
    "assign cpu": Law("assign: CPU of one host", "s", "E", lambda g: g.edges),
    "assign memory": Law("assign: memory of one host", "B", "E", lambda g: g.edges),
    "write cpu": Law("write and rank: CPU of all hosts", "s", "E", lambda g: g.edges),
    "write memory": Law("write and rank: memory of each host", "B", "N", lambda g: g.nodes),
    "write disk": Law("the parts: disk", "B", "(8 N + 21 E + 4 N F)", lambda g: _stored(g)),
    "train cpu": Law("train: CPU of all hosts, an epoch", "s", "T", lambda g: g.train),
    "train traffic": Law("train: received by all hosts, an epoch", "B", "T F", lambda g: _rows(g)),
    "train own memory": Law("train: memory of a pair, rows apart", "B", "N", lambda g: g.nodes),
    "predict cpu": Law("predict: CPU, one host", "s", "E", lambda g: g.edges),
    "predict memory": Law(
        "predict: memory, one host", "B", "N (F + 256)", lambda g: g.nodes * (g.features + _HIDDEN)
    ),
}


def _stored(graph: Graph) -> float:
    return 8 * graph.nodes + 21 * graph.edges + 4 * graph.nodes * graph.features


def _rows(graph: Graph) -> float:
    return graph.train * graph.features


@dataclass(frozen=True)
class Line:
    """`base + slope * number`, and the largest error of it where it was measured, relative."""

    base: float
    slope: float
    error: float

    @classmethod
    def through(cls, numbers: Iterable[float], values: Iterable[float]) -> "Line":
        """The line with the least squares of relative errors, of no negative base or slope."""
        x, y = np.array(list(numbers), float), np.array(list(values), float)
        weighted = np.stack((np.ones_like(x), x), 1) / y[:, None]
        (base, slope), *_ = np.linalg.lstsq(weighted, np.ones_like(y), rcond=None)
        if base < 0:  # nothing costs less than nothing: through the origin
            base, slope = 0.0, float((x / y).sum() / (x / y @ (x / y)))
        if slope < 0:  # nor does anything shrink as the graph grows
            base, slope = float((1 / y).sum() / (1 / y @ (1 / y))), 0.0
        return cls(float(base), float(slope), float(np.abs((base + slope * x) / y - 1).max()))

    def at(self, number: float) -> float:
        """Its value."""
        return self.base + self.slope * number


def do(step: str, place: Path) -> None:
    """One step of partitioning, in the process that is measured."""
    stages = Stages(place / "stages")
    if step == "read":
        stages.folder.mkdir()
        stages.graph(lambda scratch: load_graph(str(place / "graph.npz"), scratch=scratch))
    elif step == "assign":
        graph = stages.saved_graph()
        scratch = stages.fresh("scratch")
        with assigner(graph, NUM_PARTS, choose("kaminpar"), scratch=scratch) as assign:
            np.save(place / "assignment.npy", assign(0))
    else:
        graph = stages.saved_graph()
        partition(graph, NUM_PARTS, place / "parts", method=place / "assignment.npy")


def measure(nodes: int, place: Path) -> tuple[Graph, dict[str, float]]:
    """Take a graph of so many nodes through all steps; what each took, by the names of `LAWS`."""
    made = load_graph(f"synthetic:{nodes}:{DEGREE}:{COLUMNS}")
    topology = made.topology
    shuffled = np.random.default_rng(0).permutation(topology.num_edges)  # as data may come
    np.savez(
        place / "graph.npz",
        num_nodes=made.num_nodes,
        edge_src=topology.indices[shuffled],
        edge_dst=np.repeat(np.arange(made.num_nodes), np.diff(topology.indptr))[shuffled],
        features=made.features,
        labels=made.labels,
        train_mask=made.train_mask,
        val_mask=made.val_mask,
        test_mask=made.test_mask,
    )
    graph = Graph(made.num_nodes, topology.num_edges, COLUMNS, int(made.train_mask.sum()))
    took: dict[str, float] = {}
    for step in STEPS:
        command = [sys.executable, "-m", "tools.bench.scale", "--step", step, "--place", str(place)]
        took[f"{step} cpu"], took[f"{step} memory"] = measured(command)
        if step == "read":
            took["read disk"] = _size(place / "stages")
    took["write disk"] = _size(place / "parts")
    run = place / "run"
    command, environment = launcher(2 * NUM_HOSTS)
    words = ["--parts", place / "parts", "--run-dir", run, "--emulated-hosts", NUM_HOSTS]
    words += ["--num-epochs", 2, "--fan-out", "10,25", "--num-hidden", _HIDDEN]
    words += ["--cache-ratio", _CACHE, "--eval-every", 2]
    command += [sys.executable, "-m", "mpi4py", "-m", "distsage", "train", *map(str, words)]
    measured(command, environment | {"OMP_NUM_THREADS": "1"})
    epoch = json.loads((run / "epochs.jsonl").read_text().splitlines()[-1])
    hosts = epoch["hosts"]
    took["train cpu"] = sum(one["trainer_cpu_seconds"] + one["server_cpu_seconds"] for one in hosts)
    took["train traffic"] = sum(sum(one["received_bytes_from"]) for one in hosts)
    took["train own memory"] = max(one["trainer_bytes"] + one["server_bytes"] for one in hosts)
    command = [sys.executable, "-m", "distsage", "predict", "--run-dir", str(run)]
    command += ["--output", str(place / "predicted.npz")]
    took["predict cpu"], took["predict memory"] = measured(command)
    return graph, took


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def fitted(found: list[tuple[Graph, dict[str, float]]]) -> dict[str, Line]:
    """A line for each of `LAWS`."""
    return {
        name: Line.through(
            (law.number(graph) for graph, _ in found), (took[name] for _, took in found)
        )
        for name, law in LAWS.items()
    }


def _amount(value: float, unit: str) -> str:
    if unit == "B":
        return human_bytes(round(value))
    return f"{value:.1f} s" if value < 3600 else f"{value / 3600:.1f} h"


def _seconds(value: float) -> str:
    return f"{1e6 * value:.3g} us" if value > 1e-6 else f"{1e9 * value:.3g} ns"


def _constants(found: list[tuple[Graph, dict[str, float]]], lines: Mapping[str, Line]) -> str:
    sizes = " | ".join(f"{graph.nodes:,} nodes" for graph, _ in found)
    rows = [f"| | {sizes} | line | largest error |", f"|---|{'---:|' * len(found)}---|---:|"]
    for name, law in LAWS.items():
        line = lines[name]
        cells = " | ".join(_amount(took[name], law.unit) for _, took in found)
        slope = f"{line.slope:.3g} B" if law.unit == "B" else _seconds(line.slope)
        formula = f"{_amount(line.base, law.unit)} + {slope} x {law.of}"
        rows.append(f"| {law.what} | {cells} | {formula} | {100 * line.error:.0f} % |")
    return "\n".join(rows)


def _kept_rows(graph: Graph, hosts: int) -> float:
    """Rows that a host keeps: its own, and its cache."""
    return graph.nodes / hosts * (1 + _CACHE * (hosts - 1))


def _on_hosts(graph: Graph, lines: Mapping[str, Line]) -> str:
    def at(name: str) -> float:
        return lines[name].at(LAWS[name].number(graph))

    topology = 8 * graph.nodes + 4 * graph.edges
    rows = [
        "| hosts | writing: CPU of each | rows in shared memory of each | topology, whole | and "
        "sampled by owners | memory of a pair | received by each, an epoch | CPU of each, an epoch "
        "| predict: memory of each, if owners compute | numbers of rows that int32 has to hold |",
        "|---:|" + "---:|" * 9,
    ]
    for hosts in HOSTS:
        kept = _kept_rows(graph, hosts)
        owned = 4 * graph.nodes / hosts * (graph.features + 2 * _HIDDEN)
        cells = [
            _amount(at("write cpu") / hosts, "s"),
            _amount(4 * kept * graph.features, "B"),
            _amount(topology, "B"),
            _amount(topology / hosts, "B"),
            f"{_amount(lines['train own memory'].at(NUM_HOSTS * graph.nodes / hosts), 'B')} to "
            f"{_amount(at('train own memory'), 'B')}",
            _amount(at("train traffic") / hosts, "B"),
            _amount(at("train cpu") / hosts, "s"),
            _amount(owned, "B"),
            f"{100 * (graph.nodes + kept) / (2**31 - 1):.0f} %",
        ]
        rows.append(f"| {hosts} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _one_host(lines: Mapping[str, Line]) -> str:
    names = [name for name in LAWS if not name.startswith("train")]
    rows = [f"| | {' | '.join(TARGETS)} |", "|---|---:|---:|"]
    for name in names:
        law = LAWS[name]
        cells = (_amount(lines[name].at(law.number(g)), law.unit) for g in TARGETS.values())
        rows.append(f"| {law.what} | {' | '.join(cells)} |")
    compressed = (_amount(7 * g.edges + 60 * g.nodes, "B") for g in TARGETS.values())
    rows.append(f"| assign: memory with `terapart`, derived | {' | '.join(compressed)} |")
    files = (_amount(8 * (g.nodes + 1) + 8 * g.edges, "B") for g in TARGETS.values())
    rows.append(f"| the partitioner's file: disk, derived | {' | '.join(files)} |")
    return "\n".join(rows)


def page_of(found: list[tuple[Graph, dict[str, float]]]) -> str:
    """docs/scale.md, from what `measure` found."""
    lines = fitted(found)
    template = Path(__file__).with_name("scale.md").read_text()
    return template.format(
        date=time.strftime("%Y-%m-%d"),
        sizes=", ".join(f"{graph.nodes:,}" for graph, _ in found),
        edges=f"{found[-1][0].edges / found[-1][0].nodes:.1f}",
        features=COLUMNS,
        parts=NUM_PARTS,
        hosts=NUM_HOSTS,
        cache=_CACHE,
        constants=_constants(found, lines),
        one_host=_one_host(lines),
        **{
            f"target_{index}": _on_hosts(graph, lines)
            for index, graph in enumerate(TARGETS.values())
        },
    )


def main() -> None:
    """Measure, fit, write the page; or do one step, for the process that measures."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.scale", description=__doc__)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("docs/scale.md"))
    args = parser.parse_args()
    if args.step:
        do(args.step, args.place)
        return
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for nodes in SIZES:
            place = Path(directory) / str(nodes)
            place.mkdir()
            found.append(measure(nodes, place))
            print(found[-1], flush=True)
    with atomic_file(args.output, "w") as stream:
        stream.write(page_of(found))


if __name__ == "__main__":
    main()
