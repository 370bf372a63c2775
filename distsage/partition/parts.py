"""A parts directory as its readers see it. Runs on every host: trainers, preflight, predict.

Needs numpy only; `load_part` alone imports DGL, and when it is called.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distsage.data.graph import Task, Topology
from distsage.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
QUALITY = "quality.json"
INDPTR = "topology/indptr.npy"
INDICES = "topology/indices.npy"
ORIGINAL_IDS = "original_ids.npy"
CACHE_RANKING = "cache_ranking.npy"
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Part:
    """What one part holds.

    Attributes:
        nodes: [low, high), the gids it owns.
        edges: [low, high), the ids of the in-edges of its nodes.
        halo_nodes: nodes of other parts that its edges come from.
        cut_edges: its edges that come from other parts.
        train_nodes, val_nodes, test_nodes: its nodes in each mask.
        bytes: the size of its directory's files.
    """

    nodes: tuple[int, int]
    edges: tuple[int, int]
    halo_nodes: int
    cut_edges: int
    train_nodes: int
    val_nodes: int
    test_nodes: int
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
        num_trainers_per_host: so many groups of neighbours make up each part, in gid order.
        parts: one entry per part.
        configuration: the options that the directory was made with.
        versions: of the packages that wrote it.
        files: path inside the directory to size and checksum; all files but the manifest.
    """

    graph_name: str
    num_nodes: int
    num_edges: int
    num_features: int
    num_classes: int
    task: Task
    num_trainers_per_host: int
    parts: tuple[Part, ...]
    configuration: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, File]

    @property
    def edge_cut(self) -> int:
        """Directed edges whose ends lie in different parts."""
        return sum(part.cut_edges for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """As `manifest.json` has it."""
        return {"format_version": FORMAT_VERSION, "edge_cut": self.edge_cut, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `value` is no manifest of this format version.
        """
        return cls(
            graph_name=str(value["graph_name"]),
            num_nodes=int(value["num_nodes"]),
            num_edges=int(value["num_edges"]),
            num_features=int(value["num_features"]),
            num_classes=int(value["num_classes"]),
            task=value["task"],
            num_trainers_per_host=int(value["num_trainers_per_host"]),
            parts=tuple(
                Part(**part | {"nodes": tuple(part["nodes"]), "edges": tuple(part["edges"])})
                for part in value["parts"]
            ),
            configuration=dict(value["configuration"]),
            versions=dict(value["versions"]),
            files={name: File(**entry) for name, entry in value["files"].items()},
        )


@dataclass(frozen=True)
class Parts:
    """A parts directory, opened. Nothing but the two JSON files has been read yet."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> "Parts":
        """Open a directory that `distsage partition` wrote, or the DGL JSON inside it.

        Raises:
            UserError: it is no parts directory, its manifest cannot be read or is of another
                format version, or the manifest and DGL's JSON do not belong together.
        """
        path = Path(path).resolve()
        directory = path.parent if path.suffix == ".json" else path
        if not directory.is_dir():
            raise UserError(f"there is no parts directory {directory}")
        if not (directory / MANIFEST).exists():
            raise UserError(
                f"{directory} has no {MANIFEST}, so it is no directory that `distsage partition` "
                "wrote; make one with it"
            )
        value = _read_json(directory / MANIFEST)
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{directory / MANIFEST} has format version {version}, this distsage reads "
                f"{FORMAT_VERSION}; partition the graph again"
            )
        try:
            manifest = Manifest.from_json(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{directory / MANIFEST} is damaged ({type(error).__name__}: {error}); "
                "partition the graph again"
            ) from error
        parts = cls(directory, manifest)
        if path != directory and path != parts.dgl_config:
            raise UserError(f"{path} is not the DGL configuration {parts.dgl_config}")
        parts._check_dgl_config()
        return parts

    @property
    def num_parts(self) -> int:
        """P."""
        return len(self.manifest.parts)

    @property
    def dgl_config(self) -> Path:
        """The JSON that `dgl.distributed.DistGraph(part_config=...)` takes."""
        return self.path / f"{self.manifest.graph_name}.json"

    @property
    def offsets(self) -> np.ndarray:
        """int64 `[P + 1]`: part i owns the gids in [offsets[i], offsets[i + 1])."""
        parts = self.manifest.parts
        return np.array([parts[0].nodes[0], *(part.nodes[1] for part in parts)], np.int64)

    def topology(self) -> Topology:
        """In-edges of the whole graph in gids, as read-only memory maps that processes share.

        Raises:
            UserError: a file is missing, truncated, or not of the manifest's size.
        """
        topology = Topology(
            self._array(INDPTR, (self.manifest.num_nodes + 1,)),
            self._array(INDICES, (self.manifest.num_edges,)),
        )
        return topology

    def original_ids(self) -> np.ndarray:
        """Gid to original id: int64 or unicode `[N]`, a read-only memory map.

        Raises:
            UserError: as for `topology`.
        """
        return self._array(ORIGINAL_IDS, (self.manifest.num_nodes,))

    def cache_ranking(self, part: int) -> np.ndarray:
        """Remote gids that the part's trainers may sample, the likeliest first: a memory map.

        Raises:
            UserError: as for `topology`.
        """
        return self._array(f"part{part}/{CACHE_RANKING}", None)

    def load_part(self, part: int) -> dict[str, np.ndarray]:
        """The rows of the nodes that a part owns, by name, in gid order. Imports DGL.

        Returns:
            features float32 `[n, F]`; labels int64 `[n]` or float32 `[n, C]`; train_mask, val_mask
            and test_mask uint8 `[n]`.

        Raises:
            UserError: the file is missing or does not have the manifest's size.
        """
        from distsage.partition.dgl_format import read_node_data

        self._check_size(f"part{part}/node_feat.dgl")
        return read_node_data(self.path / f"part{part}")

    def files_of(self, part: int | None = None) -> list[str]:
        """Names of the files of one part and those that all parts share; None names all."""
        others = {f"part{other}" for other in range(self.num_parts) if other != part}
        return [
            name
            for name in self.manifest.files
            if part is None or name.partition("/")[0] not in others
        ]

    def check_sizes(self, part: int | None = None) -> None:
        """Compare the sizes of the files of `files_of(part)` with the manifest; quick.

        Raises:
            UserError: a file is missing or has another size.
        """
        for name in self.files_of(part):
            self._check_size(name)

    def verify(self, part: int | None = None) -> None:
        """Compare the checksums of the files of `files_of(part)` with the manifest; reads them.

        Raises:
            UserError: a file is missing, truncated, or not the one that was written.
        """
        for name in self.files_of(part):
            self.verify_file(name)

    def verify_file(self, name: str, on_chunk: Callable[[], None] = lambda: None) -> None:
        """Compare one file's checksum with the manifest; reads every byte.

        `on_chunk` is called with every few MiB.

        Raises:
            UserError: as for `verify`.
        """
        self._check_size(name)
        if sha256(self.path / name, on_chunk) != self.manifest.files[name].sha256:
            raise UserError(
                f"{self.path / name} has changed since it was written (its checksum is not "
                "the manifest's); copy it again or partition the graph again"
            )

    def _check_size(self, name: str) -> None:
        path = self.path / name
        try:
            found = path.stat().st_size
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        expected = self.manifest.files[name].bytes
        if found != expected:
            raise UserError(
                f"{path} has {found} bytes, the manifest says {expected}; "
                "copy it again or partition the graph again"
            )

    def _array(self, name: str, shape: tuple[int, ...] | None) -> np.ndarray:
        self._check_size(name)
        try:
            array = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.path / name}: {error}") from error
        if shape is not None and array.shape != shape:
            raise UserError(
                f"{self.path / name} has shape {array.shape}, the manifest says {shape}; "
                "partition the graph again"
            )
        return array

    def _check_dgl_config(self) -> None:
        manifest = self.manifest
        config = _read_json(self.dgl_config)
        expected = {
            "graph_name": manifest.graph_name,
            "num_nodes": manifest.num_nodes,
            "num_edges": manifest.num_edges,
            "num_parts": len(manifest.parts),
            "node_map": {"_N": [list(part.nodes) for part in manifest.parts]},
            "edge_map": {"_N:_E:_N": [list(part.edges) for part in manifest.parts]},
        }
        for key, value in expected.items():
            if config.get(key) != value:
                raise UserError(
                    f"{self.dgl_config} and {MANIFEST} beside it do not belong together: "
                    f"they differ in {key}; partition the graph again"
                )


def sha256(path: Path, on_chunk: Callable[[], None] = lambda: None) -> str:
    """Checksum of a file's content, in hexadecimal digits; `on_chunk` is called every few MiB."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(_READ_BYTES):
            digest.update(chunk)
            on_chunk()
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); partition the graph again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; partition the graph again")
    return value
