"""Fetching a data set's zip archive. Runs on the login host and in the local run.

What comes is not trusted: it has to be as long as expected at most, to have the checksum that is
known, and to unpack to plain files of bounded size in one directory.
"""

import hashlib
import http.client
import logging
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from distsage.data.archive import Archive, ArchiveError, open_archive
from distsage.errors import UserError
from distsage.files import atomic_directory
from distsage.limits import free_disk, human_bytes

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10
_CHUNK_BYTES = 1 << 22
_MOST_FILES = 1000


@dataclass(frozen=True)
class Source:
    """Where an archive comes from, and what is known about it.

    Attributes:
        url: its address.
        most_bytes: that its files may take, and the archive itself.
        sha256: of the archive; None where nobody who could know it has published it.
    """

    url: str
    most_bytes: int
    sha256: str | None = None


def fetch_zip(name: str, source: Source, directory: Path) -> None:
    """Download an archive and unpack it as `directory`, which appears only when it is whole.

    An archive whose files all lie in one folder is unpacked without that folder. Blocks until the
    download has ended; a server that is silent for 10 s ends it.

    Raises:
        UserError: the server cannot be reached or falls silent, sends another archive than the one
            that is known, or one that is damaged, too large, or writes outside of its directory.
    """
    try:
        with atomic_directory(directory) as temporary:
            packed, unpacked = temporary / "download.zip", temporary / "files"
            _download(name, source, packed)
            unpacked.mkdir()
            with open_archive(packed) as archive:
                _unpack(archive, unpacked, source.most_bytes)
            packed.unlink()
            # Out of the way first: a folder may hold an entry of its own name.
            folder = unpacked.rename(temporary / ".unpacked")
            entries = list(folder.iterdir())
            if len(entries) == 1 and entries[0].is_dir():
                inner = entries[0].rename(temporary / ".folder")
                folder.rmdir()
                folder = inner
            for entry in folder.iterdir():
                entry.rename(temporary / entry.name)
            folder.rmdir()
    except (OSError, http.client.HTTPException, ArchiveError) as error:
        raise UserError(
            f"{name} cannot be downloaded from {source.url} ({' '.join(str(error).split())}); "
            f"bring its files to {directory}, or name the directory that has them with "
            "--dataset-root"
        ) from error


def _download(name: str, source: Source, archive: Path) -> None:
    digest = hashlib.sha256()
    with (
        urllib.request.urlopen(source.url, timeout=_TIMEOUT_S) as response,
        open(archive, "xb") as stream,
    ):
        if source.url.startswith("https:") and not response.url.startswith("https:"):
            raise ArchiveError(f"it was sent on to {response.url}, where anybody could answer")
        stated = str(response.headers.get("Content-Length") or "")
        size = int(stated) if stated.isdecimal() and len(stated) < 19 else 0
        logger.info("downloading %s, %.2f GB, from %s", name, size / 1e9, source.url)
        told = 0
        while chunk := response.read(_CHUNK_BYTES):
            digest.update(chunk)
            stream.write(chunk)
            if max(size, stream.tell()) > source.most_bytes:
                raise ArchiveError(f"it is larger than {human_bytes(source.most_bytes)}")
            if size and stream.tell() * 20 // size > told:
                told = stream.tell() * 20 // size
                logger.info("downloading %s: %d %%", name, told * 5)
        if size and stream.tell() != size:
            raise OSError(f"the connection ended after {stream.tell()} of {size} bytes")
    if source.sha256 is None:
        logger.info("no checksum of %s is known: whether it is genuine was not checked", name)
    elif digest.hexdigest() != source.sha256:
        raise ArchiveError("it is not the archive that is known: its checksum differs")


def _unpack(archive: Archive, directory: Path, most_bytes: int) -> None:
    archive.check_names()
    if len(archive.entries) > _MOST_FILES:
        raise ArchiveError(f"it holds {len(archive.entries)} files")
    need, free = archive.unpacked_bytes, free_disk(directory)
    if need > min(most_bytes, free):
        raise ArchiveError(
            f"it unpacks to {human_bytes(need)}; {human_bytes(most_bytes)} are expected at most, "
            f"and {human_bytes(free)} are free"
        )
    for name, entry in archive.entries.items():
        target = directory / name
        if entry.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as reader, open(target, "xb") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
