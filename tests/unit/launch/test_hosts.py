"""Host lists, their order, and which address each host gets."""

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsage.errors import UserError
from distsage.launch.hosts import (
    Address,
    check_ip_config,
    choose_addresses,
    emulated_addresses,
    expand_nodelist,
    joining_address,
    name_hosts,
    order_hosts,
    own_addresses,
    read_ip_config,
)
from tests.unit.fuzzing import damaged, examples, success_or_one_sentence


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[08-11]", ["node08", "node09", "node10", "node11"]),
        ("a[1,3-4],b7,login", ["a1", "a3", "a4", "b7", "login"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("gpu-a-[1-2].site.org", ["gpu-a-1.site.org", "gpu-a-2.site.org"]),
    ],
)
def test_nodelist(nodelist, names):
    assert expand_nodelist(nodelist) == names


@pytest.mark.parametrize("nodelist", ["node[1-", "node[a-b]", "node[]"])
def test_malformed_nodelist(nodelist):
    with pytest.raises(UserError, match="cannot read"):
        expand_nodelist(nodelist)


def test_hosts_come_in_slurms_order():
    assert order_hosts(["n2", "n2", "n1", "n1"], None) == ["n2", "n1"]
    assert order_hosts(["n2", "n2", "n1", "n1"], "n[1-2]") == ["n1", "n2"]


@pytest.mark.parametrize(
    ("rank_hosts", "nodelist", "sentence"),
    [
        (["n1", "n1"], "n[1-2]", "no rank runs on n2"),
        (["n1", "n1", "x", "x"], "n[1-2]", "ranks run on x"),
    ],
)
def test_hosts_that_differ_from_slurms(rank_hosts, nodelist, sentence):
    with pytest.raises(UserError, match=sentence):
        order_hosts(rank_hosts, nodelist)


def test_hosts_that_slurm_calls_otherwise_come_as_they_are():
    assert order_hosts(["ip-2", "ip-2", "ip-1", "ip-1"], "n[1-2]") == ["ip-2", "ip-1"]
    with pytest.raises(UserError, match="ranks run on ip-2"):
        order_hosts(["ip-2", "ip-2"], "n[1-2]")


@pytest.mark.parametrize(
    ("system_names", "slurm_names", "nodelist", "names"),
    [
        (["n1", "n2"], [None, None], None, ["n1", "n2"]),
        (["n1", "n2"], ["n1", "n2"], "n[1-2]", ["n1", "n2"]),
        # Copied from the batch host to every rank.
        (["n1", "n1", "n2", "n2"], ["n1"] * 4, "n[1-2]", ["n1", "n1", "n2", "n2"]),
        (["n1", "n2"], ["n1", "n1"], "n1", ["n1", "n2"]),
        # Fully qualified here, short there.
        (["n1.site", "n2.site"], ["n1", "n1"], "n[1-2]", ["n1", "n2"]),
        (["n1", "n2"], [None, None], "n[1-2].site", ["n1.site", "n2.site"]),
        (["n1.here", "n2.here"], [None, None], "n[1-2].there", ["n1.here", "n2.here"]),
        (["n1"], [None], "n1.here,n1.there", ["n1"]),
        # Slurm has its own names for hosts, and tells them to every rank, or to none.
        (["ip-7", "ip-8"], ["n1", "n2"], "n[1-2]", ["n1", "n2"]),
        (["localhost", "localhost"], ["n1", "n2"], "n[1-2]", ["n1", "n2"]),
        (["ip-7", "ip-8"], ["n1", "n1"], "n[1-2]", ["ip-7", "ip-8"]),
    ],
)
def test_names_of_hosts(system_names, slurm_names, nodelist, names):
    assert name_hosts(system_names, slurm_names, nodelist) == names


def eth(last, speed=1000):
    return Address("eth0", f"10.0.0.{last}", "10.0.0.0/24", speed)


def ib(last, speed=100_000):
    return Address("ib0", f"10.1.0.{last}", "10.1.0.0/24", speed)


DOCKER = Address("docker0", "172.17.0.1", "172.17.0.0/16", 1_000_000)


def test_the_fastest_network_that_joins_all_hosts():
    both = {"a": [DOCKER, eth(1), ib(1)], "b": [ib(2), DOCKER, eth(2)]}
    assert choose_addresses(["a", "b"], both, None) == [ib(1), ib(2)]
    one_without = {"a": [DOCKER, eth(1), ib(1)], "b": [DOCKER, eth(2)]}
    assert choose_addresses(["a", "b"], one_without, None) == [eth(1), eth(2)]


def routed(interface, last, speed=0):
    return Address(interface, f"10.2.0.{last}", f"10.2.0.{last}/32", speed)


def test_addresses_without_a_network():
    """As clouds have them: what they have in common is the interface."""
    cloud = {"a": [DOCKER, routed("tun0", 3), routed("ens4", 1, 10)], "b": [routed("ens4", 2, 10)]}
    assert choose_addresses(["a", "b"], cloud, None) == [cloud["a"][2], cloud["b"][0]]
    # A network that both have is surer, whatever the speeds.
    both = {"a": [routed("ens4", 1, 9000), eth(1)], "b": [eth(2), routed("ens4", 2, 9000)]}
    assert choose_addresses(["a", "b"], both, None) == [eth(1), eth(2)]
    with pytest.raises(UserError, match="no network joins all hosts"):
        choose_addresses(["a", "b"], {"a": [routed("ens4", 1)], "b": [routed("ens5", 2)]}, None)


