"""Slots of own, cached and missed rows, against brute force."""

import numpy as np
import pytest
import torch

from distsage.features.slots import SlotMap, gather_rows, local_input
from distsage.model.backend import by_kernels
from distsage.model.layers import input_self_and_mean
from distsage.model.workspace import Workspace
from distsage.sampling.sampler import Sampler
from tests.unit.graphs import key_of, random_topology

pytestmark = pytest.mark.levels

N = 400


@pytest.mark.parametrize(("lo", "hi"), [(0, N), (0, 150), (150, 300), (300, 400), (200, 200)])
@pytest.mark.parametrize("num_cached", [0, 40])
def test_every_slot_leads_to_the_row_of_its_node(lo, hi, num_cached):
    rng = np.random.default_rng(lo + num_cached)
    x = torch.from_numpy(rng.standard_normal((N, 6), "f4"))
    remote = np.setdiff1d(np.arange(N), np.arange(lo, hi))
    cached_gid = rng.permutation(remote)[:num_cached]
    offsets, part = np.array([0, lo, hi, 350, N] if hi < 350 else [0, lo, hi, N]), 1
    slot_map = SlotMap(offsets, part, cached_gid)
    topology = random_topology(N, 6000)
    for step in range(3):  # nothing of a batch may be left for the next
        batch = Sampler(topology, [4, 3]).sample(
            rng.choice(N, 30, replace=False), key_of(step), np.uint64(0)
        )
        src_gid = batch.input_edges.indices
        split = slot_map.find(src_gid, batch.dst_gid)

        asked = np.concatenate((src_gid, batch.dst_gid))
        expected_misses = set(asked) - set(range(lo, hi)) - set(cached_gid)
        assert set(split.missed_gid) == expected_misses
        assert len(split.missed_gid) == len(expected_misses)
        owner = np.searchsorted(offsets, split.missed_gid, side="right")
        assert (np.diff(owner) >= 0).all(), "in the order of the parts"
        assert split.num_own == len(set(asked) & set(range(lo, hi)))
        assert split.num_cached == len(set(asked) & set(cached_gid))

        tables = (x[lo:hi], x[cached_gid], x[split.missed_gid])
        rows = torch.cat(tables)
        assert torch.equal(rows[split.slots], x[src_gid])
        assert torch.equal(rows[split.dst_slots], x[batch.dst_gid])
        assert torch.equal(gather_rows(tables, split.slots), x[src_gid])

        whole = input_self_and_mean(local_input(batch, x), Workspace())
        if by_kernels(whole.device):
            inputs = split.input(batch.input_edges.indptr, tables)
            assert torch.equal(input_self_and_mean(inputs, Workspace()), whole)
        for i in range(len(batch.dst_gid)):
            src = src_gid[batch.input_edges.indptr[i] : batch.input_edges.indptr[i + 1]]
            mean = x[src].double().mean(0) if len(src) else torch.zeros(6, dtype=torch.float64)
            torch.testing.assert_close(whole[i, :6], x[batch.dst_gid[i]])
            torch.testing.assert_close(whole[i, 6:].double(), mean, rtol=1e-5, atol=1e-6)
