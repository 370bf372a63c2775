"""What a run says of itself in run.json: where it runs, on what graph, in which parts.

Runs on trainer 0 and in the local run. docs/run-directory.md explains every field.
"""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from distsage.config import job_name
from distsage.kernels.level import processor_name
from distsage.limits import usable_cores
from distsage.partitioning.kept_plans import Expectation
from distsage.partitioning.manifest import Manifest
from distsage.train.checkpoint import Origin

SCHEMA = 1
"""Of all files of a run directory; rises when a reader of the last one would go wrong."""

_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_MEM_PER_NODE",
    "SLURM_MEM_PER_CPU",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_END_TIME",
)


def about(
    origin: Origin,
    hosts: Sequence[str],
    num_steps: int,
    manifest: Manifest | None,
    expected: Expectation | None = None,
) -> dict[str, Any]:
    """What run.json holds.

    Args:
        origin: which run it is.
        hosts: names, in the order of the parts.
        num_steps: of an epoch.
        manifest: of the parts; None for a graph in one piece.
        expected: what the job is expected to take; None where nobody has said.
    """
    return {
        "schema": SCHEMA,
        "command": origin.command,
        "started": round(time.time(), 3),
        "job": job_name(),
        "graph": {"name": origin.graph, "task": origin.task, **origin.content},
        "hosts": list(hosts),
        "trainers": origin.trainers,
        "steps_per_epoch": num_steps,
        "device": origin.device,
        "environment": {
            "versions": dict(origin.versions),
            "processor": processor_name(),
            "kernels": origin.kernels,
            "cores": usable_cores(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "slurm": {name: os.environ[name] for name in _SLURM if name in os.environ},
        },
        "partition": None if manifest is None else _partition_report(manifest),
        "expected": None if expected is None else asdict(expected),
    }


def own_host() -> list[str]:
    """The hosts of a run on this machine alone."""
    return [socket.gethostname()]


def _partition_report(manifest: Manifest) -> dict[str, Any]:
    return {
        "edge_cut": manifest.edge_cut,
        "edges": manifest.num_edges,
        "parts": [
            {
                "nodes": part.num_nodes,
                "edges": part.num_edges,
                "halo_nodes": part.halo_nodes,
                "cut_edges": part.cut_edges,
                "train_nodes": part.train_nodes,
                "bytes": part.bytes,
            }
            for part in manifest.parts
        ],
    }
