"""What `partition` writes: every row and edge at its place, for stock DGL and for our readers."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import dgl
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.partitioning import run, shares
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from tests.unit.fuzzing import examples
from tests.unit.partition_graphs import check_parts, communities, make_graph, random_directed, ring


def variants() -> dict[str, Graph]:
    rng = np.random.default_rng(1)
    n = 60
    directed = random_directed(n, 400)
    first_half = np.arange(n) < 3
    return {
        "ring": ring(24),
        "directed": directed,
        "string ids": replace(directed, original_ids=np.array([f"gene-{v * 7}" for v in range(n)])),
        "object ids": replace(
            directed, original_ids=np.array([f"g{v * 7}" for v in range(n)], dtype=object)
        ),
        "integer ids": replace(directed, original_ids=np.arange(n) * 10 + 5),
        "multilabel": replace(
            directed, labels=rng.integers(0, 2, (n, 5)).astype(np.float32), num_classes=5
        ),
        "sparse": replace(
            directed, features=scipy.sparse.random(n, 30, 0.1, "csr", np.float32, random_state=2)
        ),
        "few train nodes": replace(
            directed,
            train_mask=first_half,
            val_mask=~first_half,
            test_mask=np.zeros(n, bool),
        ),
        "unlabelled": replace(directed, labels=np.where(directed.test_mask, -1, directed.labels)),
        "no edges": make_graph(np.empty(0, int), np.empty(0, int), 10),
    }


@pytest.mark.parametrize("num_parts", [1, 2, 4])
@pytest.mark.parametrize("variant", variants())
def test_every_row_and_edge_reaches_its_part(
    variant: str, num_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = variants()[variant]
    report = partition(graph, num_parts, tmp_path / "parts", method="random")
    parts = check_parts(graph, tmp_path / "parts", monkeypatch)
    assert parts.num_parts == num_parts
    assert json.loads((tmp_path / "parts" / "quality.json").read_text()) == json.loads(
        json.dumps(report.to_json())
    )
    assert {path.name for path in tmp_path.iterdir()} == {"parts"}


def test_writing_imports_neither_dgl_nor_torch(tmp_path: Path) -> None:
    """They take longer than writing a small graph, and more memory."""
    words = ["--dataset", "synthetic:300:5", "--num-parts", "2", "--part-method", "random"]
    program = (
        "import sys; from distsage.cli import main; main(sys.argv[1:]); "
        "print({'dgl', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "partition", *words, "--output", str(tmp_path / "parts")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == "set()"


def test_the_ring_by_metis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ring(40)
    report = partition(graph, 4, tmp_path / "parts", balance_train=True, balance_edges=True)
    assert report.method.startswith("METIS, since --balance-train --balance-edges is more")
    parts = check_parts(graph, tmp_path / "parts", monkeypatch)
    # Four arcs cut 3 edges each at their start (v-1 -> v, v-2 -> v, v-1 -> v+1); METIS may do
    # worse, but random parts cut 60 of the 80.
    assert 12 <= report.edge_cut <= 30
    assert report.edge_cut == parts.manifest.edge_cut
    # Feature of v is v, so each part's features are its original ids.
    for part, summary in enumerate(parts.manifest.parts):
        own = parts.original_ids()[slice(*summary.nodes)]
        np.testing.assert_array_equal(parts.load_part(part)["features"][:, 0], own)
        assert (np.diff(own) > 0).all()


def test_an_assignment_of_ones_own_through_and_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = replace(random_directed(60, 400), original_ids=np.array([f"g{v}" for v in range(60)]))
    own = np.random.default_rng(3).integers(0, 3, 60)
    (tmp_path / "own.txt").write_text("".join(f"{part}\n" for part in own))
    report = partition(graph, 3, tmp_path / "parts", method=tmp_path / "own.txt")
    parts = check_parts(graph, tmp_path / "parts", monkeypatch)
    owner = np.repeat(np.arange(3), np.diff(parts.offsets))
    position = [int(name[1:]) for name in parts.original_ids().tolist()]
    np.testing.assert_array_equal(own[position], owner)
    assert parts.manifest.configuration["method"] == "file"
    assert report.method == f"the assignment in {tmp_path / 'own.txt'}"


@pytest.mark.parametrize(
    ("options", "method"),
    [({}, "kaminpar"), ({"balance_edges": True}, "metis"), ({"method": "random"}, "random")],
)
def test_who_assigned_is_recorded_and_dgl_knows_the_word(
    options: dict, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = communities(2, 30)
    report = partition(graph, 2, tmp_path / "parts", **options)
    manifest = check_parts(graph, tmp_path / "parts", monkeypatch).manifest
    assert manifest.configuration["method"] == method
    assert manifest.configuration["method_reason"] == report.method
    assert ("kaminpar" in manifest.versions) == (method == "kaminpar")
    config = json.loads((tmp_path / "parts" / "small.json").read_text())
    assert config["part_method"] == ("random" if method == "random" else "metis")


def test_a_part_without_train_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 40
    one = np.arange(n) == 7
    graph = random_directed(n, 300, train_mask=one, val_mask=~one, test_mask=np.zeros(n, bool))
    partition(graph, 4, tmp_path / "parts", method="random")
    parts = check_parts(graph, tmp_path / "parts", monkeypatch)
    counts = [part.train_nodes for part in parts.manifest.parts]
    assert sorted(counts) == [0, 0, 0, 1]
    for part, count in enumerate(counts):
        assert (len(parts.cache_ranking(part)) > 0) == (count > 0)


def test_as_many_parts_as_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ring(6)
    report = partition(graph, 6, tmp_path / "parts", method="random")
    check_parts(graph, tmp_path / "parts", monkeypatch)
    assert report.edge_cut == 12
    assert report.edge_cut_percent == 100


def test_files_as_dgl_writes_them(tmp_path: Path) -> None:
    """Keys, names and dtypes beside those of `dgl.distributed.partition_graph`."""
    graph = communities(4, 20)
    partition(graph, 2, tmp_path / "ours", method="random", num_trainers_per_host=2)
    src = torch.from_numpy(graph.topology.indices.astype(np.int64))
    dst = torch.repeat_interleave(
        torch.arange(graph.num_nodes), torch.from_numpy(np.diff(graph.topology.indptr))
    )
    theirs = dgl.graph((src, dst), num_nodes=graph.num_nodes)
    for name in ("features", "labels", "train_mask", "val_mask", "test_mask"):
        theirs.ndata[name] = torch.from_numpy(getattr(graph, name))
    dgl.distributed.partition_graph(theirs, graph.name, 2, str(tmp_path / "theirs"))
    configs = [
        json.loads((tmp_path / who / "small.json").read_text()) for who in ("ours", "theirs")
    ]
    varying = ("node_map", "edge_map", "part_method")
    for config in configs:
        for key in varying:
            config[key] = type(config[key])
    assert list(configs[0].items()) == list(configs[1].items())

    for part in range(2):
        loaded = [
            dgl.distributed.load_partition(str(tmp_path / who / "small.json"), part)[:2]
            for who in ("ours", "theirs")
        ]
        (our_graph, our_data), (their_graph, their_data) = loaded
        assert our_graph.idtype == their_graph.idtype

        def schemes(frame: dict) -> dict:
            return {key: (rows.dtype, rows.shape[1:]) for key, rows in frame.items()}

        assert schemes(our_graph.ndata) == schemes(their_graph.ndata)
        assert schemes(our_graph.edata) == schemes(their_graph.edata)
        assert schemes(our_data) == schemes(their_data)


def test_trainers_of_a_host_share_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = communities(8, 30)
    partition(graph, 2, tmp_path / "parts", num_trainers_per_host=2)
    parts = check_parts(graph, tmp_path / "parts", monkeypatch)
    assert parts.manifest.num_trainers_per_host == 2
    # Of the edges inside a part, few join the halves that its two trainers take.
    topology = parts.topology()
    source, target = topology.indices, np.repeat(np.arange(240), np.diff(topology.indptr))
    for low, high in pairwise(parts.offsets):
        middle = (low + high) // 2
        inside = np.all([source >= low, source < high, target >= low, target < high], axis=0)
        assert np.mean((source < middle)[inside] != (target < middle)[inside]) < 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_parts": 0}, "0 parts"),
        ({"num_parts": -2}, "-2 parts"),
        ({"num_parts": 25}, "24 nodes, too few for 25 parts"),
        ({"num_parts": 9, "num_trainers_per_host": 3}, "too few for 27 parts"),
        ({"num_trainers_per_host": 0}, "0 trainers per host"),
        ({"balance_train": True, "num_parts": 7, "method": "metis"}, "6 train nodes"),
    ],
)
def test_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        partition(
            ring(24), **({"num_parts": 2, "output": tmp_path / "p", "method": "random"} | arguments)
        )
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "parts"
    output.mkdir()
    (output / "thesis.tex").write_text("all my work")
    with pytest.raises(UserError, match="exists already"):
        partition(ring(24), 2, output, method="random")
    assert (output / "thesis.tex").read_text() == "all my work"


@pytest.mark.parametrize("name", ["manifest", "quality"])
def test_a_name_that_the_directory_uses_itself(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be named"):
        partition(ring(24, name=name), 2, tmp_path / "parts", method="random")


@pytest.mark.parametrize(
    ("holder", "step"),
    [(run, "assigner"), (run, "_write_whole"), (shares, "rank_remote"), (shares, "sha256")],
)
def test_an_exception_half_way_leaves_nothing(
    holder: object, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(holder, step, fail)
    with pytest.raises(UserError, match="No space left on device; make room there"):
        partition(ring(24), 2, tmp_path / "parts", method="random")
    assert list(tmp_path.iterdir()) == []


def test_configuration_and_versions_are_recorded(tmp_path: Path) -> None:
    partition(
        ring(24), 2, tmp_path / "p", method="random", seed=3, configuration={"dataset": "ring"}
    )
    manifest = Parts.open(tmp_path / "p").manifest
    assert manifest.configuration["dataset"] == "ring"
    assert manifest.configuration["seed"] == 3
    assert manifest.configuration["method"] == "random"
    assert set(manifest.versions) == {"distsage", "dgl", "torch", "numpy"}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, np.ndarray, int, int]:
    """A graph, the trainer of each node, and how many parts and trainers a part there are."""
    num_nodes = draw(st.integers(3, 25))
    node = st.integers(0, num_nodes - 1)
    ends = np.array(draw(st.lists(st.tuples(node, node), max_size=60)), int).reshape(-1, 2)
    per_part = draw(st.integers(1, 2))
    num_parts = draw(st.integers(1, num_nodes // per_part))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    trainer = rng.integers(0, num_parts * per_part, num_nodes)
    trainer[: num_parts * per_part] = np.arange(num_parts * per_part)  # none is empty
    changes: dict[str, object] = {}
    if draw(st.booleans()):
        changes["features"] = scipy.sparse.random(num_nodes, 9, 0.3, "csr", np.float32, rng=rng)
    if draw(st.booleans()):
        changes["original_ids"] = np.array([f"n{v}" * (v % 3 + 1) for v in range(num_nodes)])
    graph = make_graph(ends[:, 0], ends[:, 1], num_nodes, **changes)
    return graph, rng.permutation(trainer), num_parts, per_part


@examples(25)
@given(drawn=graphs())
def test_any_graph_in_any_parts(
    drawn: tuple[Graph, np.ndarray, int, int],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, trainer, num_parts, per_part = drawn
    folder = tmp_path_factory.mktemp("any")
    np.save(folder / "own.npy", trainer)
    output = folder / "parts"
    own = {"method": folder / "own.npy", "num_trainers_per_host": per_part}
    partition(graph, num_parts, output, **own)
    parts = check_parts(graph, output, monkeypatch)
    # The nodes of a part follow one another as its trainers have them.
    names = np.arange(graph.num_nodes) if graph.original_ids is None else graph.original_ids
    np.testing.assert_array_equal(
        np.asarray(parts.original_ids()), names[np.argsort(trainer, kind="stable")]
    )
