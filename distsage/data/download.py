"""Fetching a data set's zip archive. Runs on the login host and in the local run."""

import http.client
import logging
import urllib.request
import zipfile
from pathlib import Path

from distsage.errors import UserError
from distsage.files import atomic_directory

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10
_CHUNK_BYTES = 1 << 22


def fetch_zip(name: str, url: str, directory: Path) -> None:
    """Download an archive and unpack it as `directory`, which appears only when it is whole.

    An archive whose files all lie in one folder is unpacked without that folder. Blocks until the
    download has ended; a server that is silent for 10 s ends it.

    Raises:
        UserError: the server cannot be reached or falls silent, or the archive is damaged.
    """
    try:
        with atomic_directory(directory) as temporary:
            archive = temporary / "download.zip"
            _download(name, url, archive)
            with zipfile.ZipFile(archive) as files:
                files.extractall(temporary)
            archive.unlink()
            entries = list(temporary.iterdir())
            if len(entries) == 1 and entries[0].is_dir():
                # Out of the way first: the folder may hold an entry of its own name.
                folder = entries[0].rename(temporary / ".folder")
                for entry in folder.iterdir():
                    entry.rename(temporary / entry.name)
                folder.rmdir()
    except (OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
        raise UserError(
            f"{name} cannot be downloaded from {url} ({error}); bring its files to {directory}, or "
            "name the directory that has them with --dataset-root"
        ) from error


def _download(name: str, url: str, archive: Path) -> None:
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,
        open(archive, "wb") as stream,
    ):
        size = int(response.headers.get("Content-Length") or 0)
        logger.info("downloading %s, %.2f GB, from %s", name, size / 1e9, url)
        told = 0
        while chunk := response.read(_CHUNK_BYTES):
            stream.write(chunk)
            if size and stream.tell() * 20 // size > told:
                told = stream.tell() * 20 // size
                logger.info("downloading %s: %d %%", name, told * 5)
        if size and stream.tell() != size:
            raise OSError(f"the connection ended after {stream.tell()} of {size} bytes")
