"""Name or path -> Graph: the one door through which data enter.

Runs on the login host and in the local run. The loaders (ogb, builtin, npz, tables, synthetic)
read; what they read is checked and put in shape here. DGL, ogb and torch are imported only for
the datasets that need them.
"""

import difflib
import logging
import os
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal

import scipy.sparse

from distsage.data.csc import csc_from_edges, sorting_bytes, symmetrise
from distsage.data.dense import collect
from distsage.data.encoding import Encoding, Fill, divides_rows, encode
from distsage.data.graph import Graph
from distsage.data.raw import DenseRows, RawGraph, Sizes
from distsage.data.validate import (
    check_edges,
    check_features,
    check_labels,
    check_masks,
    draw_masks,
    parse_split,
    row_normalised,
    take_masks,
)
from distsage.errors import UserError
from distsage.limits import free_memory, require_memory
from distsage.progress import elapsed

logger = logging.getLogger(__name__)

_OGB = {name.lower(): name for name in ("ogbn-products", "ogbn-arxiv", "ogbn-papers100M")}
_BUILTIN = ("reddit", "cora", "citeseer", "pubmed")
_SYNTHETIC = ("synthetic", "synthetic-onehot")
# Older guides spell them so.
_ALIASES = {"ogb-product": "ogbn-products", "ogb-products": "ogbn-products"}

FeatureNorm = Literal["auto", "none", "row", "standard"]


