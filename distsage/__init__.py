"""distsage: GraphSAGE on graphs that outgrow one machine, on Slurm clusters.

The names in `__all__` are the library. They are imported when they are first used, so that
`import distsage` brings no PyTorch, DGL or MPI with it. The command line is made of the same calls.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distsage.data.datasets import load_graph
    from distsage.data.graph import Graph, Topology
    from distsage.errors import UserError
    from distsage.partitioning.parts import Parts
    from distsage.partitioning.run import partition
    from distsage.prediction.run import TrainedModel, load_model, predict
    from distsage.train.local import train_local
    from distsage.train.records import Run, read_run

__version__ = "0.1.0"

__all__ = [
    "Graph",
    "Parts",
    "Run",
    "Topology",
    "TrainedModel",
    "UserError",
    "load_graph",
    "load_model",
    "partition",
    "predict",
    "read_run",
    "train_local",
]

_HOMES = {
    "Graph": "data.graph",
    "Parts": "partitioning.parts",
    "Run": "train.records",
    "Topology": "data.graph",
    "TrainedModel": "prediction.run",
    "UserError": "errors",
    "load_graph": "data.datasets",
    "load_model": "prediction.run",
    "partition": "partitioning.run",
    "predict": "prediction.run",
    "read_run": "train.records",
    "train_local": "train.local",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'distsage' has no attribute {name!r}")
    from distsage.kernels import level

    level.hold_to(level.chosen())  # before torch or numba is imported
    globals()[name] = value = getattr(import_module(f"distsage.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
