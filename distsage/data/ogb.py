"""The node classification sets of the Open Graph Benchmark.

Runs on the login host and in the local run. ogb's table of datasets and its readers of raw files
are used; its dataset class is not: it asks questions on standard input, unpickles files that were
downloaded, and its second load fails with torch 2.6 and later.

On disk: `ROOT/ogbn_arxiv/{RELEASE_v1.txt, raw/, split/}`, as ogb itself has it.
"""

import contextlib
import importlib
import importlib.resources
import logging
import sys
import zipfile
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from distsage.data.download import fetch_zip
from distsage.data.raw import RawGraph
from distsage.data.validate import MASKS
from distsage.errors import UserError

logger = logging.getLogger(__name__)


def read_ogb(name: str, root: Path) -> RawGraph:
    """Read `name` below `root`; download it when its directory is not there.

    Original ids are ogb's. ogbn-products stores each edge once, and the reverse is added, as ogb
    does; the others stay directed.

    Raises:
        UserError: it cannot be downloaded, or what is on disk is incomplete or damaged.
    """
    reader = _import_reader()
    facts = _facts(name)
    directory = root / name.replace("-", "_")
    if not directory.exists():
        fetch_zip(name, facts["url"], directory)
    binary = facts["binary"] == "True"
    files = ["data.npz", "node-label.npz"] if binary else _CSV_FILES
    split = directory / "split" / facts["split"]
    for path in (
        directory / f"RELEASE_v{facts['version']}.txt",
        *(directory / "raw" / file for file in files),
        *(split / f"{part}.csv.gz" for part in ("train", "valid", "test")),
    ):
        if not path.exists():
            raise UserError(
                f"{path} is missing, so {directory} is no complete copy of {name}; bring the file, "
                "or remove the directory to have it downloaded again"
            )
    logger.info("reading %s from %s", name, directory)
    try:
        # ogb writes its progress to standard output, which belongs to our results.
        with contextlib.redirect_stdout(sys.stderr):
            if binary:
                graph = reader.read_binary_graph_raw(str(directory / "raw"))[0]
                with np.load(directory / "raw" / "node-label.npz", allow_pickle=False) as arrays:
                    labels = arrays["node_label"]
            else:
                graph = reader.read_csv_graph_raw(str(directory / "raw"))[0]
                labels = _read_csv(directory / "raw" / "node-label.csv.gz")
        masks = {
            mask: _mask(split / f"{part}.csv.gz", graph["num_nodes"])
            for mask, part in zip(MASKS, ("train", "valid", "test"), strict=True)
        }
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{directory} cannot be read as {name} ({error}); remove it to have it downloaded again"
        ) from error
    src, dst = graph["edge_index"]
    if facts["add_inverse_edge"] == "True":
        src, dst = np.concatenate((src, dst)), np.concatenate((dst, src))
    return RawGraph(
        origin=name,
        num_nodes=int(graph["num_nodes"]),
        src=src,
        dst=dst,
        features=graph["node_feat"],
        labels=labels,
        masks=masks,
        num_classes=int(facts["num classes"]),
    )


_CSV_FILES = [
    f"{stem}.csv.gz"
    for stem in ("edge", "num-node-list", "num-edge-list", "node-feat", "node-label")
]


def _import_reader() -> ModuleType:
    """ogb.io.read_graph_raw, without ogb's question to the package index for a newer version.

    The question is asked by a thread that the interpreter waits for at its end. ogb leaves it out
    when the package `outdated` cannot be imported, and None in sys.modules makes it so.
    """
    outdated = sys.modules.get("outdated")
    sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("ogb.io.read_graph_raw")
    finally:
        del sys.modules["outdated"]
        if outdated is not None:
            sys.modules["outdated"] = outdated


def _facts(name: str) -> dict[str, str]:
    """ogb's row about one dataset: url, version, split, number of classes, ..."""
    with (importlib.resources.files("ogb") / "nodeproppred/master.csv").open() as stream:
        return pd.read_csv(stream, index_col=0, dtype=str, keep_default_na=False)[name].to_dict()


def _read_csv(path: Path) -> np.ndarray:
    return pd.read_csv(path, header=None).to_numpy()


def _mask(path: Path, num_nodes: int) -> np.ndarray:
    nodes = _read_csv(path)[:, 0]
    if nodes.min() < 0 or nodes.max() >= num_nodes:
        raise UserError(f"{path} names nodes outside 0..{num_nodes - 1}")
    mask = np.zeros(num_nodes, bool)
    mask[nodes] = True
    return mask
