"""A stranger at the ports of a job that trains: it ends well, and its losses stay the same.

DGL's ports have tests of their own; those of MPI and its daemons are named in docs/trust.md.
"""

import pickle
import resource
import socket
import struct
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from conftest import Partitioned, planted
from jobs import Job, losses, train, train_arguments

from distsage.launch.ports import LAST_PORT

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]

EPOCHS = 400
MANY = 1_100
QUICK = ("--num-hidden", 16, "--batch-size", 40, "--fan-out", "4,6", "--num-workers", 1)
QUICK += ("--num-epochs", EPOCHS, "--eval-every", 50)
SAID = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 20,
    "a truncated frame": struct.pack("<Q", 4096) + b"x" * 10,
    "a huge length": struct.pack("<Q", 2**62) + b"x" * 100,
    "a negative length": struct.pack("<q", -1) + b"x" * 100,
    "a pickle": pickle.dumps({"told": True}),
    "a request of TCPStore": b"\x00" + struct.pack("<I", 0x3C85F7CE) + b"\x0a\x00\x00\x00\x00",
}


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """Where a process listens. The ports of DGL's servers, and MPI's, have lower numbers."""
    found = [one.laddr for one in process.net_connections("tcp") if one.status == "LISTEN"]
    any_address = ("0.0.0.0", "::")
    return [
        ("127.0.0.1" if ip in any_address else ip, port) for ip, port in found if port >= LAST_PORT
    ]


def test_a_job_trains_whatever_strangers_say(partitioned: Partitioned, tmp_path: Path) -> None:
    parts = partitioned(planted(), 2)
    train(4, parts, tmp_path / "undisturbed", *QUICK, hosts=2)
    # As many descriptors as accounts mostly have: strangers take them all.
    limit = ("prlimit", "--nofile=1024")
    job = Job(4, *train_arguments(parts, tmp_path / "run", *QUICK, hosts=2), within=limit)
    job.trains()
    ranks = [psutil.Process(pid) for _, pid in sorted(job.rank_processes().items())]
    watchers = [address for rank in ranks for address in listening(rank.parent())]
    trainers = [address for rank in ranks[1::2] for address in listening(rank)]
    held = []
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for address in (*watchers, *trainers):
        for said in SAID.values():
            connection = socket.create_connection(address, 10)
            with suppress(ConnectionError):  # who is called hangs up
                connection.sendall(said)
            held.append(connection)
        held += [socket.create_connection(address, 10) for _ in range(MANY)]
    assert job.wait().stderr == ""
    assert [ip for ip, _ in watchers] == ["127.0.0.1"] * 2 + ["127.0.0.2"] * 2
    # gloo listens on the first address of its interface, here the machine's own.
    assert [ip for ip, _ in trainers] == ["127.0.0.1"] * 2
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")
    for connection in held:
        connection.close()


def test_no_port_answers_who_asks_for_names_of_the_trainers(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    """torch.distributed's own rendezvous reads, sets and deletes for whoever asks."""
    from torch.distributed import TCPStore

    job = Job(4, *train_arguments(partitioned(planted(), 2), tmp_path, *QUICK, hosts=2))
    job.trains()
    trainers = [psutil.Process(pid) for rank, pid in job.rank_processes().items() if rank % 2]
    addresses = [address for trainer in trainers for address in listening(trainer)]
    answers = []
    for ip, port in addresses:
        with suppress(RuntimeError):
            TCPStore(ip, port, is_master=False, timeout=timedelta(seconds=2)).set("a", "b")
            answers.append((ip, port))
    assert job.wait().stderr == ""
    assert addresses
    assert answers == []
