"""Parts dealt out to hosts: runs of them, one range of gids each, with a ranking of their own."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from distsage.errors import UserError
from distsage.partitioning.host_parts import HostParts, deal_out
from distsage.partitioning.part_order import order_parts
from distsage.partitioning.parts import Parts
from distsage.partitioning.ranking import rank_remote
from distsage.partitioning.run import partition
from distsage.partitioning.verify import load_parts
from tests.unit.partition_graphs import random_directed, ring


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.data())
def test_every_host_gets_a_run_of_parts(sizes, data):
    num_hosts = data.draw(st.integers(1, len(sizes)))
    bounds = deal_out(sizes, num_hosts)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, len(sizes), num_hosts + 1)
    assert (np.diff(bounds) > 0).all()


def test_hosts_get_equal_numbers_of_nodes():
    assert deal_out([10] * 16, 4) == (0, 4, 8, 12, 16)
    assert deal_out([10] * 16, 3) == (0, 5, 11, 16)
    assert deal_out([90, 10, 10, 10, 10, 50], 2) == (0, 1, 6)
    assert deal_out([1, 1, 100], 3) == (0, 1, 2, 3)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    path = tmp_path_factory.mktemp("host-parts") / "parts"
    graph = random_directed(600, 9000)
    partition(graph, 6, path, fan_out=[3, 3], batch_size=4)
    return Parts.open(path)


def test_what_hosts_hold_is_what_their_parts_hold(parts):
    held = HostParts.deal(parts, ["a", "b", "c", "d"])
    assert [number for host in range(4) for number in held.held(host)] == list(range(6))
    assert [low for low, _ in held.ranges] + [600] == held.offsets.tolist()
    for host in range(4):
        mine = [parts.manifest.parts[number] for number in held.held(host)]
        assert held.nodes(host) == (mine[0].nodes[0], mine[-1].nodes[1])
        assert held.edges(host) == (mine[0].edges[0], mine[-1].edges[1])
        assert held.num_nodes(host) == sum(part.num_nodes for part in mine)
    assert held.names(0) in ("part 0", "parts 0-1")


def test_more_hosts_than_parts_are_refused(parts):
    with pytest.raises(UserError, match=r"has 6 parts but the job runs on 7 hosts \(0, .* 7"):
        HostParts.deal(parts, list(map(str, range(7))))


def test_the_ranking_of_several_parts_is_that_of_their_host(parts):
    """Compared with the ranking that is computed for all of the host's train nodes at once."""
    graph, _ = load_parts(parts.path)
    held = HostParts.deal(parts, ["a", "b"])
    for host, (low, high) in enumerate(held.ranges):
        train = low + np.flatnonzero(graph.train_mask[low:high])
        exact, probability = rank_remote(
            graph.topology, low, high, train, fan_out=[3, 3], batch_size=4
        )
        ranking = held.cache_ranking(host)
        assert ranking.dtype == exact.dtype
        np.testing.assert_array_equal(np.sort(ranking), np.sort(exact))
        # What a cache of a fifth of them saves.
        kept, best = len(exact) // 5, probability[: len(exact) // 5].sum()
        of_node = np.zeros(graph.num_nodes)
        of_node[exact] = probability
        assert of_node[ranking[:kept]].sum() > 0.97 * best


def test_a_host_of_one_part_has_its_ranking(parts):
    held = HostParts.deal(parts, list("abcdef"))
    np.testing.assert_array_equal(held.cache_ranking(3), parts.cache_ranking(3))


def test_one_host_asks_nobody(parts):
    assert len(HostParts.deal(parts, ["a"]).cache_ranking(0)) == 0


def test_neighbouring_parts_stand_side_by_side():
    """Parts of a ring, numbered at random: runs of them should be arcs again."""
    graph = ring(1600)
    shuffled = np.random.default_rng(3).permutation(16)
    part = shuffled[np.arange(1600) // 100]
    number = order_parts(graph.topology, part, 16)
    assert sorted(number.tolist()) == list(range(16))

    def cut_edges(part, num_hosts):
        host = np.searchsorted(deal_out([100] * 16, num_hosts), part, side="right")
        dst = np.repeat(np.arange(1600), np.diff(graph.topology.indptr))
        return int((host[dst] != host[graph.topology.indices]).sum())

    ends = [2 * num_hosts for num_hosts in (2, 4, 8)]
    found = [cut_edges(number[part], num_hosts) for num_hosts in (2, 4, 8)]
    before = [cut_edges(part, num_hosts) for num_hosts in (2, 4, 8)]
    assert all(ours < theirs for ours, theirs in zip(found, before, strict=True))
    assert found[0] <= 3 * ends[0]


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_few_parts_keep_their_numbers_or_exchange_them(num_parts):
    graph = ring(30)
    part = np.arange(30) * num_parts // 30
    number = order_parts(graph.topology, part, num_parts)
    assert number.tolist() in [list(order) for order in itertools.permutations(range(num_parts))]


@pytest.mark.parametrize("features", ["dense", "sparse"])
@pytest.mark.parametrize("num_hosts", [1, 2, 3, 4, 6, 12])
def test_grouped_parts_are_what_merged_parts_are(num_hosts, features, tmp_path):
    """Twelve parts on some hosts, beside as many parts as hosts with the same nodes."""
    graph = random_directed(240, 2500)
    if features == "sparse":
        rows = scipy.sparse.random(240, 9, 0.3, "csr", np.float32, random_state=2)
        graph = replace(graph, features=rows)
    own = tmp_path / "own.npy"
    np.save(own, np.random.default_rng(1).permutation(240) % 12)
    partition(graph, 12, tmp_path / "small", method=own)
    options = {"method": own, "num_trainers_per_host": 12 // num_hosts}
    partition(graph, num_hosts, tmp_path / "merged", **options)
    small, merged = Parts.open(tmp_path / "small"), Parts.open(tmp_path / "merged")
    np.testing.assert_array_equal(small.original_ids(), merged.original_ids())
    for name in ("indptr", "indices"):
        np.testing.assert_array_equal(
            getattr(small.topology(), name), getattr(merged.topology(), name)
        )
    held = HostParts.deal(small, list(map(str, range(num_hosts))))
    for host, part in enumerate(merged.manifest.parts):
        assert held.nodes(host) == part.nodes
        assert held.edges(host) == part.edges
        assert held.feature_numbers(host) == part.feature_numbers
        pieces = [small.load_part(number) for number in held.held(host)]
        for name, rows in merged.load_part(host).items():
            join = scipy.sparse.vstack if scipy.sparse.issparse(rows) else np.concatenate
            joined = join([piece[name] for piece in pieces])
            assert joined.dtype == rows.dtype
            if scipy.sparse.issparse(rows):
                joined, rows = joined.toarray(), rows.toarray()
            np.testing.assert_array_equal(joined, rows)