@pytest.mark.parametrize("wanted", ["eth0", "10.0.0.0/24", "10.0.0.7/24"])
def test_the_wanted_interface(wanted):
    both = {"a": [eth(1), ib(1)], "b": [eth(2), ib(2)]}
    assert choose_addresses(["a", "b"], both, wanted) == [eth(1), eth(2)]


def test_no_address_to_choose():
    with pytest.raises(UserError, match="no network joins all hosts"):
        choose_addresses(["a", "b"], {"a": [DOCKER], "b": [DOCKER]}, None)
    with pytest.raises(UserError, match="b has no address on --interface ib0; it has eth0"):
        choose_addresses(["a", "b"], {"a": [ib(1)], "b": [eth(2)]}, "ib0")


def test_own_addresses_can_be_bound():
    for address in own_addresses():
        with socket.socket() as probe:
            probe.bind((address.ip, 0))


def test_emulated_hosts_have_addresses_of_their_own():
    assert [a.ip for a in emulated_addresses(2)] == ["127.0.0.1", "127.0.0.2"]
    with pytest.raises(UserError):
        emulated_addresses(300)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "is empty"), ("10.0.0.1\nnode2\n", "line 2 .* starts with 'node2'")],
)
def test_unreadable_ip_config(tmp_path, text, sentence):
    path = tmp_path / "ip_config.txt"
    with pytest.raises(UserError, match="cannot read --ip-config"):
        read_ip_config(path)
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_ip_config(path)


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        (["10.0.0.1"], "lists 1 hosts but the job has 2"),
        (["10.0.0.2", "10.0.0.1"], "line 1 .* is 10.0.0.2, which belongs to b, but part 0"),
        (["10.0.0.1", "10.0.0.9"], "line 2 .* belongs to no host"),
    ],
)
def test_ip_config_that_does_not_fit_the_job(tmp_path, listed, sentence):
    addresses = {"a": ["10.0.0.1", "10.1.0.1"], "b": ["10.0.0.2"]}
    check_ip_config(tmp_path, ["10.1.0.1", "10.0.0.2"], ["a", "b"], addresses)
    with pytest.raises(UserError, match=sentence):
        check_ip_config(tmp_path, listed, ["a", "b"], addresses)


ETH0 = Address("eth0", "10.1.0.4", "10.1.0.0/16", 1000)
IB0 = Address("ib0", "10.2.0.4", "10.2.0.0/16", 100_000)


@pytest.mark.parametrize(
    ("own", "names", "found"),
    [
        ([ETH0, IB0], {"a": "10.1.0.4", "b": "10.1.0.5"}, ETH0),
        ([ETH0, IB0], {"a": "10.2.0.4", "b": "10.2.0.5"}, IB0),
        ([ETH0, IB0], {"a": "127.0.1.1", "b": "10.2.0.5"}, IB0),  # as Debian names itself
        ([ETH0, IB0], {"a": None, "b": "10.2.0.5"}, IB0),
        ([ETH0, IB0], {"a": "10.1.0.4"}, ETH0),
        ([ETH0, IB0], {"a": "127.0.1.1", "b": None}, None),
        ([ETH0, IB0], {"a": "192.0.2.1"}, None),
        ([], {"a": "10.1.0.4"}, None),
    ],
)
def test_the_network_of_the_hosts_names(own, names, found):
    assert joining_address(own, names, names.get) == found


@pytest.mark.parametrize(
    ("nodelist", "sentence"),
    [
        ("n[1-999999999999]", "more than 65,536 hosts"),
        ("r[1-1000]n[1-1000]", "more than 65,536 hosts"),
        ("n[1-60000],m[1-60000]", "more than 65,536 hosts"),
        ("n[5-1]", "cannot read"),
        ("n[1-2]]", "cannot read"),
        ("n]1-2[", "cannot read"),
        ("n[٣]", "cannot read"),
        ("n[" + "9" * 5000 + "]", "cannot read"),
        ("[" * 200_000, "cannot read"),
        ("a" + "[1]" * 3 + "[", "cannot read"),
    ],
)
def test_nodelists_that_no_job_has(nodelist, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        expand_nodelist(nodelist)
    assert len(str(caught.value)) < 500


def test_a_long_nodelist_is_read_in_one_pass():
    assert len(expand_nodelist("n," * 60_000)) == 60_000
    assert expand_nodelist("," * 200_000) == []


@examples(300)
@given(nodelist=st.text(alphabet="na1290[]-,. ٣", max_size=40) | st.text(max_size=20))
def test_any_nodelist(nodelist):
    with success_or_one_sentence():
        expand_nodelist(nodelist)


@examples(150)
@given(content=damaged(b"10.0.0.1\n10.0.0.2 30050\n\n10.0.0.3\n") | st.binary(max_size=60))
def test_any_list_of_addresses(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "hosts.txt"
    path.write_bytes(content)
    with success_or_one_sentence():
        read_ip_config(path)


def test_an_endless_list_of_addresses():
    with pytest.raises(UserError, match="longer than any list of hosts"):
        read_ip_config(Path("/dev/zero"))
