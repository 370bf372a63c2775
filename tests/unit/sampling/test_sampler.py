"""The sampler: what it picks exists, is uniform, repeats, and lies inside its block."""

import numpy as np
import pytest
import scipy.stats

from distsage.data.graph import Topology
from distsage.errors import UserError
from distsage.kernels.rng import Purpose, stream_key
from distsage.sampling.sampler import MiniBatch, Neighbours, Sampler
from tests.unit.graphs import in_neighbours, key_of, random_topology, ring

pytestmark = pytest.mark.levels

METHODS = ["uniform", "replacement", "labor"]


def sampled_gids(batch: MiniBatch, sampler: Sampler) -> list[tuple[int, int, list[int]]]:
    """(layer, destination gid, source gids) of every destination, layers from the input."""
    rows = []
    src_of_next = batch.dst_gid
    if batch.input_gid is None:
        src = batch.input_edges.indices
    else:
        assert batch.input_edges.num_src == len(batch.input_gid)
        assert (batch.input_gid[: len(batch.dst_gid)] == batch.dst_gid).all()
        assert len(np.unique(batch.input_gid)) == len(batch.input_gid)
        assert batch.input_edges.indices.max(initial=-1) < batch.input_edges.num_src
        src = batch.input_gid[batch.input_edges.indices]
    indptr = batch.input_edges.indptr
    for i, v in enumerate(batch.dst_gid):
        rows.append((0, int(v), src[indptr[i] : indptr[i + 1]].tolist()))
    for layer, block in enumerate(batch.blocks, 1):
        assert block.num_src == len(src_of_next)
        assert block.indptr[0] == 0
        assert block.indptr[-1] == len(block.indices)
        assert block.indices.min(initial=0) >= 0
        assert block.indices.max(initial=-1) < block.num_src
        src = src_of_next[block.indices]
        for i, v in enumerate(src_of_next[: block.num_dst]):
            rows.append((layer, int(v), src[block.indptr[i] : block.indptr[i + 1]].tolist()))
        src_of_next = src_of_next[: block.num_dst]
    assert (src_of_next == batch.seed_gid).all()
    return rows


@pytest.mark.parametrize("number_inputs", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fan_outs", [[3], [4, 2], [2, -1, 5], [70, 130]])
def test_picks_are_edges_of_the_graph(fan_outs, method, number_inputs):
    topology = random_topology(500, 6000)
    sampler = Sampler(topology, fan_outs, method=method, number_inputs=number_inputs)
    for step in range(3):
        seeds = np.random.default_rng(step).choice(500, 60, replace=False)
        batch = sampler.sample(seeds, key_of(step), np.uint64(0))
        for layer, v, picked in sampled_gids(batch, sampler):
            neighbours = in_neighbours(topology, v)
            fan_out = fan_outs[layer]
            assert set(picked) <= set(neighbours)
            if method == "replacement" and fan_out != -1:
                assert len(picked) == (fan_out if len(neighbours) else 0)
            elif fan_out == -1 or len(neighbours) <= fan_out:
                assert sorted(picked) == sorted(neighbours)
            else:
                assert len(set(picked)) == len(picked) == fan_out


def test_ring_by_arithmetic():
    sampler = Sampler(ring(50), [-1, -1])
    batch = sampler.sample(np.array([0, 17]), key_of(0), np.uint64(5))
    assert batch.key == 5
    for _, v, picked in sampled_gids(batch, sampler):
        assert sorted(picked) == sorted([(v - 1) % 50, (v - 2) % 50])
    assert set(batch.dst_gid) == {0, 49, 48, 17, 16, 15}


def test_repeats_from_its_key_and_differs_otherwise():
    topology = random_topology(500, 20000)
    seeds = np.arange(100)
    first, other = Sampler(topology, [5, 5]), Sampler(topology, [5, 5])
    first.sample(seeds, key_of(3), np.uint64(0))  # what came before must not matter
    a = first.sample(seeds, key_of(4), np.uint64(0))
    b = other.sample(seeds, key_of(4), np.uint64(0))
    c = other.sample(seeds, key_of(5), np.uint64(0))
    for x, y in zip((a.input_edges, *a.blocks), (b.input_edges, *b.blocks), strict=True):
        assert (x.indices == y.indices).all()
        assert (x.indptr == y.indptr).all()
    assert not np.array_equal(a.blocks[0].indices, c.blocks[0].indices)


def test_numbering_the_inputs_changes_no_pick():
    topology = random_topology(500, 20000)
    seeds = np.arange(100)
    plain = Sampler(topology, [5, 5]).sample(seeds, key_of(1), np.uint64(0))
    numbered = Sampler(topology, [5, 5], number_inputs=True).sample(seeds, key_of(1), np.uint64(0))
    assert (numbered.input_gid[numbered.input_edges.indices] == plain.input_edges.indices).all()


def test_read_only_memory_map_and_int64(tmp_path):
    topology = random_topology(500, 20000)
    np.save(tmp_path / "indptr.npy", topology.indptr)
    np.save(tmp_path / "indices.npy", topology.indices.astype(np.int64))
    mapped = Topology(
        np.load(tmp_path / "indptr.npy", mmap_mode="r"),
        np.load(tmp_path / "indices.npy", mmap_mode="r"),
    )
    seeds = np.arange(50)
    a = Sampler(topology, [5, 5]).sample(seeds, key_of(1), np.uint64(0))
    b = Sampler(mapped, [5, 5]).sample(seeds, key_of(1), np.uint64(0))
    assert b.input_edges.indices.dtype == np.int64
    assert (a.input_edges.indices == b.input_edges.indices).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("degree", "fan_out"), [(7, 3), (40, 10), (100, 99), (200, 25), (1000, 5)])
