"""Ports that belong to one job. Runs on every host's first rank."""

import random
import socket

# Below Linux's ephemeral range (32768 and up), where outgoing connections get their ports.
FIRST_PORT, LAST_PORT = 20000, 32000


def is_free(ip: str, port: int) -> bool:
    """Whether a server could listen on `ip:port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As DGL's servers do: a port whose last connections linger in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError:
            return False
        return True


def find_free_ports(ip: str, count: int, job: str) -> int:
    """Find `count` neighbouring free ports and return the first.

    The ports are tried in an order drawn from the job's name, so that jobs that start on one host
    at the same moment try different ones first.

    Raises:
        OSError: no such run of ports is free.
    """
    candidates = list(range(FIRST_PORT, LAST_PORT, count))
    random.Random(f"{job} {ip}").shuffle(candidates)
    for first in candidates:
        if all(is_free(ip, port) for port in range(first, first + count)):
            return first
    raise OSError(f"no {count} neighbouring free ports on {ip} from {FIRST_PORT} to {LAST_PORT}")
