"""Features in int8, whose scales are in layer 1's weight, against float64 numpy and float32."""

import numpy as np
import pytest
import torch

from distsage.features.matrix import SparseRows, dense_table, feature_scales, sparse_rows
from distsage.features.slots import gathered_input, local_input
from distsage.model import layers
from distsage.model.backend import by_kernels
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import infer
from distsage.sampling.sampler import Sampler
from tests.unit.graphs import key_of
from tests.unit.model.test_input_layer import (
    CPU,
    TOPOLOGY,
    inputs_of,
    matrix,
    results,
    sampled,
    weighted_sum,
)

pytestmark = pytest.mark.levels

WIDTHS = [5, 16, 33, 90]


def kept(width: int) -> tuple[torch.Tensor, SparseRows, np.ndarray]:
    """Features in int8 as a table and as sparse rows, and their scales; column 0 is huge."""
    found = matrix(width)
    found.data[found.indices == 0] *= 1000
    scale = feature_scales(found)
    return dense_table(found, "int8", scale), sparse_rows(found, "int8", scale), scale


def units(table: torch.Tensor, scale: np.ndarray) -> torch.Tensor:
    """The numbers that int8 stands for, float32."""
    return table.float() * torch.from_numpy(scale)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("way", ["gather", "dense", "sparse"])
@pytest.mark.parametrize("width", WIDTHS)
def test_logits_and_gradient_equal_dense_numpy(width, way, kernels, monkeypatch):
    """One layer, in float64 of what the int8 numbers stand for."""
    kernels = kernels and by_kernels(CPU)
    monkeypatch.setattr(layers, "by_kernels", lambda _: kernels)
    table, rows, scale = kept(width)
    model = GraphSAGE(width, 20, 6, 1, dropout=0.0, seed=1)
    model.scale_inputs(torch.from_numpy(scale))
    batch = sampled(1)
    if way == "gather":
        inputs = gathered_input(batch, table[torch.from_numpy(batch.input_gid).long()])
    else:
        inputs = inputs_of(way, batch, rows, table)
    logits, (gradient, _) = results(model, inputs, batch)

    x = table.numpy()[batch.input_gid] * scale.astype(np.float64)
    edges = batch.input_edges
    mean = np.zeros((edges.num_dst, width))
    for v in range(edges.num_dst):
        sources = edges.indices[edges.indptr[v] : edges.indptr[v + 1]]
        mean[v] = x[sources].sum(0) / max(len(sources), 1)
    both = np.concatenate((x[: edges.num_dst], mean), 1)
    weight = model.layers[0].weight.detach().numpy()
    expected = both @ weight.T.astype(np.float64)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    given = np.sin(np.arange(expected.size, dtype=np.float64)).reshape(expected.shape)
    expected = given.T @ both
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("way", ["gather", "dense", "sparse"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_model_with_hidden_layers_computes_what_it_does_in_units_of_one(way, precision):
    table, rows, scale = kept(90)
    batch = sampled(2)
    some = torch.from_numpy(batch.input_gid).long()
    model = GraphSAGE(90, 64, 5, 2, dropout=0.5, seed=1, precision=precision)
    expected = results(model, gathered_input(batch, units(table, scale)[some]), batch)
    model.scale_inputs(torch.from_numpy(scale))
    inputs = (
        gathered_input(batch, table[some])
        if way == "gather"
        else inputs_of(way, batch, rows, table)
    )
    found = results(model, inputs, batch)
    near = 1e-5 if precision == torch.float32 else 0.12  # elements on the other side of ReLU
    for a, b in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert (a - b).norm() <= near * b.norm()


def test_a_table_is_read_where_it_is():
    """Not numbered, as in the local run; the fused layer reads int8."""
    table, _, scale = kept(90)
    sampler = Sampler(TOPOLOGY, [3, 4])
    batch = sampler.sample(np.arange(0, 600, 7), key_of(2), np.uint64(5))
    model = GraphSAGE(90, 64, 5, 2, dropout=0.0, seed=1)
    if not by_kernels(CPU):
        pytest.skip("torch's operations take gathered rows")
    expected = model(local_input(batch, units(table, scale)), batch.blocks, batch.key)
    model.scale_inputs(torch.from_numpy(scale))
    logits = model(local_input(batch, table), batch.blocks, batch.key)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    weighted_sum(logits).backward()
    assert model.layers[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("hidden", [16, 300])
def test_inference_of_int8_is_that_of_what_it_stands_for(num_layers, hidden):
    """Layer 1 multiplies first, or averages first, by its widths."""
    table, rows, scale = kept(90)
    model = GraphSAGE(90, hidden, 5, num_layers, dropout=0.5, seed=1)
    expected = infer(model, TOPOLOGY, units(table, scale))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.scale_inputs(torch.from_numpy(scale))
    for features in (table, rows):
        torch.testing.assert_close(infer(model, TOPOLOGY, features), expected, rtol=1e-4, atol=1e-3)
    # What is saved is in units of one.
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_ones_need_no_scale():
    found = matrix(40, "ones")
    assert feature_scales(found) is None
    assert sparse_rows(found, "int8").values is None
    assert torch.equal(dense_table(found, "int8").float(), torch.from_numpy(found.toarray()))
