"""What a run of `partition` that was killed leaves behind, and how the next one goes on.

Runs on the login host, or on the hosts that partition together. Beside the output lies
`.OUTPUT.unfinished`: the results of finished stages, a mark for each, and what they were made from.
The same command goes on after the last mark; another command, or other data, starts anew. A run
that ends by itself, well or with an error, removes it; but where one of several hosts has failed,
it stays as after a kill.
"""

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from distsage import __version__
from distsage.data.encoding import Encoding
from distsage.data.graph import Graph, Topology
from distsage.data.npy import map_array, save_array
from distsage.errors import UserError
from distsage.files import own_directory, read_json, sync_directory, sync_tree, write_json
from distsage.limits import require_disk
from distsage.progress import elapsed

logger = logging.getLogger(__name__)

_ORIGIN = "origin.json"
SCRATCH = "scratch-"
"""How directories are called whose content is worth nothing to another run."""
_ROWS = ("labels", "train_mask", "val_mask", "test_mask")


class Stages:
    """The directory of an unfinished output.

    Attributes:
        folder: where stages leave their results.
        parts: the directory that becomes the output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / "parts"

    def is_done(self, stage: str) -> bool:
        """Whether a stage has left its result."""
        return self._mark(stage).exists()

    def result(self, stage: str) -> dict[str, Any]:
        """What `finish` was told."""
        return read_json(self._mark(stage))

    def finish(self, stage: str, result: Mapping[str, Any] | None = None) -> None:
        """Mark a stage as done, once its files are safe; `result` is JSON."""
        sync_tree(self.folder)
        write_json(self._mark(stage), dict(result or {}))

    def fresh(self, name: str) -> Path:
        """An empty directory, for a stage that begins."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / name).mkdir()
        return self.folder / name

    def graph(self, read: Callable[[Path], Graph]) -> Graph:
        """The graph that `read` gives, or gave to the run before; `read` may keep files where told.

        Its arrays are memory maps, but for sparse features.
        """
        if not self.is_done("graph"):
            folder = self.fresh("graph")
            graph = read(folder)
            with elapsed("keeping the graph that was read"):
                self.finish("graph", _save(graph, folder))
        return self.saved_graph()

    def saved_graph(self) -> Graph:
        """The graph that the stage "graph" has left, as `graph` gives it.

        Raises:
            UserError: its features lie in a file that this host does not see.
        """
        return _load(self.folder / "graph", self.result("graph"))

    def publish(self, output: Path) -> None:
        """Give the parts their name; `output` appears whole."""
        sync_tree(self.parts)
        os.rename(self.parts, output)
        sync_directory(output.parent)

    def _mark(self, stage: str) -> Path:
        return self.folder / f"{stage}.done"


@contextmanager
def unfinished(output: Path, origin: Mapping[str, Any] | None) -> Iterator[Stages]:
    """Yield the stages of `output`, and remove them at the end unless the process is killed.

    Args:
        output: the directory to make; it does not exist.
        origin: all that the result depends on, as JSON; None never goes on.

    Raises:
        UserError: another process makes `output`, or it cannot be written.
    """
    folder = output.with_name(f".{output.name}.unfinished")
    with own_directory(folder, "partition", "--output"):
        try:
            _take_over(folder, origin)
            yield Stages(folder)
        except (Exception, SystemExit):
            shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)


def _take_over(folder: Path, origin: Mapping[str, Any] | None) -> None:
    """Keep what an earlier run has left, if it was made from the same; note what this one is."""
    wanted = json.loads(json.dumps(origin))
    found = read_json(folder / _ORIGIN) if (folder / _ORIGIN).exists() else None
    if found is not None and found == wanted:
        logger.info(f"going on with what an earlier run has left in {folder}")
        for scratch in folder.glob(f"{SCRATCH}*"):
            # A process that outlived the run may still write there.
            shutil.rmtree(scratch, ignore_errors=True)
        return
    if found is not None:
        logger.info(f"{folder} is of other data or options: starting anew")
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "owner.txt":
            entry.unlink()
    if origin is not None:
        write_json(folder / _ORIGIN, wanted)


def origin_of(sources: Iterable[Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """What a run depends on: its options, and what it reads, by size and time of change.

    Args:
        sources: files and directories that are read; what is neither is none.
        options: all that the command takes.
    """
    files: list[Path] = []
    for source in sources:
        path = source.expanduser()
        files += path.rglob("*") if path.is_dir() else [path]
    stamps = {
        str(file.resolve()): [file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.is_file()
    }
    without = ("output", "memory", "force", "interface")
    return {
        "version": __version__,
        "options": {name: str(value) for name, value in options.items() if name not in without},
        "files": stamps,
    }


def _save(graph: Graph, folder: Path) -> dict[str, Any]:
    """Write a graph's arrays, and return where its features lie and what is no array."""
    arrays = {"indptr": graph.topology.indptr, "indices": graph.topology.indices}
    arrays |= {name: getattr(graph, name) for name in _ROWS}
    if graph.original_ids is not None:
        ids = np.asarray(graph.original_ids)
        arrays["original_ids"] = ids if ids.dtype.kind in "iu" else ids.astype(np.str_, copy=False)
    features = graph.features
    where: dict[str, Any] = {"shape": list(features.shape)}
    if isinstance(features, np.memmap):
        where |= {"file": str(features.filename), "offset": features.offset}
    elif isinstance(features, np.ndarray):
        arrays["features"] = features
    else:
        arrays |= {f"csr_{name}": getattr(features, name) for name in ("data", "indices", "indptr")}
    to_write = {
        name: array
        for name, array in arrays.items()
        if not (isinstance(array, np.memmap) and array.filename == folder / f"{name}.npy")
    }
    num_bytes = sum(array.nbytes for array in to_write.values())
    require_disk(num_bytes, folder, f"{graph.name}: keeping the graph that was read")
    for name, array in to_write.items():
        save_array(folder / f"{name}.npy", array)
    return {
        "name": graph.name,
        "num_classes": graph.num_classes,
        "arrays": list(arrays),
        "features": where,
        "encoding": None if graph.encoding is None else graph.encoding.to_json(),
    }


def _load(folder: Path, saved: Mapping[str, Any]) -> Graph:
    def array(name: str) -> np.ndarray:
        return map_array(folder / f"{name}.npy")

    where = saved["features"]
    shape = tuple(where["shape"])
    features: np.ndarray | scipy.sparse.csr_matrix
    if "file" in where:
        if not Path(where["file"]).exists():
            raise UserError(
                f"{where['file']} is not visible on {socket.gethostname()}; put the dataset on a "
                "file system that all hosts share"
            )
        features = np.memmap(where["file"], np.float32, "r", where["offset"], shape)
    elif "features" in saved["arrays"]:
        features = array("features")
    else:
        csr = (array(f"csr_{name}") for name in ("data", "indices", "indptr"))
        features = scipy.sparse.csr_matrix(tuple(csr), shape, copy=False)
    return Graph(
        name=saved["name"],
        topology=Topology(array("indptr"), array("indices")),
        features=features,
        num_classes=saved["num_classes"],
        encoding=None if saved["encoding"] is None else Encoding.from_json(saved["encoding"]),
        original_ids=array("original_ids") if "original_ids" in saved["arrays"] else None,
        **{name: array(name) for name in _ROWS},
    )
