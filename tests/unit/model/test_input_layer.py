"""Layer 1 that multiplies first, against DGL's SAGEConv, dense numpy and layer 1 that gathers."""

import dgl
import dgl.nn.pytorch as dglnn
import numpy as np
import pytest
import scipy.sparse
import torch

from distsage.features.matrix import SparseRows, sparse_rows
from distsage.features.slots import MultipliedInput, TableRows, gathered_input, multiplied_input
from distsage.kernels import threads
from distsage.kernels.rng import Purpose, stream_key
from distsage.model import layers
from distsage.model.backend import by_kernels
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import infer
from distsage.sampling.batch import MiniBatch
from distsage.sampling.sampler import Sampler
from tests.unit.graphs import key_of, random_topology

pytestmark = pytest.mark.levels

N = 600
CPU = torch.device("cpu")
TOPOLOGY = random_topology(N, 9000)


def matrix(width: int, values: str = "float32") -> scipy.sparse.csr_matrix:
    """Rows of some numbers, some of none; the last column never occurs."""
    rng = np.random.default_rng(5)
    found = scipy.sparse.random_array((N, width - 1), density=0.1, rng=rng, format="lil")
    found[::7] = 0
    found.resize((N, width))
    found = scipy.sparse.csr_matrix(found.tocsr(), dtype=np.float32)
    found.eliminate_zeros()
    found.data = np.ones_like(found.data) if values == "ones" else found.data - np.float32(0.5)
    return found


def sampled(num_layers: int, num_seeds: int = 50) -> MiniBatch:
    seeds = np.random.default_rng(3).choice(N, num_seeds, replace=False)
    sampler = Sampler(TOPOLOGY, [3, 4, 5][:num_layers], number_inputs=True)
    return sampler.sample(seeds, key_of(2), stream_key(0, 0, 0, 0, Purpose.DROPOUT))


def inputs_of(way: str, batch: MiniBatch, rows: SparseRows, table: torch.Tensor) -> MultipliedInput:
    """Layer 1 of a batch of sparse rows, or of dense ones as whoever computes here takes them."""
    assert batch.input_gid is not None
    if way == "sparse":
        return multiplied_input(batch, rows.take(batch.input_gid))
    if layers.by_kernels(CPU):
        return multiplied_input(batch, TableRows((table,), batch.input_gid))
    return multiplied_input(batch, table[torch.from_numpy(batch.input_gid).long()])


def weighted_sum(logits: torch.Tensor) -> torch.Tensor:
    return (logits * torch.sin(torch.arange(logits.numel()) * 1.0).view_as(logits)).sum()


def results(
    model: GraphSAGE, inputs: object, batch: MiniBatch
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    logits = model(inputs, batch.blocks, batch.key)
    weighted_sum(logits).backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters()]


