"""DGL's built-in datasets: Reddit, and the citation graphs of Planetoid.

Runs on the login host and in the local run. DGL is imported when a function is called, since it
takes seconds. On disk, as DGL itself has it: `ROOT/reddit_69f818f5/`, `ROOT/cora_v2_HASH/`, ...,
where HASH comes from the download's address.

Seams to DGL 1.1.3:
- `_download`: DGL tries again and again, without a time limit. `fetch_zip` takes its place.
- `process`: what the files say is checked before DGL's code, which believes it, sees them.
- `load` of Reddit: DGL's own graph file is read by another process (`dgl_file`).
- `_pickle_load`: the Planetoid files (cora, citeseer, pubmed) are pickles, and unpickling what was
  downloaded runs whatever it says. `distsage.data.pickles` makes arrays and nothing else; and since
  DGL's own cache of these sets holds a pickle too, it is neither read nor written.
"""

import importlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse

from distsage.data.dgl_file import raw_graph, read_dgl_file
from distsage.data.download import Source, fetch_zip
from distsage.data.npy import open_arrays
from distsage.data.npz import csr_of
from distsage.data.pickles import load_arrays
from distsage.data.raw import RawGraph
from distsage.errors import UserError

logger = logging.getLogger(__name__)

_MIB, _GIB = 1 << 20, 1 << 30
# No checksum of the citation graphs' archives has been published.
_MOST_BYTES = {"reddit": 16 * _GIB, "cora": 256 * _MIB, "citeseer": 256 * _MIB, "pubmed": _GIB}
_SHA256 = {"reddit": "9a16353c28f8ddd07148fc5ac9b57b818d7911ea0fbe9052d66d49fc32b372bf"}


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
                source = Source(self.url, _MOST_BYTES[name], _SHA256.get(name))
                fetch_zip(name, source, Path(self.raw_path))

    class Reddit(Fetched, dgl.data.RedditDataset):
        cached: RawGraph | None = None

        def process(self) -> None:
            _check_reddit(Path(self.raw_path))
            super().process()

        def load(self) -> None:
            # DGL reads the files anew where this raises anything.
            self.cached = read_dgl_file(Path(self.save_path) / "dgl_graph.bin")

        def save(self) -> None:
            # A shared directory that only its owner may write is read each time anew.
            if os.access(self.save_path, os.W_OK):
                # Renamed when it is whole: DGL crashes on a cache that ends early.
                cache = Path(self.save_path) / "dgl_graph.bin"
                temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
                dgl.save_graphs(str(temporary), self._graph)
                os.replace(temporary, cache)

    class Planetoid(Fetched, dgl.data.CitationGraphDataset):
        def process(self) -> None:
            _check_planetoid(Path(self.raw_path), self.name)
            super().process()

        def has_cache(self) -> bool:
            return False

        def save(self) -> None:
            pass

    dgl.data.citation_graph._pickle_load = load_arrays
    logger.info("reading %s below %s", name, root)
    try:
        if name == "reddit":
            dataset = Reddit(raw_dir=str(root))
        else:
            dataset = Planetoid(name, raw_dir=str(root), verbose=False)
    except (OSError, ValueError, dgl.DGLError) as error:
        raise UserError(
            f"{name} cannot be read below {root} ({_first_line(error)}); remove its directory to "
            "have it downloaded again"
        ) from error
    if name == "reddit" and dataset.cached is not None:
        return replace(dataset.cached, origin=name, num_classes=int(dataset.num_classes))
    graph = dataset[0]
    data = {key: tensor.numpy() for key, tensor in graph.ndata.items()}
    src, dst = (ends.numpy() for ends in graph.edges())
    return raw_graph(
        name, graph.num_nodes(), src, dst, data, data, num_classes=int(dataset.num_classes)
    )