def load_graph(
    dataset: str,
    *,
    undirected: bool = False,
    split: str | None = None,
    split_index: int = 0,
    feature_norm: FeatureNorm = "auto",
    categorical: str | None = None,
    fill: Fill | None = None,
    dataset_root: Path | None = None,
    seed: int = 0,
    encoding: Encoding | None = None,
    only_masks: Collection[str] | None = None,
    scratch: Path | None = None,
) -> Graph:
    """Read, check and shape one graph.

    Blocks for as long as a download takes; a server that is silent for 10 s ends it.

    Args:
        dataset: `ogbn-products`, `ogbn-arxiv`, `ogbn-papers100M`, `reddit`, `cora`, `citeseer`,
            `pubmed`, `synthetic[:NODES[:DEGREE[:COLUMNS]]]`, `synthetic-onehot[:NODES[:DEGREE]]`;
            or the path of an `.npz` file, a DGL graph file (`.dgl` or `.bin`) or a directory of
            tables or of `.npy` files. Letter case and `_` for `-` do not matter in names; a path
            that is spelled like a name is written `./cora`.
        undirected: add the reverse of every edge and drop duplicates. Without it, edges stay as
            they are given, duplicates and self-loops included.
        split: draw the masks over the labelled nodes, such as `0.6/0.2/0.2` for train, val and
            test, instead of taking those that the data have.
        split_index: which split to take from data with several.
        feature_norm: `row` divides each row by the sum of its absolute values, `none` does not,
            `auto` does where the data are CSR, since those are bags of words; `standard` takes the
            train nodes' mean from each dense column and divides it by their deviation.
        categorical: columns of a node table that become one-hot columns, with commas between.
        fill: what a cell of a node table without a value becomes; None refuses it.
        dataset_root: where downloaded datasets lie; default $DISTSAGE_DATASETS, else
            `~/.cache/distsage/datasets`.
        seed: of the drawn masks and of the synthetic graph.
        encoding: a model's, to be applied instead of what `categorical`, `fill` and `standard`
            would learn from these data.
        only_masks: of a graph to predict for: which masks are of use, such as `("test_mask",)`, or
            none of them. Labels need not be there then; the other masks are left empty, and so is
            one that the data do not have. None: of a graph to train on, which has labels and all
            masks.
        scratch: an existing directory. Dense features that can be read in chunks are then never in
            memory as a whole: the graph has a memory map, of the file that they lie in or of one in
            this directory. Edges that memory does not hold are sorted there, too. Both are the
            same numbers as without it.

    Raises:
        UserError: everything that can be wrong with the name, the files or the data in them.
        OSError: `scratch` cannot be written.
    """
    shares = None if split is None else parse_split(split)
    raw = _read(
        dataset, dataset_root, seed, categorical, encoding, scratch, labelled=only_masks is None
    )
    origin = raw.origin
    for option, value in (("categorical", categorical), ("fill", fill)):
        if value is not None and raw.feature_names is None:
            raise UserError(
                f"--{option} is for the columns of a directory of tables, but {origin} is none"
            )
    if raw.num_nodes < 1:
        raise UserError(f"{origin} holds no nodes")
    check_edges(origin, raw.src, raw.dst, raw.num_nodes)
    both_directions = undirected or raw.one_way
    sorting = sorting_bytes(raw.num_nodes, len(raw.src), both_directions)
    in_memory = scratch is None or sorting <= free_memory()
    if in_memory:
        require_memory(sorting, f"{origin}: sorting {len(raw.src):,} edges")
    labels, num_classes = check_labels(
        origin, raw.labels, raw.num_nodes, raw.num_classes, required=only_masks is None
    )
    masks = raw.masks
    if shares is not None and (only_masks is None or only_masks):
        masks, split_index = draw_masks(origin, labels, shares, seed), 0
    train_mask, val_mask, test_mask = (
        check_masks(origin, masks, labels, split_index)
        if only_masks is None
        else take_masks(origin, masks, only_masks, raw.num_nodes, split_index)
    )
    standardise = feature_norm == "standard"
    normalise = divides_rows(feature_norm, is_sparse=scipy.sparse.issparse(raw.features))
    is_table = raw.feature_names is not None
    chunked = isinstance(raw.features, DenseRows)
    if chunked and not standardise and encoding is None and not is_table:
        features = check_features(
            origin,
            raw.features,
            raw.num_nodes,
            normalise=normalise,
            file=None if scratch is None else scratch / "features.npy",
        )
    else:
        kept = None if scratch is None else scratch / "rows.npy"
        if isinstance(raw.features, DenseRows):
            # Several passes follow, and a table may lack values that are filled.
            rows = collect(origin, raw.features, normalise=None, file=kept, missing=is_table)
            raw = replace(raw, features=rows)
        features, encoding = encode(
            raw, train_mask, standardise=standardise, fill=fill, given=encoding, scratch=scratch
        )
        if kept is not None and features is not raw.features:
            kept.unlink(missing_ok=True)
        if normalise:
            features = row_normalised(features)
    if in_memory:
        with elapsed("sorting edges"):
            topology = csc_from_edges(raw.src, raw.dst, raw.num_nodes)
            if both_directions:
                topology = symmetrise(topology)
    else:
        from distsage.data.engine import sorted_topology

        assert scratch is not None
        topology = sorted_topology(
            origin,
            raw.src,
            raw.dst,
            raw.num_nodes,
            both_directions=both_directions,
            scratch=scratch,
        )
    graph = Graph(
        name=graph_name(dataset),
        topology=topology,
        features=features,
        labels=labels,
        num_classes=num_classes,
        train_mask=train_mask,
        val_mask=val_mask,
        test_mask=test_mask,
        original_ids=raw.original_ids,
        encoding=encoding,
    )
    logger.info(
        "%s: %d nodes, %d edges, %d features, %d classes; %d train, %d val, %d test nodes",
        *(graph.name, graph.num_nodes, topology.num_edges, graph.num_features, num_classes),
        *(train_mask.sum(), val_mask.sum(), test_mask.sum()),
    )
    return graph


def graph_name(dataset: str) -> str:
    """The name of a dataset or the stem of a path, in letters, digits, `.`, `_` and `-`."""
    name = _canonical(dataset)
    if not _is_name(name):
        path = Path(dataset).resolve()
        name = path.name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "graph"


def _canonical(dataset: str) -> str:
    name = dataset.lower().replace("_", "-")
    return _OGB.get(name, _ALIASES.get(name, name))


def _is_name(name: str) -> bool:
    return name in _OGB.values() or name in _BUILTIN or name.partition(":")[0] in _SYNTHETIC


