"""Stock DGL servers and clients, without distsage, train on a written directory."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distsage.data.csc import csc_from_edges
from distsage.data.graph import Graph
from distsage.partitioning.run import partition

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).with_name("stock_dgl_program.py")


def segments() -> set[str]:
    """Shared memory as stock DGL names it, for this graph."""
    return {
        name
        for name in os.listdir("/dev/shm")
        if not name.startswith("distsage.")  # of another job
        and (name.startswith("stock") or "-kvdata-" in name or "-part-policy" in name)
    }


def test_stock_servers_and_clients_train(tmp_path: Path) -> None:
    v = np.arange(40)
    src, dst = np.concatenate((v, v)), np.concatenate((v + 1, v + 2)) % 40
    graph = Graph(
        name="stock",
        topology=csc_from_edges(src, dst, 40),
        features=np.stack((v, 2 * v), 1).astype(np.float32),
        labels=v % 3,
        num_classes=3,
        train_mask=v % 4 == 0,
        val_mask=v % 4 == 1,
        test_mask=v % 4 >= 2,
    )
    parts = tmp_path / "parts"
    # Stock DGL cannot run the servers of two parts on one machine: their segments have one name.
    partition(graph, 1, parts)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ip_config = tmp_path / "ip_config.txt"
    ip_config.write_text(f"127.0.0.1 {port}\n")
    environment = os.environ | {
        "DGL_DIST_MODE": "distributed",
        "DGL_IP_CONFIG": str(ip_config),
        "DGL_CONF_PATH": str(parts / "stock.json"),
        "DGL_NUM_SERVER": "1",
        "DGL_NUM_CLIENT": "1",
        "DGL_NUM_SAMPLER": "0",
        "DGL_GRAPH_FORMAT": "csc",
        "DGL_DIST_DEBUG": "1",
        "OMP_NUM_THREADS": "1",
        "DGLBACKEND": "pytorch",
    }
    arguments = [ip_config, parts / "stock.json", parts / "original_ids.npy"]
    before = segments()
    processes = {}
    try:
        for role in ("server", "client"):
            with open(tmp_path / f"{role}.log", "w") as log:
                processes[role] = subprocess.Popen(
                    [sys.executable, str(PROGRAM), *map(str, arguments)],
                    env=environment | {"DGL_ROLE": role, "DGL_SERVER_ID": "0"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        statuses = {role: processes[role].wait(timeout=90) for role in ("client", "server")}
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        logs = {role: (tmp_path / f"{role}.log").read_text() for role in processes}
        print(logs)
    assert statuses == {"client": 0, "server": 0}
    (line,) = (line for line in logs["client"].splitlines() if line.startswith("losses "))
    losses = [float(loss) for loss in line.split()[1:]]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert segments() <= before