def _check_reddit(directory: Path) -> None:
    """See that Reddit's files hold what DGL's code takes for granted.

    Raises:
        OSError, ValueError: they do not.
    """
    with open_arrays(directory / "reddit_graph.npz") as file:
        row, col, shape, values = (file.read(key) for key in ("row", "col", "shape", "data"))
        if file.read("format").tolist() not in (b"coo", "coo"):
            raise ValueError("reddit_graph.npz holds another kind of matrix")
    with open_arrays(directory / "reddit_data.npz") as file:
        feature, label, node_types = (file.read(key) for key in ("feature", "label", "node_types"))
    num_nodes = len(feature) if feature.ndim == 2 else 0
    for ends in (row, col):
        if ends.ndim != 1 or ends.dtype.kind not in "iu" or ends.shape != values.shape:
            raise ValueError("reddit_graph.npz holds no list of edges")
        if len(ends) and (ends.min() < 0 or ends.max() >= num_nodes):
            raise ValueError(f"an edge leads out of the {num_nodes} nodes")
    if shape.tolist() != [num_nodes, num_nodes] or values.dtype.kind not in "biuf":
        raise ValueError(f"reddit_graph.npz is no matrix of the {num_nodes} nodes")
    if feature.dtype.kind not in "biuf" or feature.size == 0:
        raise ValueError("the features are no matrix of numbers")
    for ids in (label, node_types):
        if ids.shape != (num_nodes,) or ids.dtype.kind not in "iu":
            raise ValueError("the labels or types are no integer for each node")


def _check_planetoid(directory: Path, name: str) -> None:
    """See that a citation graph's files hold what DGL's code takes for granted.

    Raises:
        OSError, ValueError: they do not.
    """
    loaded = {}
    for part in ("x", "y", "tx", "ty", "allx", "ally", "graph"):
        with open(directory / f"ind.{name}.{part}", "rb") as stream:
            loaded[part] = load_arrays(stream)
    with open(directory / f"ind.{name}.test.index", "rb") as stream:
        lines = stream.read(_MIB).split()
    if not lines or any(not line.isdigit() or len(line) > 9 for line in lines):
        raise ValueError("test.index is no list of nodes")
    test = [int(line) for line in lines]

    for part in ("x", "tx", "allx"):
        _check_bags(part, loaded[part])
    for part in ("y", "ty", "ally"):
        values = loaded[part]
        if (
            not isinstance(values, np.ndarray)
            or values.ndim != 2
            or values.dtype.kind not in "biuf"
        ):
            raise ValueError(f"{part} is no matrix of labels")
    if len({loaded[part].shape[1] for part in ("x", "tx", "allx")}) > 1:
        raise ValueError("the features have different columns")
    if len({loaded[part].shape[1] for part in ("y", "ty", "ally")}) > 1:
        raise ValueError("the labels have different columns")
    rows = {part: values.shape[0] for part, values in loaded.items() if part != "graph"}
    first = rows["allx"]
    if rows["ally"] != first or not 0 < rows["y"] == rows["x"] <= first:
        raise ValueError("there are not as many rows of labels as of features")
    if not len(test) == len(set(test)) == rows["tx"] == rows["ty"] or min(test) != first:
        raise ValueError("test.index does not name the rows of the test nodes")

    graph = loaded["graph"]
    if not isinstance(graph, dict) or not all(isinstance(ends, list) for ends in graph.values()):
        raise ValueError("graph is no list of neighbours")
    nodes = {*graph, *(end for ends in graph.values() for end in ends)}
    if any(type(node) is not int for node in nodes) or nodes != set(range(len(nodes))):
        raise ValueError("the nodes of graph are not numbered 0, 1, ...")
    if max(test) != len(nodes) - 1 or rows["y"] + 500 > len(nodes):
        raise ValueError(f"the files do not belong to the {len(nodes)} nodes of graph")
    if name != "citeseer" and first + len(test) != len(nodes):
        raise ValueError(f"there are no features for each of the {len(nodes)} nodes")


def _check_bags(part: str, matrix: object) -> None:
    """See that a CSR matrix stays inside itself: compiled code follows its indices."""
    if not isinstance(matrix, scipy.sparse.csr_matrix):
        raise ValueError(f"{part} is no CSR matrix")
    try:
        fields = matrix.data, matrix.indices, matrix.indptr, np.array(matrix.shape)
    except (AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"{part} is no whole CSR matrix") from error
    if not all(isinstance(field, np.ndarray) for field in fields):
        raise ValueError(f"{part} is no CSR matrix")
    csr_of(*fields)
    indptr, columns = fields[2], fields[1]
    if indptr[0] != 0 or indptr[-1] != len(columns) or (np.diff(indptr) < 0).any():
        raise ValueError(f"the rows of {part} do not follow each other")
    if len(columns) and (columns.min() < 0 or columns.max() >= matrix.shape[1]):
        raise ValueError(f"a value of {part} lies outside its {matrix.shape[1]} columns")


def _import_dgl() -> None:
    """Import DGL without its notice about a backend and the file that it writes beside it."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    importlib.import_module("dgl")


def _first_line(error: Exception) -> str:
    """DGL's messages carry C++ stacks."""
    return str(error).partition("\n")[0]