def test_every_neighbour_is_equally_likely(degree, fan_out, method):
    """Chi-square of the pick frequencies.

    False alarm: the seed is fixed, so the test is deterministic; a correct sampler with another
    seed would fail with a probability of 1e-4 per case. Without replacement the counts vary less
    than multinomially, by the factor (1 - fan_out / degree) * degree / (degree - 1).
    """
    indptr = np.array([0, degree] + [degree] * degree, np.int64)
    topology = Topology(indptr, np.arange(1, degree + 1, dtype=np.int32))
    sampler = Sampler(topology, [fan_out], method=method)
    draws = 4000
    counts = np.zeros(degree)
    for step in range(draws):
        batch = sampler.sample(np.array([0]), key_of(step), np.uint64(0))
        np.add.at(counts, batch.input_edges.indices - 1, 1)
    expected = draws * fan_out / degree
    chi2 = ((counts - expected) ** 2 / expected).sum()
    if method != "replacement":
        chi2 /= (1 - fan_out / degree) * degree / (degree - 1)
    assert chi2 < scipy.stats.chi2.isf(5e-5, degree - 1)
    assert chi2 > scipy.stats.chi2.ppf(5e-5, degree - 1)  # suspiciously even is wrong, too


def test_pairs_are_picked_independently():
    """All pairs of 6 neighbours are equally likely at fan-out 2 (false alarm 1e-4, see above)."""
    topology = Topology(np.array([0, 6] + [6] * 6, np.int64), np.arange(1, 7, dtype=np.int32))
    sampler = Sampler(topology, [2])
    counts = np.zeros((7, 7))
    for step in range(6000):
        a, b = sorted(sampler.sample(np.array([0]), key_of(step), np.uint64(0)).input_edges.indices)
        counts[a, b] += 1
    pairs = counts[np.triu_indices(7, 1)]
    pairs = pairs[pairs > 0]
    assert len(pairs) == 15
    assert ((pairs - 400) ** 2 / 400).sum() < scipy.stats.chi2.isf(1e-4, 14)


@pytest.mark.parametrize("method", METHODS)
def test_mean_of_samples_is_the_full_mean(method):
    """Unbiased: averaged over many batches, the sampled mean is the mean over all neighbours.

    z-test per node with Bonferroni: 1e-4 for the whole test (fixed seed, so deterministic).
    """
    topology = random_topology(200, 4000)
    x = np.random.default_rng(1).standard_normal(200)
    sampler = Sampler(topology, [4], method=method)
    nodes = np.flatnonzero(np.diff(topology.indptr) > 4)
    means = []
    for step in range(2000):
        edges = sampler.sample(nodes, key_of(step), np.uint64(0)).input_edges
        means.append(x[edges.indices].reshape(-1, 4).mean(1))
    full = np.array([x[in_neighbours(topology, v)].mean() for v in nodes])
    z = (np.mean(means, 0) - full) / (np.std(means, 0) / np.sqrt(len(means)))
    assert np.abs(z).max() < scipy.stats.norm.isf(1e-4 / 2 / len(nodes))