def by_dgl(
    model: GraphSAGE, x: torch.Tensor, batch: MiniBatch
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and gradients of a stack of SAGEConv with the same weights."""
    h, gradients = x[torch.from_numpy(batch.input_gid).long()], []
    convs = []
    for i, (layer, csc) in enumerate(
        zip(model.layers, (batch.input_edges, *batch.blocks), strict=True)
    ):
        conv = dglnn.SAGEConv(layer.in_width, len(layer.weight), "mean")
        with torch.no_grad():
            conv.fc_self.weight.copy_(layer.weight[:, : layer.in_width])
            conv.fc_neigh.weight.copy_(layer.weight[:, layer.in_width :])
            conv.fc_self.bias.copy_(layer.bias)
        dst = torch.from_numpy(np.repeat(np.arange(csc.num_dst), np.diff(csc.indptr)))
        src = torch.from_numpy(csc.indices.astype(np.int64))
        block = dgl.create_block((src, dst), num_src_nodes=csc.num_src, num_dst_nodes=csc.num_dst)
        h = conv(block, (h, h[: csc.num_dst]))
        h = torch.relu(h) if i < len(model.layers) - 1 else h
        convs.append(conv)
    weighted_sum(h).backward()
    for conv in convs:
        gradients.append(torch.cat((conv.fc_self.weight.grad, conv.fc_neigh.weight.grad), 1))
        gradients.append(conv.fc_self.bias.grad)
    return h.detach(), gradients


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("way", ["sparse", "ones", "dense"])
@pytest.mark.parametrize(("width", "hidden"), [(90, 32), (33, 7), (200, 100)])
def test_logits_and_gradients_equal_dgl(way, num_layers, width, hidden, kernels, monkeypatch):
    kernels = kernels and by_kernels(CPU)
    monkeypatch.setattr(layers, "by_kernels", lambda _: kernels)
    found = matrix(width, "ones" if way == "ones" else "float32")
    table, rows = torch.from_numpy(found.toarray()), sparse_rows(found, "float32")
    assert (rows.values is None) == (way == "ones")
    model = GraphSAGE(width, hidden, 5, num_layers, dropout=0.0, seed=1)
    batch = sampled(num_layers)
    logits, gradients = by_dgl(model, table, batch)
    for laid_out in (False, True):
        if laid_out:
            model.lay_out_for_sparse_rows()
        inputs = inputs_of("dense" if way == "dense" else "sparse", batch, rows, table)
        ours, our_gradients = results(model, inputs, batch)
        torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
        for a, b in zip(our_gradients, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)
    assert (our_gradients[0][:, [width - 1, -1]] == 0).all()  # the column that never occurs


def test_sums_equal_dense_numpy():
    """float64, by adjacency matrices; no code shared with the model or DGL."""
    found, batch = matrix(90), sampled(1)
    rows = sparse_rows(found, "float32").take(batch.input_gid)
    weight = torch.randn(20, 180, generator=torch.Generator().manual_seed(1))
    model = GraphSAGE(90, 20, 20, 1, dropout=0.0)
    with torch.no_grad():
        model.layers[0].weight.copy_(weight)
    out = model(multiplied_input(batch, rows), (), batch.key).detach().numpy()
    x, edges = found.toarray().astype(float)[batch.input_gid], batch.input_edges
    adjacency = np.zeros((edges.num_dst, edges.num_src))
    for v in range(edges.num_dst):
        np.add.at(adjacency[v], edges.indices[edges.indptr[v] : edges.indptr[v + 1]], 1)
    mean = adjacency @ x / np.maximum(adjacency.sum(1, keepdims=True), 1)
    expected = np.concatenate((x[: edges.num_dst], mean), 1) @ weight.numpy().T.astype(float)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["sparse", "dense"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", [True, False])
def test_multiplying_first_is_gathering_first_with_dropout(way, precision, kernels, monkeypatch):
    """The same masks: logits and gradients are those of the other way, in either precision."""
    kernels = kernels and by_kernels(CPU)
    monkeypatch.setattr(layers, "by_kernels", lambda _: kernels)
    found, batch = matrix(120), sampled(2)
    table, rows = torch.from_numpy(found.toarray()), sparse_rows(found, "float32")
    model = GraphSAGE(120, 64, 5, 2, dropout=0.5, seed=1, precision=precision)
    gathered = gathered_input(batch, table[torch.from_numpy(batch.input_gid).long()])
    expected = results(model, gathered, batch)
    found_here = results(model, inputs_of(way, batch, rows, table), batch)
    near = 1e-5 if precision == torch.float32 else 0.12  # elements on the other side of ReLU
    for a, b in zip((found_here[0], *found_here[1]), (expected[0], *expected[1]), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= near * b.norm()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_numbers_are_read_exactly(dtype):
    found, batch = matrix(90), sampled(2)
    half = sparse_rows(found, dtype)
    whole = SparseRows(half.indptr, half.columns, half.values.float(), half.width)
    model = GraphSAGE(90, 32, 5, 2, dropout=0.0)
    a, b = (
        results(model, multiplied_input(batch, rows.take(batch.input_gid)), batch)
        for rows in (half, whole)
    )
    assert torch.equal(a[0], b[0])
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


@pytest.mark.parametrize("way", ["sparse", "dense"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(way, precision, monkeypatch):
    """To the last bit, whichever thread claims which piece."""
    found, batch = matrix(700), sampled(3, 400)
    table, rows = torch.from_numpy(found.toarray()), sparse_rows(found, "float32")
    seen = []
    for n in (1, 2, 5):
        monkeypatch.setattr(threads, "budget", lambda n=n: n)
        model = GraphSAGE(700, 256, 5, 3, dropout=0.5, precision=precision)
        seen.append(results(model, inputs_of(way, batch, rows, table), batch))
    for logits, gradients in seen[1:]:
        assert torch.equal(logits, seen[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, seen[0][1], strict=True))


@pytest.mark.parametrize("way", ["sparse", "dense"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_no_seeds_give_zero_gradients(way, num_layers):
    found, batch = matrix(90), sampled(num_layers, 0)
    table, rows = torch.from_numpy(found.toarray()), sparse_rows(found, "float32")
    model = GraphSAGE(90, 32, 5, num_layers, dropout=0.5)
    logits, gradients = results(model, inputs_of(way, batch, rows, table), batch)
    assert logits.shape == (0, 5)
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("num_layers", [None, 1])
def test_inference_of_sparse_rows_is_that_of_the_table(num_layers):
    found = matrix(90)
    model = GraphSAGE(90, 32, 5, 2, dropout=0.5)
    table = infer(model, TOPOLOGY, torch.from_numpy(found.toarray()), num_layers)
    rows = infer(model, TOPOLOGY, sparse_rows(found, "float32"), num_layers)
    torch.testing.assert_close(rows, table, rtol=1e-4, atol=1e-5)
    assert not rows.requires_grad
