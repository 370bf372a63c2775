"""What a parts directory holds and how it was made. Runs wherever parts are written or read."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distsage.data.graph import Task

FORMAT_VERSION = 1


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
