"""The network that MPI is to start the ranks over: `python -m distsage.launch.job_network NODES`.

Prints interface and network, or nothing where the hosts' names do not tell. Run by the batch script
on its host, before any rank is there to be asked; the ranks themselves choose an address when they
know each other's (`distsage.launch.hosts.choose_addresses`).
"""

import socket
import sys

from distsage.launch.hosts import expand_nodelist, joining_address, own_addresses


def _look_up(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


if __name__ == "__main__":
    found = joining_address(own_addresses(), expand_nodelist(sys.argv[1]), _look_up)
    if found is not None:
        print(found.interface, found.network)
