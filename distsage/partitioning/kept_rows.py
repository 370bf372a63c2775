"""Which feature rows a host keeps, and the bytes that they take. Runs on every rank."""

import numpy as np

from distsage.config import JobOptions
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.manifest import Manifest

_TYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_COLUMN_BYTES, _BOUND_BYTES, _COUNT_BYTES = 4, 8, 4


def own_bytes(parts: HostParts, host: int, feat_dtype: str) -> int:
    """Bytes of the rows of the nodes that a host holds, in memory."""
    manifest = parts.manifest
    numbers = parts.feature_numbers(host) * _number_bytes(manifest, feat_dtype)
    if not manifest.features.is_sparse:
        return numbers
    return _BOUND_BYTES * (parts.num_nodes(host) + 1) + numbers


def cached_gids(parts: HostParts, host: int, config: JobOptions) -> np.ndarray:
    """The nodes of other hosts whose rows a host keeps: the first of its ranking, int `[c]`.

    Raises:
        UserError: a file cannot be read.
    """
    manifest = parts.manifest
    ranking = parts.cache_ranking(host)
    num_remote = manifest.num_nodes - parts.num_nodes(host)
    if config.cache_bytes is None:
        return ranking[: config.cache_rows(num_remote)]
    if not manifest.features.is_sparse:
        row_bytes = manifest.num_features * _TYPE_BYTES[config.feat_dtype]
        return ranking[: config.cache_bytes // row_bytes]
    # Row by row, with the bounds of the rows.
    counts = parts.parts.feature_counts()[ranking].astype(np.int64)
    sizes = np.cumsum(_BOUND_BYTES + counts * _number_bytes(manifest, config.feat_dtype))
    return ranking[: np.searchsorted(sizes + _BOUND_BYTES, config.cache_bytes, side="right")]


def cached_bytes(parts: HostParts, gids: np.ndarray, feat_dtype: str) -> int:
    """Bytes of the rows of these nodes in memory that a host's trainers share."""
    manifest = parts.manifest
    number_bytes = _number_bytes(manifest, feat_dtype)
    if not manifest.features.is_sparse:
        return len(gids) * manifest.num_features * number_bytes
    if len(gids) == 0:
        return 0
    numbers = int(parts.parts.feature_counts()[gids].sum(dtype=np.int64))
    return _BOUND_BYTES * (len(gids) + 1) + numbers * number_bytes


def sent_bytes(parts: HostParts, feat_dtype: str) -> np.ndarray | int:
    """Bytes of a row on the network: of any row, or int64 `[N]` of each where they are sparse.

    Raises:
        UserError: a file cannot be read.
    """
    manifest = parts.manifest
    number_bytes = _number_bytes(manifest, feat_dtype)
    if not manifest.features.is_sparse:
        return manifest.num_features * number_bytes
    counts = parts.parts.feature_counts().astype(np.int64)
    return _COUNT_BYTES + counts * number_bytes


def _number_bytes(manifest: Manifest, feat_dtype: str) -> int:
    """Of one stored number."""
    if not manifest.features.is_sparse:
        return _TYPE_BYTES[feat_dtype]
    return _COLUMN_BYTES + (_TYPE_BYTES[feat_dtype] if manifest.features.has_values else 0)
