"""What a parts directory holds and how it was made. Runs wherever parts are written or read."""

import hashlib
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from distsage.data.encoding import Encoding, divides_rows
from distsage.data.graph import Task

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
QUALITY = "quality.json"
INDPTR = "topology/indptr.npy"
INDICES = "topology/indices.npy"
ORIGINAL_IDS = "original_ids.npy"
CACHE_RANKING = "cache_ranking.npy"
CACHE_PROBABILITY = "cache_probability.npy"
# The largest magnitude of each feature column; none where sparse features have no values.
PEAKS = "feature_peaks.npy"
# Sparse features: how many numbers every row of the graph has, and a part's numbers.
COUNTS = "feature_counts.npy"
COLUMNS = "feature_columns.npy"
VALUES = "feature_values.npy"
# What DGL reads of a part's nodes, and what it reads instead where the features are sparse.
NODE_DATA = "node_feat.dgl"
DENSE_NODE_DATA = "dense_feat.dgl"
DENSE_BOUND_BYTES = 1 << 30
"""Sparse features that take no more as dense rows are written as such, too, for stock DGL."""
NODE_TYPE = "_N"
EDGE_TYPE = "_N:_E:_N"

_GRAPH_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 1 << 48
_MOST_PARTS = 1 << 16
# What the header of an .npy file may take.
_HEADER_BYTES = 1 << 12


@dataclass(frozen=True)
class FeatureStorage:
    """How the features lie in the parts.

    Attributes:
        kind: dense: float32 rows in DGL's files. sparse: rows as their numbers, beside them.
        has_values: whether the numbers of sparse rows have values, float32; otherwise all are 1.
        for_stock_dgl: whether DGL's files have dense rows, so that stock DGL can read features.
        dense_bound_bytes: sparse features had dense rows written too if these take no more.
    """

    kind: Literal["dense", "sparse"]
    has_values: bool
    for_stock_dgl: bool
    dense_bound_bytes: int

    @property
    def is_sparse(self) -> bool:
        """Whether rows lie as their numbers."""
        return self.kind == "sparse"

    @property
    def dgl_node_data(self) -> str:
        """The file of a part that DGL's configuration names for the data of its nodes."""
        return DENSE_NODE_DATA if self.is_sparse and self.for_stock_dgl else NODE_DATA


@dataclass(frozen=True)
class Part:
    """What one part holds.

    Attributes:
        nodes: [low, high), the gids it owns.
        edges: [low, high), the ids of the in-edges of its nodes.
        halo_nodes: nodes of other parts that its edges come from.
        cut_edges: its edges that come from other parts.
        train_nodes, val_nodes, test_nodes: its nodes in each mask.
        feature_numbers: how many numbers its features store.
        bytes: the size of its directory's files.
    """

    nodes: tuple[int, int]
    edges: tuple[int, int]
    halo_nodes: int
    cut_edges: int
    train_nodes: int
    val_nodes: int
    test_nodes: int
    feature_numbers: int
    bytes: int

    @property
    def num_nodes(self) -> int:
        """Nodes that it owns."""
        return self.nodes[1] - self.nodes[0]

    @property
    def num_edges(self) -> int:
        """In-edges of the nodes that it owns."""
        return self.edges[1] - self.edges[0]


