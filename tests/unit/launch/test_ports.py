"""Ports belong to one job and are free when they are handed out."""

import socket

from distsage.launch.ports import find_free_ports, is_free


def test_a_port_in_use_is_not_handed_out():
    first = find_free_ports("127.0.0.1", 2, "job")
    assert is_free("127.0.0.1", first)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 1))
        taken.listen()
        assert not is_free("127.0.0.1", first + 1)
        again = find_free_ports("127.0.0.1", 2, "job")
        assert {again, again + 1}.isdisjoint({first, first + 1})


def test_jobs_look_in_different_places():
    starts = {find_free_ports("127.0.0.1", 1, f"job{i}") for i in range(20)}
    assert len(starts) > 10