def test_no_seeds_and_isolated_nodes():
    topology = Topology(np.array([0, 0, 0, 1], np.int64), np.array([1], np.int32))
    for number_inputs in (False, True):
        sampler = Sampler(topology, [2, 2], number_inputs=number_inputs)
        empty = sampler.sample(np.array([], np.int64), key_of(0), np.uint64(0))
        assert empty.blocks[0].num_dst == empty.input_edges.num_dst == len(empty.dst_gid) == 0
        lonely = sampler.sample(np.array([0, 1]), key_of(0), np.uint64(0))
        assert lonely.dst_gid.tolist() == [0, 1]
        assert len(lonely.input_edges.indices) == 0


@pytest.mark.parametrize("fan_outs", [[], [0], [5, -2]])
def test_bad_fan_outs(fan_outs):
    with pytest.raises(UserError, match="fan-out"):
        Sampler(ring(5), fan_outs)


def test_streams_differ_in_every_coordinate():
    base = (1, 2, 3, 4, Purpose.SAMPLE)
    others = [(2, 2, 3, 4, 1), (1, 3, 3, 4, 1), (1, 2, 4, 4, 1), (1, 2, 3, 5, 1), (2, 1, 3, 4, 1)]
    keys = {int(stream_key(*base)), int(stream_key(1, 2, 3, 4, Purpose.DROPOUT))}
    keys |= {int(stream_key(*o)) for o in others}
    assert len(keys) == 7
    assert stream_key(*base) == stream_key(*base)


def labor_reference(neighbours: np.ndarray, fan_out: int, key: int) -> np.ndarray:
    """The fan_out neighbours with the smallest hashes; of equal ones those that come first."""
    if len(neighbours) <= fan_out:
        return neighbours
    x = neighbours.astype(np.uint32) * np.uint32(0x9E3779B9) + np.uint32(key & 0xFFFFFFFF)
    x = (x ^ x >> 16) * np.uint32(0x7FEB352D) ^ np.uint32(key >> 32)
    x = (x ^ x >> 15) * np.uint32(0x846CA68B)
    x ^= x >> 16
    return neighbours[x <= np.sort(x)[fan_out - 1]][:fan_out]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("fan_out", [1, 10, 25, 70])
def test_labor_picks_the_smallest_hashes(fan_out, dtype):
    """To the last bit, whatever the degree; parallel edges have equal hashes."""
    rng = np.random.default_rng(fan_out)
    degrees = rng.permutation(np.r_[np.arange(120), 1000, 3001])
    indptr = np.r_[0, np.cumsum(degrees)]
    indices = rng.integers(0, 2**31, indptr[-1])
    twice = rng.random(len(indices)) < 0.3
    indices = np.where(twice, np.roll(indices, 1), indices).astype(dtype)
    neighbours = Neighbours(Topology(indptr, indices), "labor")
    dst_gid = rng.permutation(len(degrees)).astype(dtype)
    for step in range(10):
        key = key_of(step)
        out_indptr, src_gid = neighbours.pick(dst_gid, fan_out, key)
        for i, v in enumerate(dst_gid):
            expected = labor_reference(indices[indptr[v] : indptr[v + 1]], fan_out, int(key))
            np.testing.assert_array_equal(src_gid[out_indptr[i] : out_indptr[i + 1]], expected)


def test_labor_needs_fewer_nodes_because_destinations_share_their_numbers():
    """Rows with the same neighbours pick the same; a layer's union is smaller than uniform's."""
    twins = Topology(np.array([0, 30, 60] + [60] * 30, np.int64), np.tile(np.arange(2, 32), 2))
    edges = Sampler(twins, [7], method="labor").sample(np.array([0, 1]), key_of(0), np.uint64(0))
    first, second = edges.input_edges.indices.reshape(2, 7)
    assert set(first) == set(second)

    topology = random_topology(2000, 60000)
    distinct = {}
    for method in ("uniform", "labor"):
        sampler = Sampler(topology, [5], method=method, number_inputs=True)
        batches = [sampler.sample(np.arange(300), key_of(i), np.uint64(0)) for i in range(20)]
        distinct[method] = np.mean([len(b.input_gid) for b in batches])
        assert len({tuple(sorted(b.input_gid)) for b in batches}) == 20  # the key matters
    assert distinct["labor"] < 0.8 * distinct["uniform"]
