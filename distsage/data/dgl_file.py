"""DGL's graph files, which a process of its own reads.

DGL's reader is C++ that believes what a file says: one that is damaged ends the process, makes it
take all memory, or is only noticed when it ends. So a child reads the file and sends arrays; what
comes of that is, at worst, a sentence. Runs on the login host and in the local run; the child is
`python -m distsage.data.dgl_file FILE`, with its address space bounded by the file's size.
"""

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from distsage.data.npy import ArrayError, read_array
from distsage.data.raw import RawGraph
from distsage.data.validate import MASKS
from distsage.errors import UserError

_FEATURES = ("feat", "features")
_LABELS = ("label", "labels")
_KNOWN = (*_FEATURES, *_LABELS, *MASKS, "valid_mask")
# The child may take so long: for what it imports, and for a slow file system.
_START_S = 120.0
_BYTES_PER_S = 4 << 20
# And so much memory, in all: the file's content, and its edges in two more orders.
_MEMORY_FACTOR = 16
_SPARE_BYTES = 1 << 30
_MOST_LINE_BYTES = 1 << 20


def read_dgl_file(path: Path, *, labelled: bool = True) -> RawGraph:
    """Read the one graph of a file that `dgl.save_graphs` wrote.

    Node data: `feat` or `features`; `label` or `labels`; `train_mask`, `val_mask` or `valid_mask`,
    and `test_mask`, all three or none.

    Args:
        path: of the file.
        labelled: there have to be labels.

    Raises:
        UserError: unreadable, several graphs, several node or edge types, or node data missing.
    """
    path = path.absolute()
    command = [sys.executable, "-m", "distsage.data.dgl_file", str(path)]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    bound = threading.Timer(_START_S + path.stat().st_size / _BYTES_PER_S, child.kill)
    bound.start()
    assert child.stdout is not None
    try:
        about = json.loads(child.stdout.readline(_MOST_LINE_BYTES))
        arrays = {}
        if about["sent"]:
            arrays = {name: read_array(child.stdout, None) for name in about["sent"]}
        if child.wait() != 0:
            raise ArrayError("its reader ended early")
    except (OSError, ValueError) as error:  # ArrayError and what is no JSON are ValueErrors
        raise UserError(
            f"{path} cannot be read as a DGL graph: it is damaged, or another kind of file"
        ) from error
    finally:
        bound.cancel()
        child.kill()
        child.stdout.close()
        child.wait()
    if not about["sent"]:
        raise UserError(
            f"{path} holds {about['graphs']} graphs, or one with several types of nodes or edges; "
            "save one homogeneous graph"
        )
    src, dst = arrays.pop("src"), arrays.pop("dst")
    return raw_graph(
        str(path), about["num_nodes"], src, dst, arrays, about["names"], labelled=labelled
    )


def raw_graph(
    origin: str,
    num_nodes: int,
    src: np.ndarray,
    dst: np.ndarray,
    data: dict[str, np.ndarray],
    names: Iterable[str],
    num_classes: int | None = None,
    *,
    labelled: bool = True,
) -> RawGraph:
    """Name the parts of a graph as DGL's users name node data.

    Args:
        origin: see RawGraph, as for the others.
        num_nodes: N.
        src: `[E]`.
        dst: `[E]`.
        data: node data by name, `[N, ...]` each.
        names: of all node data that there are, for the message.
        num_classes: C, where it is known.
        labelled: there have to be labels.

    Raises:
        UserError: no features or labels.
    """

    def find(*wanted: str) -> np.ndarray:
        for name in wanted:
            if name in data:
                return data[name]
        raise UserError(
            f"{origin} has no node data {' or '.join(wanted)}; it has {', '.join(names) or 'none'}"
        )

    if "valid_mask" in data:
        data["val_mask"] = data["valid_mask"]
    has_labels = not data.keys().isdisjoint(_LABELS)
    return RawGraph(
        origin=origin,
        num_nodes=num_nodes,
        src=src,
        dst=dst,
        features=find(*_FEATURES),
        labels=find(*_LABELS) if labelled or has_labels else None,
        masks={name: data[name] for name in MASKS if name in data},
        num_classes=num_classes,
    )


def _send(path: str, out: IO[bytes]) -> None:
    """In the child: read a file and write a line about it, and arrays in numpy's format."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl

    with open("/proc/self/statm") as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()
    most = taken + _SPARE_BYTES + _MEMORY_FACTOR * os.stat(path).st_size
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    graphs, _ = dgl.load_graphs(path)
    about: dict[str, object] = {"graphs": len(graphs), "sent": []}
    arrays: dict[str, np.ndarray] = {}
    if len(graphs) == 1 and len(graphs[0].ntypes) == len(graphs[0].etypes) == 1:
        graph = graphs[0]
        src, dst = (ends.numpy() for ends in graph.edges())
        data = {name: graph.ndata[name].numpy() for name in _KNOWN if name in graph.ndata}
        arrays = {"src": src, "dst": dst, **data}
        about |= {
            "sent": list(arrays),
            "num_nodes": graph.num_nodes(),
            "names": [str(name)[:100] for name in graph.ndata][:100],
        }
    out.write(json.dumps(about).encode() + b"\n")
    for array in map(np.ascontiguousarray, arrays.values()):
        # `write_array` asks for a position, which a pipe has not.
        np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
        out.write(array.reshape(-1).view(np.uint8).data)
    out.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What DGL prints goes elsewhere.
    with os.fdopen(os.dup(1), "wb") as pipe:
        os.dup2(2, 1)
        _send(sys.argv[1], pipe)
