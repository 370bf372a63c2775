"""Every trainer sees every node as it was, and infers what one process infers.

The ring: the feature of node v is (v, 2v), its label v mod 5, edges come from v-1 and v-2. Whatever
a trainer reads is checked by arithmetic on original ids.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Partitioned, planted
from jobs import mpirun

from distsage.data.csc import csc_from_edges
from distsage.data.graph import Graph
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import infer
from distsage.partitioning.parts import Parts
from distsage.partitioning.verify import load_parts

pytestmark = pytest.mark.mpi

NUM_NODES = 202
Views = list[dict[str, np.ndarray]]


def ring() -> Graph:
    """Node v is stored in row v; its original id is 1000 + 3v."""
    v = np.arange(NUM_NODES)
    src, dst = np.concatenate((v, v)), np.concatenate((v + 1, v + 2)) % NUM_NODES
    return Graph(
        name="ring",
        topology=csc_from_edges(src, dst, NUM_NODES),
        features=np.stack((v, 2 * v), 1).astype(np.float32),
        labels=v % 5,
        num_classes=5,
        train_mask=v % 4 == 0,
        val_mask=v % 4 == 1,
        test_mask=v % 4 >= 2,
        original_ids=1000 + 3 * v,
    )


def run(ranks: int, hosts: int, parts: Path, run_dir: Path) -> Views:
    """What each trainer of a job sees."""
    program = Path(__file__).with_name("trainer_view.py")
    options = ["--parts", parts, "--run-dir", run_dir, "--emulated-hosts", hosts, "--seed", 3]
    mpirun(ranks, program, *options)
    return [dict(np.load(run_dir / f"trainer-{rank}.npz")) for rank in range(ranks // 2)]


@pytest.fixture(scope="module", params=[(4, 2), (8, 2), (6, 3)], ids=lambda n: f"{n[0]}-{n[1]}")
def ring_job(
    request: pytest.FixtureRequest,
    partitioned: Partitioned,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, int, Views]:
    """The ring in parts, trainers per host, and what the trainers see."""
    ranks, hosts = request.param
    parts = partitioned(ring(), hosts)
    return parts, ranks // hosts // 2, run(ranks, hosts, parts, tmp_path_factory.mktemp("ring"))


def test_every_trainer_sees_every_node_as_it_was(ring_job: tuple[Path, int, Views]) -> None:
    path, per_host, views = ring_job
    parts = Parts.open(path)
    v = (np.asarray(parts.original_ids()) - 1000) // 3  # gid -> place on the ring
    assert sorted(v) == list(range(NUM_NODES))
    for trainer, view in enumerate(views):
        low, high = view["part"]
        assert (low, high) == tuple(parts.offsets[trainer // per_host :][:2])
        own = v[low:high]
        np.testing.assert_array_equal(view["own_features"], np.stack((own, 2 * own), 1))
        np.testing.assert_array_equal(view["own_labels"], own % 5)
        all_ = v[view["mixed"]]
        assert sorted(all_) == list(range(NUM_NODES))
        np.testing.assert_array_equal(view["pulled_features"], np.stack((all_, 2 * all_), 1))
        np.testing.assert_array_equal(view["pulled_labels"], all_ % 5)
        shuffled = v[view["any_order"]]
        np.testing.assert_array_equal(view["through_dgl"], np.stack((shuffled, 2 * shuffled), 1))
        mean = ((own - 1) % NUM_NODES + (own - 2) % NUM_NODES) / 2
        np.testing.assert_array_equal(
            view["layer_1"], np.stack((own, 2 * own, mean, 2 * mean), 1).astype(np.float32)
        )


def test_owners_infer_the_ring_as_one_process_does(ring_job: tuple[Path, int, Views]) -> None:
    path, _, views = ring_job
    check_inference(path, views)


def test_owners_infer_a_skewed_graph_as_one_process_does(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    path = partitioned(planted(), 2)
    check_inference(path, run(8, 2, path, tmp_path))


def check_inference(path: Path, views: Views) -> None:
    graph, _ = load_parts(path)
    model = GraphSAGE(graph.num_features, 8, graph.num_classes, 3, 0.0, 3).eval()
    expected = infer(model, graph.topology, torch.from_numpy(graph.features)).numpy()
    seen = np.zeros(graph.num_nodes, int)
    for view in views:
        low, high = view["inferred"]
        np.testing.assert_allclose(view["logits"], expected[low:high], rtol=1e-4, atol=1e-4)
        seen[low:high] += 1
    assert (seen == 1).all(), "every node, 0 included, is one trainer's"
