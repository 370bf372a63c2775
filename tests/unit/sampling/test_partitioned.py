"""Parts that pick for each other pick what one sampler on the whole topology picks."""

import itertools

import numpy as np
import pytest
import torch

from distsage.data.graph import Topology
from distsage.sampling.partitioned import (
    NEIGHBOURS,
    PartAnswer,
    PartitionedNeighbours,
    choose_topology,
)
from distsage.sampling.sampler import Neighbours, Sampler
from tests.unit.graphs import key_of, random_topology

pytestmark = pytest.mark.levels

N = 500
OFFSETS = np.array([0, 120, 120, 400, N])  # one part without nodes


def only_of_part(topology: Topology, low: int, high: int) -> Topology:
    """Wrong edges wherever the part must not look."""
    indices = np.full_like(topology.indices, -1)
    own = slice(topology.indptr[low], topology.indptr[high])
    indices[own] = topology.indices[own]
    return Topology(topology.indptr, indices)


@pytest.mark.parametrize("method", ["uniform", "replacement", "labor"])
@pytest.mark.parametrize("fan_outs", [[4, 2], [3, -1, 5]])
@pytest.mark.parametrize("number_inputs", [False, True])
@pytest.mark.parametrize("host", [0, 2])
def test_same_batches_as_with_the_whole_topology(method, fan_outs, number_inputs, host):
    whole = random_topology(N, 9000)
    parts = list(itertools.pairwise(OFFSETS))
    servers = [PartAnswer(only_of_part(whole, *part), method, *part) for part in parts]
    asked = []

    class Store:
        def ask(self, subject, tensors, fan_out, key):
            assert subject == NEIGHBOURS
            assert host not in tensors
            asked.append(len(tensors))
            return {part: servers[part].pick(t, fan_out, key) for part, t in tensors.items()}

    own = Neighbours(only_of_part(whole, *parts[host]), method, *parts[host])
    sampler = Sampler(
        whole,
        fan_outs,
        number_inputs=number_inputs,
        pick=PartitionedNeighbours(own, host, OFFSETS, Store()).pick,
    )
    expected = Sampler(whole, fan_outs, method=method, number_inputs=number_inputs)
    for step in range(3):
        seeds = np.random.default_rng(step).choice(N, [0, 1, 60][step], replace=False)
        a = expected.sample(seeds, key_of(step), np.uint64(9))
        b = sampler.sample(seeds, key_of(step), np.uint64(9))
        assert (a.key, a.dst_gid.tolist()) == (b.key, b.dst_gid.tolist())
        for x, y in zip((a.input_edges, *a.blocks), (b.input_edges, *b.blocks), strict=True):
            np.testing.assert_array_equal(x.indptr, y.indptr)
            np.testing.assert_array_equal(x.indices, y.indices)
            assert x.indices.dtype == y.indices.dtype
            assert x.num_src == y.num_src
        if number_inputs:
            np.testing.assert_array_equal(a.input_gid, b.input_gid)
    assert max(asked) == 2, "one question a part and layer, none to the empty part"


def test_an_answer_is_two_tensors():
    whole = random_topology(N, 9000)
    counts, src_gid = PartAnswer(whole, "uniform", 100, 200).pick(torch.arange(100, 200), 4, 2**63)
    degrees = np.diff(whole.indptr)[100:200]
    assert counts.tolist() == np.minimum(degrees, 4).tolist()
    assert counts.dtype == torch.int32
    assert len(src_gid) == counts.sum()


@pytest.mark.parametrize(
    ("wanted", "memory", "choice"),
    [
        ("auto", 10**6, "replicated"),
        ("auto", 2 * (8 * 501 + 4 * 4000), "replicated"),
        ("auto", 2 * (8 * 501 + 4 * 4000) - 2, "partitioned"),
        ("replicated", 10, "replicated"),
        ("partitioned", 10**9, "partitioned"),
    ],
)
def test_choice_of_topology(wanted, memory, choice):
    topology = Topology(np.zeros(501, np.int64), np.zeros(4000, np.int32))
    chosen, why = choose_topology(wanted, topology, memory)
    assert chosen == choice
    assert f"topology {choice}" in why
