"""A plan counts batches exactly on graphs whose batches are known, and says what follows."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distsage.cli import main, parse
from distsage.config import PlanConfig, TrainConfig
from distsage.errors import UserError
from distsage.features.rows import PartRows
from distsage.kernels import threads
from distsage.launch.preflight import memory_need, shared_memory_need
from distsage.model.backend import by_kernels
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.kept_plans import Expectation, find
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from distsage.plan import machine as measuring
from distsage.plan.estimate import Hosts, seconds
from distsage.plan.evaluation import Exchange, exchange
from distsage.plan.machine import Machine, calibrated
from distsage.plan.memory import host_memory
from distsage.plan.replay import CURVE_RATIOS, Replay, replay, train_nodes
from distsage.plan.run import Plan, bound_of, expectations, knee_of, plan, recommend, request
from distsage.report.against_plan import plan_figures
from distsage.report.plan import plan_sections, plan_text
from distsage.sampling.batch import MiniBatch
from distsage.sampling.sampler import Sampler
from distsage.train.records import Run, read_run
from tests.unit.partition_graphs import make_graph, random_directed, ring

SIZE = 80
LEFT, RIGHT = 6, 24


def split(graph, sizes: list[int], folder: Path) -> Path:
    """Parts of consecutive nodes."""
    assignment = folder / "assignment.npy"
    np.save(assignment, np.repeat(np.arange(len(sizes)), sizes))
    partition(graph, len(sizes), folder / "parts", method=assignment, fan_out=[-1], batch_size=4)
    return folder / "parts"


@pytest.fixture(scope="module")
def ring_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The halves of a ring; every fourth node is a train node."""
    return split(ring(SIZE), [SIZE // 2] * 2, tmp_path_factory.mktemp("ring"))


@pytest.fixture(scope="module")
def bipartite_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edges from each left node to each right one; the right ones are trained on."""
    src, dst = np.meshgrid(np.arange(LEFT), LEFT + np.arange(RIGHT))
    v = np.arange(LEFT + RIGHT)
    masks = {"train_mask": v >= LEFT, "val_mask": v < 3, "test_mask": (v >= 3) & (v < LEFT)}
    graph = make_graph(src.ravel(), dst.ravel(), LEFT + RIGHT, **masks)
    return split(graph, [LEFT, RIGHT], tmp_path_factory.mktemp("bipartite"))


def replayed(path: Path, most: int = 1000, **options: object) -> tuple[HostParts, Replay, Exchange]:
    config = PlanConfig(parts=path, hosts="2", **options)
    parts = HostParts.deal(Parts.open(path), ["a", "b"])
    return parts, replay(parts, config, train_nodes(parts), 1, most), exchange(parts, config, 1)


def test_a_ring(ring_parts: Path) -> None:
    """A seed v reaches v-1 to v-4, so that each half needs the last four nodes of the other."""
    _, counted, exchanged = replayed(ring_parts, fan_out="-1,-1", cache_ratio=0.0)
    seeds = SIZE // 8
    assert counted.num_steps == counted.num_sampled == 1
    assert counted.edges.tolist() == [[2 * seeds + 6 * seeds]] * 2
    assert counted.inner_nodes.tolist() == [[3 * seeds]] * 2
    assert counted.input_nodes.tolist() == [[4 * seeds + 1]] * 2
    assert counted.local_rows.tolist() == [[4 * seeds + 1 - 4]] * 2
    assert counted.missed_rows.tolist() == [[[0, 4]], [[4, 0]]]
    assert counted.missed_bytes.tolist() == [[[0, 32]], [[32, 0]]]  # two columns of float32
    # Layer 1 is computed for v-1 and v-2, too: two nodes of the other half, two picks each.
    assert counted.asked_nodes.tolist() == [[[0, 2]], [[2, 0]]]
    assert counted.asked_picks.tolist() == [[[0, 4]], [[4, 0]]]
    assert counted.received_bytes("partitioned").sum() == 2 * (32 + 4 * 2 + 4 * 4)
    assert counted.sent_bytes("partitioned").sum() == 2 * (8 * 4 + 4 * 2)
    assert exchanged.feature_halo.tolist() == exchanged.hidden_halo.tolist() == [2, 2]
    assert exchanged.hidden_rows.tolist() == [[0, 2], [2, 0]]
    assert exchanged.halo_bytes.tolist() == [[0, 16], [16, 0]]


def test_a_complete_bipartite_graph(bipartite_parts: Path) -> None:
    """Every batch of right nodes needs all left ones; the host of those has no train nodes."""
    for ratio, missed in ((0.0, LEFT), (0.5, LEFT // 2), (1.0, 0)):
        options = {"fan_out": "-1", "cache_ratio": ratio, "batch_size": 4}
        _, counted, _ = replayed(bipartite_parts, **options)
        assert counted.num_steps == RIGHT // 4
        assert counted.edges.tolist() == [[0] * counted.num_steps, [4 * LEFT] * counted.num_steps]
        assert (counted.missed_rows[1, :, 0] == missed).all()
        assert (counted.cached_rows[1] == LEFT - missed).all()
        assert (counted.local_rows[1] == 4).all()
        # The curve does not depend on the cache that the job has.
        spared = [int(LEFT * r) for r in CURVE_RATIOS]
        expected = [8 * counted.num_steps * (LEFT - rows) for rows in spared]
        assert counted.curve_bytes.tolist() == expected


def test_a_sample_says_how_far_it_is_off(tmp_path: Path) -> None:
    partition(random_directed(2000, 20000), 2, tmp_path / "parts", fan_out=[3, 3], batch_size=10)
    options = {"fan_out": "3,3", "batch_size": 10, "cache_ratio": 0.1}
    _, whole, _ = replayed(tmp_path / "parts", **options)
    _, some, _ = replayed(tmp_path / "parts", most=8, **options)
    assert some.num_sampled == 8 < whole.num_sampled
    assert whole.error("replicated") == 0 < some.error("replicated") < 0.5
    for count in ("edges", "input_nodes"):
        exact = whole.of_epoch(getattr(whole, count)).sum()
        assert some.of_epoch(getattr(some, count)).sum() == pytest.approx(
            exact, rel=2 * some.error("replicated")
        )


def test_memory_is_what_the_preflight_asks_for(ring_parts: Path) -> None:
    config = PlanConfig(parts=ring_parts, hosts="2")
    parts, counted, exchanged = replayed(ring_parts)
    for host in range(2):
        found = host_memory(parts, host, config, "replicated", counted, exchanged, 0)
        assert sum(found.shared.values()) == shared_memory_need(parts, host, config)
        assert found.taken >= memory_need(parts, host, config, 2)
        assert found.wanted - found.taken == 8 * (SIZE + 1) + 4 * 2 * SIZE
        part = host_memory(parts, host, config, "partitioned", counted, exchanged, 0)
        assert part.files == 8 * (SIZE // 2 + 1) + 4 * SIZE


def test_memory_of_weights_and_evaluations(ring_parts: Path) -> None:
    """One hidden unit: rows are multiplied before they are averaged, those of all the part."""
    config = PlanConfig(parts=ring_parts, hosts="2", num_hidden=1, fan_out="3,3")
    parts, counted, exchanged = replayed(ring_parts, num_hidden=1, fan_out="3,3")
    first, second = (
        host_memory(parts, host, config, "replicated", counted, exchanged, 1000).own
        for host in range(2)
    )
    assert first["weights"] == second["weights"] >= 5 * 4000
    assert first["checkpoint"] >= 4 * 4000
    assert second["checkpoint"] == 0, "trainer 0 writes it"
    nodes, halo, classes = SIZE // 2, 2, parts.manifest.num_classes
    kept = 4 * nodes + 4 * halo
    layers = 4 * (nodes * (1 + classes) + 2 * halo)  # halo rows are sent and received
    assert second["two layers of evaluation"] == kept + layers


NOTHING = Machine("none", 0.0, 0.0, 0.0, 1, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("machine", "network", "limit", "expected"),
    [
        (replace(NOTHING, step_edge=1.0), None, "computing", 80 / 2),
        (replace(NOTHING, sample_edge=1.0), None, "preparing", 80.0),
        (replace(NOTHING, serve_byte=1.0), None, "servers", 32.0),
        (NOTHING, 8.0, "network", 32 / 8),
        # Gradients are added up, after the other host's server was asked.
        (replace(NOTHING, empty_step=1.0), None, "computing", 1.6),
        # A worker takes half a core from two threads, which wait for each other.
        (
            replace(NOTHING, step_edge=1.0, threads=2, sample_edge=1.0),
            None,
            "processor",
            80 + 80 / 2,
        ),
    ],
)
def test_what_limits(
    ring_parts: Path, machine: Machine, network: float | None, limit: str, expected: float
) -> None:
    """Of a host with two cores: a batch has 80 edges and 32 bytes of rows, no parameters."""
    options = {"fan_out": "-1,-1", "cache_ratio": 0.0}
    config = PlanConfig(parts=ring_parts, hosts="2", **options)
    _, counted, exchanged = replayed(ring_parts, **options)
    found = seconds(counted, exchanged, machine, Hosts(2.0, network, 2), config, "replicated", 0)
    assert found.limit == limit
    assert found.epoch == pytest.approx(expected)
    assert found.low <= found.epoch <= found.high


def test_half_a_core_is_shared_by_all(ring_parts: Path) -> None:
    """As where hosts are emulated: what others do at the same time takes its time, too."""
    options = {"fan_out": "-1,-1", "cache_ratio": 0.0}
    config = PlanConfig(parts=ring_parts, hosts="2", **options)
    _, counted, exchanged = replayed(ring_parts, **options)
    machine = replace(NOTHING, step_edge=1.0, sample_edge=1.0, serve_byte=1.0)
    found = seconds(counted, exchanged, machine, Hosts(0.5, None, 1), config, "replicated", 0)
    assert found.limit == "processor"
    assert found.epoch == pytest.approx((80 + 80 + 32) / 0.5)


def test_a_knee_lies_farthest_below_the_line() -> None:
    assert knee_of([(0.0, 100.0), (0.2, 30.0), (0.5, 20.0), (1.0, 0.0)]) == 0.2
    assert knee_of([(0.0, 0.0), (1.0, 0.0)]) == 0.0


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """Of a random graph in four parts, for 1, 2 and 4 hosts; and where its page and JSON are."""
    folder = tmp_path_factory.mktemp("planned")
    partition(random_directed(400, 4000), 4, folder / "parts", fan_out=[3, 3], batch_size=20)
    words = ["--parts", str(folder / "parts"), "--hosts", "1,2,4", "--mem", "8G"]
    words += ["--network", "1gbit", "--fan-out", "3,3", "--batch-size", "20", "--cores", "4"]
    words += ["--json", str(folder / "plan.json"), "--output", str(folder / "plan.html")]
    main(["plan", *words, "--num-hidden", "8"])
    options = {"fan_out": "3,3", "batch_size": 20, "num_hidden": 8, "network": "1gbit"}
    found = plan(PlanConfig(parts=folder / "parts", hosts="4,1,2", cores=4.0, mem="8G", **options))
    return found, folder


def test_text_page_and_json_say_the_same(planned: tuple[Plan, Path]) -> None:
    found, folder = planned
    value = json.loads((folder / "plan.json").read_text())
    assert value["schema"] == 1
    assert [each["num_hosts"] for each in value["hosts"]] == [1, 2, 4]
    for each, stored in zip(found.hosts, value["hosts"], strict=True):
        assert stored["traffic"] == each.traffic
        assert stored["batch"] == each.batch
        assert each.fits
    page = (folder / "plan.html").read_text()
    figures = [figure for section in plan_sections(found) for figure in section.figures]
    for figure in figures:
        assert page.count(f"<figcaption>{figure.title}</figcaption>") == 1
        assert figure.table.rows
        assert all(len(row) == len(figure.table.head) for row in figure.table.rows)
    text = plan_text(found)
    assert f"\n  {found.request}\n" in text
    assert "--sampler labor" in text


def test_a_plan_is_kept_for_the_runs_of_its_kind(planned: tuple[Plan, Path]) -> None:
    found, folder = planned
    config = TrainConfig(parts=folder / "parts", fan_out="3,3", batch_size=20, num_hidden=8)
    expected = expectations(json.loads((folder / "plan.json").read_text()))
    assert set(expected) == {1, 2, 4}
    for num_hosts, each in zip((1, 2, 4), found.hosts, strict=True):
        kept = find(Parts.open(folder / "parts"), config, num_hosts, 1)
        assert kept == expected[num_hosts]
        assert kept.memory_bytes == [host.taken for host in each.memory]
        assert kept.edges == pytest.approx(each.batch["edges"] * each.steps * each.trainers)


def test_what_more_hosts_would_change(planned: tuple[Plan, Path]) -> None:
    """Twice the hosts, where there are parts for them; else parts are what is missing."""
    found, folder = planned
    assert found.recommended is not None
    assert bool(found.bound) == (found.recommended == 4)
    assert bound_of(2, 4) == ""
    assert bound_of(4, 4).startswith("these are 4 parts, so nothing is known of more hosts")
    assert "--num-parts 2," in bound_of(1, 1)
    options = {"fan_out": "3,3", "batch_size": 20, "num_hidden": 8, "batches": 2}
    two = plan(PlanConfig(parts=folder / "parts", hosts="2", **options))
    (more,) = (change for change in two.changes if change.option == "--hosts 4")
    first, second = found.hosts[1].received, found.hosts[2].received
    assert more.received == pytest.approx(second / first, rel=0.3)  # two batches of ten
    assert two.bound == ""


def test_the_request_has_room(planned: tuple[Plan, Path]) -> None:
    found, folder = planned
    assert found.request is not None
    words = found.request.split()
    given = dict(word.split("=") for word in words if "=" in word)
    assert words[0] == "sbatch"
    assert int(given["--nodes"]) == found.recommended
    assert int(given["--ntasks-per-node"]) == 2
    assert int(given["--cpus-per-task"]) == 2
    assert given["--mem"] == "1G"
    assert given["--signal"].startswith("B:USR2@")
    at = words.index("sbatch/train.sh")
    assert words[at + 1 : at + 3] == ["--parts", str(folder / "parts")]
    assert {"--fan-out", "--batch-size", "--num-hidden"} <= set(words[at:])
    assert not {"--hosts", "--mem", "--run-dir"} & set(words[at:])


def test_the_fastest_that_is_not_much_dearer_is_recommended(planned: tuple[Plan, Path]) -> None:
    one = planned[0].hosts[0]

    def hosts(number: int, run_seconds: float, core_hours: float, fits: bool = True) -> object:
        values = {"run_seconds": run_seconds, "core_hours": core_hours, "fits": fits}
        return replace(one, num_hosts=number, **values)

    slow, quick, dear = hosts(1, 100, 10), hosts(2, 60, 12), hosts(4, 50, 20)
    assert recommend([slow, quick, dear])[0] is quick
    assert recommend([replace(slow, fits=False), replace(quick, fits=False), dear])[0] is dear
    nothing, why = recommend([replace(slow, fits=False)])
    assert nothing is None
    assert why.startswith("no number of hosts fits --mem: with 1 a host needs ")


def test_more_memory_is_asked_for_than_is_needed(planned: tuple[Plan, Path]) -> None:
    found, folder = planned
    (one,) = found.hosts[0].memory
    large = replace(found.hosts[0], memory=[replace(one, files=(10 << 30) - one.taken)])
    line = request(large, PlanConfig(parts=folder / "parts", hosts="1"), 4.0)
    assert "--mem=12G" in line.split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hosts", "3"], r"has 2 parts but the job runs on 3 hosts"),
        (["--hosts", "none"], r"--hosts 'none' is no list of numbers of hosts"),
        (["--hosts", "2", "--mem", "lots"], r"--mem 'lots' is no size"),
        (["--hosts", "2", "--network", "fast"], r"--network 'fast' is no speed of a network"),
        (["--hosts", "2", "--cores", "0"], r"--cores is 0"),
        (["--hosts", "2", "--batches", "0"], r"--batches is 0"),
        (["--hosts", "2", "--output", "plan.txt"], r"--output plan.txt does not end in .html"),
        (["--hosts", "2", "--dataset", "cora"], r"distsage partition --dataset cora"),
        (["--hosts", "2", "--calibrate", "nowhere"], r"nowhere is no run directory"),
    ],
)
def test_mistakes(
    options: list[str], message: str, ring_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--parts", str(ring_parts), *options])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said


def a_run(path: Path, **changes: object) -> Run:
    totals = {"sample_seconds": 2.0, "forward_seconds": 3.0, "backward_seconds": 4.0}
    totals |= {"optimizer_seconds": 1.0, "edges": 100}
    epoch = {name: {"total": total, "per_trainer": [total]} for name, total in totals.items()}
    config = {"fan_out": "10,25", "num_hidden": 256, "precision": "fp32", "sampler": "neighbor"}
    about = {"environment": {"threads": "2"}, "trainers": 1, "graph": {"edges": 50}}
    epochs = [{"epoch": 0, **epoch}, {"epoch": 1, **epoch, "eval_seconds": 5.0}]
    config |= {"input_layer": "auto", **changes}
    return Run(path, config, about, epochs, [], {}, {}, None, 0.0)


def test_figures_of_an_earlier_run(ring_parts: Path) -> None:
    config = PlanConfig(parts=ring_parts, hosts="2")
    found = calibrated(NOTHING, a_run(Path("run")), config)
    assert found.sample_edge == 2.0 / 100
    assert (found.step_edge, found.threads) == ((3.0 + 4.0 + 1.0) / 100, 2)
    assert found.evaluate_edge == 2 * 5.0 / 50
    with pytest.raises(UserError, match=r"trained with --num-hidden 64, the plan is for 256"):
        calibrated(NOTHING, a_run(Path("run"), num_hidden=64), config)


RUN = Path(__file__).parents[2] / "page" / "run"  # of two hosts


def test_a_run_that_nobody_planned_says_how_to(tmp_path: Path) -> None:
    """The command is one, of the run's own options and hosts."""
    (figure,) = plan_figures([read_run(RUN)])
    rows = {row[0]: row[1:] for row in figure.table.rows}
    assert all(planned == difference == "" for planned, _, difference in rows.values())
    words = figure.note.partition("python -m distsage plan ")[2].split()
    config = parse(PlanConfig, "plan", words)
    assert (config.host_counts, config.pairs_per_host) == ((2,), 2)
    assert (config.fan_out, config.num_hidden, config.batch_size) == ("5,5", 32, 50)
    assert config.parts == Path("parts/synthetic-4000")


def test_a_run_is_held_against_its_preflight(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    about = json.loads((RUN / "run.json").read_text())
    expected = asdict(Expectation("the preflight", [1 << 30, 3 << 29]))
    (tmp_path / "run" / "run.json").write_text(json.dumps({**about, "expected": expected}))
    (figure,) = plan_figures([read_run(tmp_path / "run")])
    rows = {row[0]: row[1:] for row in figure.table.rows}
    assert rows["memory of a host"][0] == "1.5 GiB"
    assert rows["seconds an epoch"][0] == ""
    assert "planned: the preflight; to plan the next one: python" in figure.note
    (tmp_path / "run" / "run.json").write_text(json.dumps({**about, "expected": {}}))
    with pytest.raises(UserError, match=r"run.json is damaged: expected has other fields"):
        plan_figures([read_run(tmp_path / "run")])


def test_a_local_run_is_not_planned_for(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    about = json.loads((RUN / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**about, "command": "local"}))
    assert plan_figures([read_run(tmp_path / "run")]) == []


def test_a_report_holds_a_plan_against_its_run(planned: tuple[Plan, Path], tmp_path: Path) -> None:
    """One that people have put beside its records."""
    shutil.copytree(RUN, tmp_path / "run")
    shutil.copy(planned[1] / "plan.json", tmp_path / "run")
    main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")])
    (figure,) = plan_figures([read_run(tmp_path / "run")])
    assert f"<figcaption>{figure.title}</figcaption>" in (tmp_path / "page.html").read_text()
    rows = {row[0]: row for row in figure.table.rows}
    two = planned[0].hosts[1]
    edges = two.batch["edges"] * two.steps * two.trainers
    records = [json.loads(line) for line in (RUN / "epochs.jsonl").read_text().splitlines()][1:]
    mean = sum(record["edges"]["total"] for record in records) / len(records)
    assert rows["edges, an epoch"][1:] == [
        f"{edges:,.0f}",
        f"{mean:,.0f}",
        f"{100 * (mean / edges - 1):+.0f} %",
    ]
    assert set(rows) >= {"seconds an epoch", "memory of a host", "an evaluation"}


@pytest.mark.parametrize("text", ["{}", '{"schema": 1, "hosts": []}', '{"schema": 9}'])
def test_a_strange_plan_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    (tmp_path / "run" / "plan.json").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")])
    assert ended.value.code == 2
    assert "is no plan for 2 hosts" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("way", ["gather", "multiply"])
def test_it_is_measured_as_the_job_computes(
    way: str, ring_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In as many threads, and inputs are numbered where the job needs that."""
    numbered, budgets = [], []

    class Spy(Sampler):
        def sample(self, *arguments: Any) -> MiniBatch:
            if len(arguments[0]) > 1:  # not the empty step, whose stand-ins are numbered
                numbered.append(self.number_inputs)
            budgets.append(threads.budget())
            return super().sample(*arguments)

    monkeypatch.setattr(measuring, "Sampler", Spy)
    monkeypatch.setattr(measuring, "usable_cores", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    options = {"fan_out": "3,3", "batch_size": 4, "num_hidden": 8, "input_layer": way}
    parts, counted, _ = replayed(ring_parts, most=2, **options)
    config = PlanConfig(parts=ring_parts, hosts="2", **options)
    for num_threads, used in ((1, 1), (2, 2), (64, 3)):
        found = measuring.measure(parts, config, counted, num_threads)
        assert set(budgets) == {used}
        assert found.step_edge > 0
        budgets.clear()
    assert threads.budget() == 7
    rows = PartRows(
        parts.offsets, 0, torch.empty(0, 2), np.empty(0, int), torch.empty(0, 2), torch.empty,
        multiplies=way == "multiply", in_place=by_kernels(torch.device("cpu")),
    )  # fmt: skip
    assert set(numbered) == {rows.numbers_inputs}
