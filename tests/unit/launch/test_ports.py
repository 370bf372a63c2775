"""Ports belong to one job, and nobody can take one between its choice and its use."""

import socket

import pytest

from distsage.launch import ports
from distsage.launch.ports import FIRST_PORT, LAST_PORT, listen


def test_a_port_in_use_is_passed_by():
    with listen("127.0.0.1", "job") as first, listen("127.0.0.1", "job") as second:
        taken = [listener.getsockname() for listener in (first, second)]
        assert len(set(taken)) == 2
        assert all(ip == "127.0.0.1" and FIRST_PORT <= port < LAST_PORT for ip, port in taken)
        socket.create_connection(taken[1]).close()


def test_jobs_look_in_different_places():
    found = set()
    for job in range(20):
        with listen("127.0.0.1", f"job{job}") as listener:
            found.add(listener.getsockname()[1])
    assert len(found) > 10


def test_no_free_port_is_named(monkeypatch):
    with listen("127.0.0.1", "job") as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST_PORT", port)
        monkeypatch.setattr(ports, "LAST_PORT", port + 1)
        with pytest.raises(OSError, match=f"no free port on 127.0.0.1 from {port} to"):
            listen("127.0.0.1", "job")
