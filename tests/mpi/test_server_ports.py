"""What a stranger does to the servers' ports of a running job changes nothing."""

import os
import pickle
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Partitioned, planted
from jobs import Job, losses, train, train_arguments

pytestmark = pytest.mark.mpi

QUICK = ("--num-epochs", 3, "--num-hidden", 16, "--batch-size", 40, "--fan-out", "4,6")


class Harm:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def servers(run_dir: Path, job: Job) -> list[tuple[str, int]]:
    """Addresses of the main servers, as soon as they listen."""
    listed = run_dir / "ip_config.txt"
    job._within(120, lambda: not listed.exists())
    lines = listed.read_text().splitlines()
    return [(ip, int(port)) for ip, port in (line.split() for line in lines)]


def test_a_job_that_is_attacked_from_its_start_trains_as_ever(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    parts = partitioned(planted(), 2)
    undisturbed, run_dir, harm = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "harm"
    train(4, parts, undisturbed, *QUICK, hosts=2)
    job = Job(4, *train_arguments(parts, run_dir, *QUICK, hosts=2))
    held = []
    said = [
        b"",
        b"\x93\x00\xff" * 500,
        struct.pack("<QI", 0, 2**32 - 1) * 10,
        struct.pack("<qi", -1, -1) * 10,
        struct.pack("<q", 2**33) * 7,  # what made DGL's servers take 8 GB
        pickle.dumps(Harm(harm)) * 10,
        b"distsage rpc 1\n\0" + bytes(40),
        b"distsage rpc 1\n\0",
    ]
    for address in servers(run_dir, job):
        for data in said * 2:
            connection = socket.create_connection(address)
            connection.sendall(data)
            held.append(connection)
        held[-1].close()
        held += [socket.create_connection(address) for _ in range(1000)]
    job.trains()
    for address in servers(run_dir, job):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    job.wait()
    assert losses(run_dir) == losses(undisturbed)
    assert not harm.exists()
    noted = (run_dir / "logs" / "rank-0.txt").read_text()
    assert "dropped 127.0.0.1:" in noted
    for connection in held:
        connection.close()
