"""What DGL reads: its built-in datasets and its graph files.

Runs on the login host and in the local run. DGL is imported when a function is called, since it
takes seconds. On disk, as DGL itself has it: `ROOT/reddit_69f818f5/`, `ROOT/cora_v2_HASH/`, ...,
where HASH comes from the download's address.

Two seams to DGL 1.1.3:
- `_download`: DGL tries again and again, without a time limit. `fetch_zip` takes its place.
- `_pickle_load`: the Planetoid files (cora, citeseer, pubmed) are pickles, and unpickling what was
  downloaded runs whatever it says. `_ArrayUnpickler` makes arrays and nothing else; and since
  DGL's own cache of these sets holds a pickle too, it is neither read nor written.
"""

import codecs
import collections
import copyreg
import importlib
import logging
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse

from distsage.data.download import fetch_zip
from distsage.data.raw import RawGraph
from distsage.data.validate import MASKS
from distsage.errors import UserError

if TYPE_CHECKING:
    import dgl

logger = logging.getLogger(__name__)


def read_builtin(name: str, root: Path) -> RawGraph:
    """Read one of DGL's datasets below `root`; download it when its directory is not there.

    Original ids are DGL's, which for Reddit are not those of the files: DGL renumbers the nodes.

    Raises:
        UserError: it cannot be downloaded, or what is on disk is incomplete or damaged.
    """
    _import_dgl()
    import dgl.data

    class Fetched(dgl.data.DGLDataset):
        def _download(self) -> None:
            if not os.path.exists(self.raw_path):
                fetch_zip(name, self.url, Path(self.raw_path))

    class Reddit(Fetched, dgl.data.RedditDataset):
        def save(self) -> None:
            # A shared directory that only its owner may write is read each time anew.
            if os.access(self.save_path, os.W_OK):
                # Renamed when it is whole: DGL crashes on a cache that ends early.
                cache = Path(self.save_path) / "dgl_graph.bin"
                temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
                dgl.save_graphs(str(temporary), self._graph)
                os.replace(temporary, cache)

    class Planetoid(Fetched, dgl.data.CitationGraphDataset):
        def has_cache(self) -> bool:
            return False

        def save(self) -> None:
            pass

    dgl.data.citation_graph._pickle_load = _load_arrays
    logger.info("reading %s below %s", name, root)
    try:
        if name == "reddit":
            dataset = Reddit(raw_dir=str(root))
        else:
            dataset = Planetoid(name, raw_dir=str(root), verbose=False)
    except UserError:
        raise
    except (
        *(OSError, EOFError, ValueError, KeyError, IndexError, dgl.DGLError),
        *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise UserError(
            f"{name} cannot be read below {root} ({_first_line(error)}); remove its directory to "
            "have it downloaded again"
        ) from error
    return _raw(name, dataset[0], int(dataset.num_classes))


def read_dgl_file(path: Path) -> RawGraph:
    """Read the one graph of a file that `dgl.save_graphs` wrote.

    Node data: `feat` or `features`; `label` or `labels`; `train_mask`, `val_mask` or `valid_mask`,
    and `test_mask`, all three or none.

    Raises:
        UserError: unreadable, several graphs, several node or edge types, or node data missing.
    """
    _import_dgl()
    import dgl

    # DGL reads part of a file that ends early and then crashes the process, some of the time only
    # when it ends: let another process try it first.
    trial = [sys.executable, "-c", "import dgl, sys; dgl.load_graphs(sys.argv[1])", str(path)]
    if subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True).returncode != 0:
        raise UserError(
            f"{path} cannot be read as a DGL graph: it is damaged, or another kind of file"
        )
    graphs, _ = dgl.load_graphs(str(path))
    if len(graphs) != 1 or len(graphs[0].ntypes) != 1 or len(graphs[0].etypes) != 1:
        raise UserError(
            f"{path} holds {len(graphs)} graphs, or one with several types of nodes or edges; "
            "save one homogeneous graph"
        )
    return _raw(str(path), graphs[0], None)


def _raw(origin: str, graph: "dgl.DGLGraph", num_classes: int | None) -> RawGraph:
    data = {name: tensor.numpy() for name, tensor in graph.ndata.items()}

    def find(*names: str) -> np.ndarray:
        for name in names:
            if name in data:
                return data[name]
        raise UserError(
            f"{origin} has no node data {' or '.join(names)}; it has {', '.join(data) or 'none'}"
        )

    if "valid_mask" in data:
        data["val_mask"] = data["valid_mask"]
    src, dst = (ends.numpy() for ends in graph.edges())
    return RawGraph(
        origin=origin,
        num_nodes=graph.num_nodes(),
        src=src,
        dst=dst,
        features=find("feat", "features"),
        labels=find("label", "labels"),
        masks={name: data[name] for name in MASKS if name in data},
        num_classes=num_classes,
    )


def _import_dgl() -> None:
    """Import DGL without its notice about a backend and the file that it writes beside it."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    importlib.import_module("dgl")


def _first_line(error: Exception) -> str:
    """DGL's messages carry C++ stacks."""
    return str(error).partition("\n")[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Makes numpy arrays, CSR matrices and plain containers.

    The module that a pickle names is ignored, so that those of any version of numpy, scipy and
    Python resolve to today's classes.
    """

    _CLASSES: ClassVar[dict[str, Any]] = {
        "_reconstruct": np.zeros(0).__reduce__()[0],
        "scalar": np.float64(0).__reduce__()[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
        "csr_matrix": scipy.sparse.csr_matrix,
        "defaultdict": collections.defaultdict,
        "_reconstructor": copyreg.__dict__["_reconstructor"],
        "encode": codecs.encode,
        "object": object,
        "list": list,
    }

    def find_class(self, module: str, name: str) -> Any:
        if name not in self._CLASSES:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which is no array")
        return self._CLASSES[name]


def _load_arrays(stream: IO[bytes]) -> Any:
    return _ArrayUnpickler(stream, encoding="latin1").load()
