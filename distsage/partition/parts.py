"""A parts directory as its readers see it. Runs on every host: trainers, preflight, predict.

Needs numpy only; `load_part` alone imports DGL, and when it is called.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distsage.data.graph import Graph, Topology
from distsage.errors import UserError
from distsage.partition.manifest import FORMAT_VERSION, Manifest

MANIFEST = "manifest.json"
QUALITY = "quality.json"
INDPTR = "topology/indptr.npy"
INDICES = "topology/indices.npy"
ORIGINAL_IDS = "original_ids.npy"
CACHE_RANKING = "cache_ranking.npy"
_READ_BYTES = 1 << 22


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


def load_parts(path: Path) -> tuple[Graph, int]:
    """Put the parts of a graph together again, in gids, and return it with its edge cut.

    Raises:
        UserError: the parts cannot be read.
    """
    parts = Parts.open(path)
    manifest = parts.manifest
    data = [parts.load_part(part) for part in range(parts.num_parts)]
    rows = {name: np.concatenate([part[name] for part in data]) for name in data[0]}
    graph = Graph(
        name=manifest.graph_name,
        topology=parts.topology(),
        features=rows["features"],
        labels=rows["labels"],
        num_classes=manifest.num_classes,
        train_mask=rows["train_mask"].astype(bool),
        val_mask=rows["val_mask"].astype(bool),
        test_mask=rows["test_mask"].astype(bool),
        original_ids=parts.original_ids(),
    )
    return graph, manifest.edge_cut
