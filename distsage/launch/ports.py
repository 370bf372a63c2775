"""Ports that belong to one job. Runs on server ranks, and on every host's first rank."""

import random
import socket

# Below Linux's ephemeral range (32768 and up), where outgoing connections get their ports.
FIRST_PORT, LAST_PORT = 20000, 32000
# So many connections may wait to be taken in; the system may allow fewer.
_BACKLOG = 1024


def listen(ip: str, job: str) -> socket.socket:
    """Listen on a free port of this host's address `ip`.

    The ports are tried in an order drawn from the job's name, so that jobs that start on one host
    at the same moment try different ones first.

    Raises:
        OSError: no port is free.
    """
    ports = list(range(FIRST_PORT, LAST_PORT))
    random.Random(f"{job} {ip}").shuffle(ports)
    for port in ports:
        try:
            return socket.create_server((ip, port), backlog=_BACKLOG)
        except OSError:  # taken
            continue
    raise OSError(f"no free port on {ip} from {FIRST_PORT} to {LAST_PORT}")
