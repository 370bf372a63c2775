"""A parts directory as its readers see it. Runs on every host: trainers, preflight, predict.

Needs numpy and scipy only.
"""

import hashlib
import json
import os
import reprlib
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from distsage.data.column_scales import column_scales
from distsage.data.graph import Topology
from distsage.data.npy import ArrayError, map_array
from distsage.data.validate import MASKS
from distsage.errors import UserError
from distsage.files import read_json
from distsage.partitioning.dgl_arrays import map_arrays, read_arrays
from distsage.partitioning.manifest import (
    CACHE_PROBABILITY,
    CACHE_RANKING,
    COLUMNS,
    COUNTS,
    DENSE_NODE_DATA,
    FORMAT_VERSION,
    INDICES,
    INDPTR,
    MANIFEST,
    NODE_DATA,
    NODE_TYPE,
    ORIGINAL_IDS,
    PEAKS,
    VALUES,
    Manifest,
    dgl_config,
    file_names,
    part_file_names,
)

_READ_BYTES = 1 << 20


class SparseArrays(NamedTuple):
    """Sparse rows, one after the other (CSR).

    Attributes:
        indptr: int64 `[n + 1]`; row i has the numbers [indptr[i], indptr[i + 1]).
        columns: int32 `[nnz]`, a read-only memory map.
        values: float32 `[nnz]`, likewise; None: every number is 1.
    """

    indptr: np.ndarray
    columns: np.ndarray
    values: np.ndarray | None


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
        path = Path(os.path.realpath(path))
        directory = path.parent if path.suffix == ".json" else path
        if not directory.is_dir():
            raise UserError(f"there is no parts directory {directory}")
        if not (directory / MANIFEST).exists():
            raise UserError(
                f"{directory} has no {MANIFEST}, so it is no directory that `distsage partition` "
                "wrote; make one with it"
            )
        value = read_json(directory / MANIFEST)
        version = value.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise UserError(
                f"{directory / MANIFEST} has format version {reprlib.repr(version)}, this distsage "
                f"reads {FORMAT_VERSION}; partition the graph again"
            )
        try:
            manifest = Manifest.from_json(value)
        except ValueError as error:
            raise UserError(
                f"{directory / MANIFEST} is damaged ({error}); partition the graph again"
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
        num_nodes, num_edges = self.manifest.num_nodes, self.manifest.num_edges
        return Topology(
            self._array(INDPTR, "i", num_nodes + 1),
            self._array(INDICES, "i", num_edges),
        )

    def original_ids(self) -> np.ndarray:
        """Gid to original id: int64 or unicode `[N]`, a read-only memory map.

        Raises:
            UserError: as for `topology`.
        """
        return self._array(ORIGINAL_IDS, "iuU", self.manifest.num_nodes)

    def cache_ranking(self, part: int) -> np.ndarray:
        """Remote gids that the part's trainers may sample, the likeliest first: a memory map.

        Raises:
            UserError: as for `topology`.
        """
        return self._array(f"part{part}/{CACHE_RANKING}", "i", None)

    def cache_probability(self, part: int) -> np.ndarray:
        """The probability that a batch of the part contains each node of its ranking: float32.

        Raises:
            UserError: as for `topology`.
        """
        return self._array(f"part{part}/{CACHE_PROBABILITY}", "f", len(self.cache_ranking(part)))

    def feature_scales(self) -> np.ndarray | None:
        """The scales of columns that are kept in int8, float32 `[F]`.

        None where all numbers of sparse features are 1, which need none.

        Raises:
            UserError: as for `topology`, or a number is not finite.
        """
        if not self.manifest.features.has_values:
            return None
        return column_scales(self._array(PEAKS, "f", self.manifest.num_features))

    def feature_counts(self) -> np.ndarray:
        """How many numbers each row of sparse features has: int32 `[N]`, a read-only memory map.

        Raises:
            UserError: as for `topology`.
        """
        return self._array(COUNTS, "i", self.manifest.num_nodes)

    def sparse_features(self, part: int) -> SparseArrays:
        """The rows of sparse features that a part owns, in gid order.

        Raises:
            UserError: as for `topology`, or they are no rows of the manifest's width.
        """
        low, high = self.manifest.parts[part].nodes
        numbers = self.manifest.parts[part].feature_numbers
        indptr = np.zeros(high - low + 1, np.int64)
        counts = self.feature_counts()[low:high]
        np.cumsum(counts, out=indptr[1:])
        columns = self._array(f"part{part}/{COLUMNS}", "i", numbers)
        values = None
        if self.manifest.features.has_values:
            values = self._array(f"part{part}/{VALUES}", "f", numbers)
        # Kernels read where these say.
        if (
            counts.min(initial=0) < 0
            or indptr[-1] != numbers
            or columns.min(initial=0) < 0
            or columns.max(initial=0) >= self.manifest.num_features
        ):
            raise UserError(
                f"{self.path / f'part{part}' / COLUMNS} does not hold the rows that the manifest "
                f"and {COUNTS} say; partition the graph again"
            )
        return SparseArrays(indptr, columns, values)

    def load_part(self, part: int) -> dict[str, Any]:
        """The rows of the nodes that a part owns, by name, in gid order.

        Returns:
            features float32 `[n, F]`, a table or a CSR matrix; labels int64 `[n]` or float32
            `[n, C]`; train_mask, val_mask and test_mask uint8 `[n]`.

        Raises:
            UserError: the file is missing, damaged, does not have the manifest's size, or holds
                other rows than the manifest says.
        """
        rows: dict[str, Any] = self._node_rows(part, read_arrays)
        manifest, num_nodes = self.manifest, self.manifest.parts[part].num_nodes
        if manifest.features.is_sparse:
            indptr, columns, values = self.sparse_features(part)
            ones = np.ones(len(columns), np.float32)
            numbers = ones if values is None else np.array(values)
            shape = num_nodes, manifest.num_features
            rows["features"] = scipy.sparse.csr_matrix((numbers, columns, indptr), shape)
        return rows

    def map_part(self, part: int) -> dict[str, np.ndarray]:
        """The rows of `load_part` as read-only memory maps; no features where they are sparse.

        They may begin at any byte.

        Raises:
            UserError: as for `load_part`.
        """
        return self._node_rows(part, map_arrays)

    def _node_rows(
        self, part: int, read: Callable[[Path], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """What `read` gives of the data of a part's nodes, by name, checked."""
        name = f"part{part}/{NODE_DATA}"
        self._check_size(name)
        path = self.path / name
        try:
            arrays = read(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except ArrayError as error:
            raise UserError(f"cannot read {path}: {error}; partition the graph again") from error
        rows = {key.removeprefix(f"{NODE_TYPE}/"): array for key, array in arrays.items()}
        self._check_rows(part, rows)
        return rows

    def _check_rows(self, part: int, rows: Mapping[str, np.ndarray]) -> None:
        """See that a part's rows have the types and shapes that the manifest says."""
        manifest, num_nodes = self.manifest, self.manifest.parts[part].num_nodes
        labels = (
            ("float32", (num_nodes, manifest.num_classes))
            if manifest.task == "multilabel"
            else ("int64", (num_nodes,))
        )
        expected = {"labels": labels, **dict.fromkeys(MASKS, ("uint8", (num_nodes,)))}
        if not manifest.features.is_sparse:
            expected["features"] = ("float32", (num_nodes, manifest.num_features))
        if {key: (values.dtype.name, values.shape) for key, values in rows.items()} != expected:
            raise UserError(
                f"{self.path / f'part{part}' / NODE_DATA} does not hold the rows that the manifest "
                "says; partition the graph again"
            )

    def files_of(self, held: Iterable[int] | None = None) -> list[str]:
        """Names of the files that a host of some parts reads; None names all files there are.

        They are those parts' and those that all parts share; some only stock DGL reads.
        """
        manifest = self.manifest
        if held is None:
            return file_names(manifest.graph_name, self.num_parts, manifest.features)
        names = (name for part in held for name in part_file_names(part, manifest.features))
        shared = file_names(manifest.graph_name, 0, manifest.features)
        return [*shared, *(name for name in names if not name.endswith(f"/{DENSE_NODE_DATA}"))]

    def check_sizes(self, held: Iterable[int] | None = None) -> None:
        """Compare the sizes of the files of `files_of(held)` with the manifest; quick.

        Raises:
            UserError: a file is missing or has another size.
        """
        for name in self.files_of(held):
            self._check_size(name)

    def verify_file(self, name: str, on_chunk: Callable[[], None] = lambda: None) -> None:
        """Compare one file's checksum with the manifest; reads every byte.

        `on_chunk` is called with every MiB or less.

        Raises:
            UserError: it is missing, truncated, or not the one that was written.
        """
        self._check_size(name)
        if sha256(self.path / name, lambda _: on_chunk()) != self.manifest.files[name].sha256:
            raise UserError(
                f"{self.path / name} has changed since it was written (its checksum is not "
                "the manifest's); copy it again or partition the graph again"
            )

    def _check_size(self, name: str) -> None:
        path = self.path / name
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"cannot read {path}: it is no regular file")
        found = status.st_size
        expected = self.manifest.files[name].bytes
        if found != expected:
            raise UserError(
                f"{path} has {found} bytes, the manifest says {expected}; "
                "copy it again or partition the graph again"
            )

    def _array(self, name: str, kinds: str, length: int | None) -> np.ndarray:
        """A list, memory-mapped; `kinds` are numpy's letters for the types that it may have."""
        self._check_size(name)
        path = self.path / name
        try:
            array = map_array(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except ArrayError as error:
            raise UserError(f"cannot read {path}: {error}") from error
        if array.ndim != 1 or array.dtype.kind not in kinds or length not in (None, len(array)):
            raise UserError(
                f"{path} has {array.dtype} of shape {array.shape}, which is not what the manifest "
                "says; partition the graph again"
            )
        return array

    def _check_dgl_config(self) -> None:
        manifest = self.manifest
        config = read_json(self.dgl_config)
        method = config.get("part_method")
        expected = dgl_config(
            manifest.graph_name,
            method if method in ("metis", "random") else "metis",
            [part.nodes for part in manifest.parts],
            [part.edges for part in manifest.parts],
            manifest.features.dgl_node_data,
        )
        for key in [*expected, *config]:
            # As JSON: 1, 1.0 and true are equal in Python.
            found, wanted = (
                json.dumps(each.get(key), sort_keys=True) for each in (config, expected)
            )
            if found != wanted:
                raise UserError(
                    f"{self.dgl_config} and {MANIFEST} beside it do not belong together: they "
                    f"differ in {key if key in expected else reprlib.repr(key)}; partition the "
                    "graph again"
                )


def sha256(path: Path, advance: Callable[[int], object] = lambda count: None) -> str:
    """Checksum of a file's content, in hexadecimal digits; `advance` is told of the bytes read."""
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(_READ_BYTES))
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(chunk):
            digest.update(chunk[:count])
            advance(count)
    return digest.hexdigest()
