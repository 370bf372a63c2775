"""Layer-wise inference against dense numpy, in one piece and by ranges of owners."""

import numpy as np
import pytest
import torch

from distsage.data.graph import Topology
from distsage.model import inference
from distsage.model.backend import by_kernels
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import exchanged_rows, infer, layer_rows
from tests.unit.graphs import random_topology

pytestmark = pytest.mark.levels

N = 300


def dense(model: GraphSAGE, topology: Topology, x: torch.Tensor) -> np.ndarray:
    adjacency = np.zeros((N, N))
    for v in range(N):
        adjacency[v, topology.indices[topology.indptr[v] : topology.indptr[v + 1]]] = 1
    adjacency /= np.maximum(adjacency.sum(1, keepdims=True), 1)
    h = x.numpy().astype(float)
    for i, layer in enumerate(model.layers):
        h = np.concatenate((h, adjacency @ h), 1) @ layer.weight.detach().numpy().T.astype(float)
        h += layer.bias.detach().numpy()
        h = np.maximum(h, 0) if i < len(model.layers) - 1 else h
    return h


@pytest.fixture
def setting():
    topology = random_topology(N, 5000)
    assert (np.diff(topology.indptr) == 0).any()  # isolated nodes are part of the test
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((N, 12), "f4"))
    return GraphSAGE(12, 16, 4, 3, dropout=0.5), topology, x


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("piece_bytes", [1, 10_000, 2**25])
def test_equals_dense_numpy(setting, piece_bytes, kernels, monkeypatch):
    model, topology, x = setting
    monkeypatch.setattr(inference, "by_kernels", lambda device: kernels and by_kernels(device))
    monkeypatch.setattr(inference, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(inference, "_TORCH_PIECE_BYTES", piece_bytes)
    logits = infer(model, topology, x)
    np.testing.assert_allclose(logits.numpy(), dense(model, topology, x), rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad


@pytest.mark.parametrize("kernels", [True, False])
def test_it_tells_how_far_it_is(setting, kernels, monkeypatch):
    model, topology, x = setting
    monkeypatch.setattr(inference, "by_kernels", lambda device: kernels and by_kernels(device))
    monkeypatch.setattr(inference, "_PIECE_BYTES", 10_000)
    monkeypatch.setattr(inference, "_TORCH_PIECE_BYTES", 10_000)
    told = []
    infer(model, topology, x, num_layers=2, on_rows=told.append)
    assert sum(told) == 2 * N
    assert len(told) > 4


def test_read_only_memory_map(setting, tmp_path):
    model, topology, x = setting
    np.save(tmp_path / "indices.npy", topology.indices)
    mapped = Topology(topology.indptr, np.load(tmp_path / "indices.npy", mmap_mode="r"))
    assert torch.equal(infer(model, mapped, x), infer(model, topology, x))


def test_owners_compute_the_same(setting):
    """Each owner has its own rows and its halo's, renumbered; together they give every row."""
    model, topology, x = setting
    expected = infer(model, topology, x)
    h = x
    for layer in range(3):
        parts = []
        for lo, hi in ((0, 90), (90, 90), (90, 210), (210, N)):
            indptr = topology.indptr[lo : hi + 1]
            src_gid = topology.indices[indptr[0] : indptr[-1]]
            halo = np.setdiff1d(src_gid, np.arange(lo, hi))
            slot = np.full(N, -1, np.int32)
            slot[lo:hi] = np.arange(hi - lo)
            slot[halo] = hi - lo + np.arange(len(halo))
            rows = exchanged_rows(model, layer, h)
            tables = (rows[lo:hi], rows[halo])
            parts.append(layer_rows(model, layer, h[lo:hi], tables, indptr, slot[src_gid]))
        h = torch.cat(parts)
    torch.testing.assert_close(h, expected)


def test_narrow_layers_exchange_narrow_rows(setting):
    model, _, x = setting  # 12 features, 16 hidden, 4 classes
    hidden = torch.randn(5, 16)
    assert exchanged_rows(model, 0, x) is x
    assert exchanged_rows(model, 1, hidden) is hidden
    narrow = exchanged_rows(model, 2, hidden)
    torch.testing.assert_close(narrow, hidden @ model.layers[2].weight[:, 16:].t())
    assert not narrow.requires_grad
