"""Parts that are still what was written: checksums, remembered per file. Runs on every host.

`distsage train` verifies a host's parts in its preflight, `local` and `predict` all parts.
"""

import contextlib
import hashlib
import os
import socket
import stat
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.files import read_json, write_json
from distsage.partitioning.parts import Parts


def verify(
    parts: Parts,
    held: Iterable[int] | None = None,
    progress: Callable[[str], None] = lambda doing: None,
) -> None:
    """Compare some parts' files, and those that all parts share, with the manifest.

    Sizes come first, at once. Checksums are remembered per file (size, times of change, inode), so
    that later runs of the same parts on this host read nothing again.

    Args:
        parts: to verify.
        held: whose files; None takes all parts.
        progress: told what is read, with every MiB or less.

    Raises:
        UserError: a file is missing, truncated or changed.
    """
    held = None if held is None else tuple(held)
    parts.check_sizes(held)
    record = _record(parts)
    known = _read_record(record)
    stamps = {}
    for name in parts.files_of(held):
        stamp = _stamp(parts, name)
        if known.get(name) != stamp:
            parts.verify_file(name, partial(progress, f"checking {name}"))
            if _stamp(parts, name) != stamp:
                raise UserError(
                    f"{parts.path / name} changed while it was read; wait until it is written"
                )
        stamps[name] = stamp
    if any(known.get(name) != stamp for name, stamp in stamps.items()):
        # If the home directory cannot be written, the next run reads the files again.
        with contextlib.suppress(OSError):
            record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(record, known | stamps)


def _stamp(parts: Parts, name: str) -> list[Any]:
    """What changes when a file is written or replaced; nobody can set the time of its change."""
    status = (parts.path / name).stat()
    return [
        *(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino),
        parts.manifest.files[name].sha256,
    ]


def _record(parts: Parts) -> Path:
    """Where this host remembers what it has read of a directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    key = hashlib.sha256(os.fsencode(parts.path)).hexdigest()[:16]
    return cache / "distsage" / "verified" / f"{socket.gethostname()}-{key}.json"


def _read_record(path: Path) -> dict[str, Any]:
    """What is remembered: nothing, where others may have written it, or it is damaged.

    A file system that keeps no owners, or a home directory that others may write, costs reading.
    """
    try:
        for place in (path.parent, path):
            status = place.lstat()
            kind = stat.S_ISDIR if place == path.parent else stat.S_ISREG
            writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if status.st_uid != os.getuid() or writable or not kind(status.st_mode):
                return {}
        return read_json(path)
    except (OSError, UserError):
        return {}


def load_parts(path: Path) -> tuple[Graph, int]:
    """Put the parts of a graph together again, in gids, and return it with its edge cut.

    Raises:
        UserError: the parts cannot be read, or are not those that were written.
    """
    parts = Parts.open(path)
    verify(parts)
    manifest = parts.manifest
    data = [parts.load_part(part) for part in range(parts.num_parts)]
    rows = {name: [part[name] for part in data] for name in data[0]}
    features = rows.pop("features")
    joined = {name: np.concatenate(pieces) for name, pieces in rows.items()}
    graph = Graph(
        name=manifest.graph_name,
        topology=parts.topology(),
        features=(
            scipy.sparse.vstack(features, "csr")
            if manifest.features.is_sparse
            else np.concatenate(features)
        ),
        labels=joined["labels"],
        num_classes=manifest.num_classes,
        train_mask=joined["train_mask"].astype(bool),
        val_mask=joined["val_mask"].astype(bool),
        test_mask=joined["test_mask"].astype(bool),
        original_ids=parts.original_ids(),
        encoding=manifest.encoding,
    )
    return graph, manifest.edge_cut