def known_sizes(dataset: str, *, undirected: bool = False) -> Sizes | None:
    """What a name, or the headers of files, tell of a graph before it is read.

    Args:
        dataset: as for `load_graph`.
        undirected: likewise.

    Returns:
        None where only reading tells, and where features are sparse.

    Raises:
        UserError: there is no such dataset.
    """
    name = _canonical(dataset)
    if name.partition(":")[0] == "synthetic":
        from distsage.data.synthetic import synthetic_sizes

        return synthetic_sizes(*_parse_synthetic(dataset, 3))
    if _is_name(name):
        return None
    path = Path(dataset).expanduser()
    _check_path(dataset, path)
    from distsage.data.npz import is_array_directory, npz_sizes

    found = None
    if path.suffix == ".npz" or is_array_directory(path):
        found = npz_sizes(path)
    elif path.is_dir():
        from distsage.data.tables import table_sizes

        found = table_sizes(path)
    if found is None:
        return None
    num_nodes, num_edges, num_features = found
    # Edges may be listed in both directions already, and those that are made undirected repeatedly.
    return Sizes(num_nodes, num_features, 0 if undirected else num_edges, 2 * num_edges)


def _read(
    dataset: str,
    dataset_root: Path | None,
    seed: int,
    categorical: str | None,
    encoding: Encoding | None,
    scratch: Path | None,
    *,
    labelled: bool,
) -> RawGraph:
    """Choose the loader."""
    name = _canonical(dataset)
    kind = name.partition(":")[0]
    if kind in _SYNTHETIC:
        from distsage.data.synthetic import make_synthetic, make_synthetic_onehot

        make = make_synthetic if kind == "synthetic" else make_synthetic_onehot
        return make(*_parse_synthetic(dataset, 3 if kind == "synthetic" else 2), seed=seed)
    if _is_name(name):
        root = dataset_root or Path(
            os.environ.get("DISTSAGE_DATASETS") or "~/.cache/distsage/datasets"
        )
        root = root.expanduser()
        if name in _BUILTIN:
            from distsage.data.builtin import read_builtin

            return read_builtin(name, root)
        from distsage.data.ogb import read_ogb

        return read_ogb(name, root)
    path = Path(dataset).expanduser()
    _check_path(dataset, path)
    from distsage.data.npz import is_array_directory, read_npz

    if path.suffix == ".npz" or is_array_directory(path):
        return read_npz(path, labelled=labelled)
    if path.is_dir():
        from distsage.data.tables import read_tables

        return read_tables(path, categorical, encoding, scratch, labelled=labelled)
    from distsage.data.dgl_file import read_dgl_file

    return read_dgl_file(path, labelled=labelled)


def _parse_synthetic(dataset: str, most: int) -> list[int]:
    """`synthetic:400000:42` -> [400000, 42]; so many numbers at most."""
    numbers = dataset.split(":")[1:]
    if len(numbers) > most or not all(number.isdecimal() for number in numbers):
        raise UserError(
            f"--dataset {dataset!r} is no synthetic graph; write synthetic, synthetic:NODES, "
            "synthetic:NODES:DEGREE or synthetic:NODES:DEGREE:COLUMNS with whole numbers, such as "
            "synthetic:400000:42; or synthetic-onehot, with no columns"
        )
    return [int(number) for number in numbers]


def _check_path(dataset: str, path: Path) -> None:
    """`path` exists, may be read and is of a kind that we read."""
    if not dataset or not path.exists():
        if path.suffix or os.sep in dataset:
            raise UserError(f"there is no file or directory {path}")
        known = [*_OGB.values(), *_BUILTIN, *_SYNTHETIC]
        near = difflib.get_close_matches(_canonical(dataset), known, n=2, cutoff=0.5)
        raise UserError(
            f"unknown dataset {dataset!r}: it is neither a path nor one of {', '.join(known)}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    if not path.is_dir() and path.suffix not in (".npz", ".dgl", ".bin"):
        raise UserError(
            f"{path} is of no kind that can be read: an .npz file, a DGL graph file (.dgl or "
            ".bin) or a directory of tables or .npy files"
        )
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read by this user")