@dataclass(frozen=True)
class File:
    """Size and checksum of one file of the directory."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a parts directory holds and how it was made.

    Attributes:
        graph_name: also names DGL's JSON, `<graph_name>.json`.
        num_nodes, num_edges, num_features, num_classes: of the whole graph; edges are directed.
        task: what the labels ask for.
        features: how they lie in the parts.
        num_trainers_per_host: so many groups of neighbours make up each part, in gid order.
        parts: one entry per part.
        configuration: the options that the directory was made with, and `encoding`.
        versions: of the packages that wrote it.
        files: path inside the directory to size and checksum; all files but the manifest: those
            of `file_names`, neither more nor less.
    """

    graph_name: str
    num_nodes: int
    num_edges: int
    num_features: int
    num_classes: int
    task: Task
    features: FeatureStorage
    num_trainers_per_host: int
    parts: tuple[Part, ...]
    configuration: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, File]

    @property
    def encoding(self) -> Encoding | None:
        """How columns became features, where there is something to say of it."""
        value = self.configuration.get("encoding")
        return None if value is None else Encoding.from_json(value)

    @property
    def rows_divided(self) -> bool | None:
        """Whether each row of features was divided by its sum; None where nobody has noted it."""
        feature_norm = self.configuration.get("feature_norm")
        if feature_norm is None:
            return None
        is_sparse = self.features.is_sparse and self.encoding is None
        return divides_rows(feature_norm, is_sparse=is_sparse)

    @property
    def edge_cut(self) -> int:
        """Directed edges whose ends lie in different parts."""
        return sum(part.cut_edges for part in self.parts)

    @property
    def mask_sizes(self) -> dict[str, int]:
        """Nodes of the whole graph in each mask."""
        return {
            "train": sum(part.train_nodes for part in self.parts),
            "val": sum(part.val_nodes for part in self.parts),
            "test": sum(part.test_nodes for part in self.parts),
        }

    @property
    def checksum(self) -> str:
        """Of all files, in hexadecimal digits; equal parts have equal ones."""
        listed = "".join(f"{name} {self.files[name].sha256}\n" for name in sorted(self.files))
        return hashlib.sha256(listed.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As `manifest.json` has it."""
        return {"format_version": FORMAT_VERSION, "edge_cut": self.edge_cut, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        """The inverse of `to_json`; believes nothing.

        Raises:
            ValueError: `value` is no manifest of this format version, its numbers contradict each
                other, or its files are not those that such a directory has.
        """
        entries = _fields(
            value, "it", ("format_version", "edge_cut", *(field.name for field in fields(cls)))
        )
        graph_name = _text(entries["graph_name"], "graph_name", _GRAPH_NAME)
        if f"{graph_name}.json" in (MANIFEST, QUALITY):
            raise ValueError(f"no graph is named {graph_name}")
        if entries["task"] not in get_args(Task):
            raise ValueError(f"its task is {reprlib.repr(entries['task'])}")
        if not isinstance(entries["parts"], list) or not 0 < len(entries["parts"]) <= _MOST_PARTS:
            raise ValueError("its parts are no list")
        features = _storage(entries["features"])
        manifest = cls(
            graph_name=graph_name,
            num_nodes=_count(entries["num_nodes"], "num_nodes", least=1),
            num_edges=_count(entries["num_edges"], "num_edges"),
            num_features=_count(entries["num_features"], "num_features", least=1),
            num_classes=_count(entries["num_classes"], "num_classes", least=1),
            task=entries["task"],
            features=features,
            num_trainers_per_host=_count(
                entries["num_trainers_per_host"], "num_trainers_per_host", least=1
            ),
            parts=tuple(
                _part(part, f"part {index}") for index, part in enumerate(entries["parts"])
            ),
            configuration=_fields(entries["configuration"], "its configuration"),
            versions=_fields(entries["versions"], "its versions"),
            files=_files(entries["files"], file_names(graph_name, len(entries["parts"]), features)),
        )
        manifest._check_numbers(_count(entries["edge_cut"], "edge_cut"))
        return manifest

    def _check_numbers(self, edge_cut: int) -> None:
        for what, total in (("nodes", self.num_nodes), ("edges", self.num_edges)):
            ranges = [getattr(part, what) for part in self.parts]
            ends = [0, *(high for _, high in ranges)]
            if [low for low, _ in ranges] != ends[:-1] or ends != sorted(ends) or ends[-1] != total:
                raise ValueError(f"the {what} of its parts do not add up to its {total} {what}")
        encoding = self.encoding
        if encoding is not None and encoding.num_features != self.num_features:
            raise ValueError("its columns do not become as many features as it has")
        if self.edge_cut != edge_cut:
            raise ValueError("the cut edges of its parts do not add up to its edge cut")
        for index, part in enumerate(self.parts):
            sizes = [self.files[name].bytes for name in part_file_names(index, self.features)]
            table = part.num_nodes * self.num_features
            dense = (
                self.files[f"part{index}/{self.features.dgl_node_data}"].bytes
                if self.features.for_stock_dgl
                else 4 * table
            )
            if (
                part.halo_nodes > self.num_nodes - part.num_nodes
                or part.cut_edges > part.num_edges
                or part.train_nodes + part.val_nodes + part.test_nodes > part.num_nodes
                or part.bytes != sum(sizes)
                or dense < 4 * table
                or part.feature_numbers > table
                or (not self.features.is_sparse and part.feature_numbers != table)
            ):
                raise ValueError(f"the numbers of part {index} contradict each other")
        arrays = [(INDPTR, self.num_nodes + 1, (8,)), (INDICES, self.num_edges, (4, 8))]
        if self.features.has_values:
            arrays.append((PEAKS, self.num_features, (4,)))
        if self.features.is_sparse:
            arrays.append((COUNTS, self.num_nodes, (4,)))
            for index, part in enumerate(self.parts):
                arrays.append((f"part{index}/{COLUMNS}", part.feature_numbers, (4,)))
                if self.features.has_values:
                    arrays.append((f"part{index}/{VALUES}", part.feature_numbers, (4,)))
        for name, values, widths in arrays:
            size = self.files[name].bytes
            if not any(0 < size - values * width <= _HEADER_BYTES for width in widths):
                raise ValueError(f"{name} cannot have {size} bytes")


def part_file_names(part: int, features: FeatureStorage) -> list[str]:
    """The files of one part."""
    names = [CACHE_PROBABILITY, CACHE_RANKING, "edge_feat.dgl", "graph.dgl", NODE_DATA]
    if features.is_sparse:
        names.append(COLUMNS)
        if features.has_values:
            names.append(VALUES)
        if features.for_stock_dgl:
            names.append(DENSE_NODE_DATA)
    return [f"part{part}/{name}" for name in names]


def file_names(graph_name: str, num_parts: int, features: FeatureStorage) -> list[str]:
    """The files of a parts directory beside its manifest."""
    shared = [f"{graph_name}.json", ORIGINAL_IDS, QUALITY, INDICES, INDPTR]
    if features.has_values:
        shared.append(PEAKS)
    if features.is_sparse:
        shared.append(COUNTS)
    parts = (part_file_names(part, features) for part in range(num_parts))
    return [*shared, *(name for names in parts for name in names)]


def dgl_config(
    graph_name: str,
    part_method: str,
    node_ranges: Iterable[tuple[int, int]],
    edge_ranges: Iterable[tuple[int, int]],
    node_data: str,
) -> dict[str, Any]:
    """What `<graph_name>.json` holds, which `dgl.distributed` opens.

    Args:
        graph_name: of the manifest.
        part_method: how the graph was split, in a word that DGL knows.
        node_ranges: [low, high), the gids of each part.
        edge_ranges: likewise of its edges.
        node_data: the file of each part with the data of its nodes.
    """
    nodes, edges = ([list(each) for each in ranges] for ranges in (node_ranges, edge_ranges))
    config = {
        "graph_name": graph_name,
        "num_nodes": nodes[-1][1],
        "num_edges": edges[-1][1],
        "part_method": part_method,
        "num_parts": len(nodes),
        "halo_hops": 1,
        "node_map": {NODE_TYPE: nodes},
        "edge_map": {EDGE_TYPE: edges},
        "ntypes": {NODE_TYPE: 0},
        "etypes": {EDGE_TYPE: 0},
    }
    for part in range(len(nodes)):
        config[f"part-{part}"] = {
            "node_feats": f"part{part}/{node_data}",
            "edge_feats": f"part{part}/edge_feat.dgl",
            "part_graph": f"part{part}/graph.dgl",
        }
    return config


def _fields(value: Any, what: str, names: Iterable[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} should be an object, but is {reprlib.repr(value)}")
    wrong = sorted(set(value).symmetric_difference(value if names is None else names))
    if wrong:
        raise ValueError(f"{what} lacks, or has without need, {reprlib.repr(wrong)}")
    return dict(value)


def _count(value: Any, what: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MOST:  # a bool is an int, too
        raise ValueError(f"{what} is {reprlib.repr(value)}")
    return value


def _text(value: Any, what: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{what} is {reprlib.repr(value)}")
    return value


def _range(value: Any, what: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{what} are {reprlib.repr(value)}")
    return _count(value[0], what), _count(value[1], what)


def _storage(value: Any) -> FeatureStorage:
    entries = _fields(value, "its features", (field.name for field in fields(FeatureStorage)))
    for name in ("has_values", "for_stock_dgl"):
        if type(entries[name]) is not bool:
            raise ValueError(f"{name} of its features is {reprlib.repr(entries[name])}")
    if entries["kind"] not in ("dense", "sparse"):
        raise ValueError(f"the kind of its features is {reprlib.repr(entries['kind'])}")
    _count(entries["dense_bound_bytes"], "dense_bound_bytes of its features")
    features = FeatureStorage(**entries)
    if not features.is_sparse and not (features.has_values and features.for_stock_dgl):
        raise ValueError("dense features have values, and stock DGL reads them")
    return features


def _part(value: Any, what: str) -> Part:
    entries = _fields(value, what, (field.name for field in fields(Part)))
    counts = {
        name: _count(entry, f"{name} of {what}")
        for name, entry in entries.items()
        if name not in ("nodes", "edges")
    }
    return Part(
        nodes=_range(entries["nodes"], f"the nodes of {what}"),
        edges=_range(entries["edges"], f"the edges of {what}"),
        **counts,
    )


def _files(value: Any, names: Iterable[str]) -> dict[str, File]:
    files = {}
    for name, entry in _fields(value, "its list of files", names).items():
        entries = _fields(entry, name, ("bytes", "sha256"))
        files[name] = File(
            bytes=_count(entries["bytes"], f"the size of {name}"),
            sha256=_text(entries["sha256"], f"the checksum of {name}", _SHA256),
        )
    return files
