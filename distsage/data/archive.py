"""Zip archives from strangers: what they hold is known to be bounded before it is unpacked.

Runs on the login host and in the local run: downloads are such archives, and so are .npz files.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from distsage.errors import shown
from distsage.limits import human_bytes

# Deflate cannot do better: 258 bytes for two bits.
_MOST_EXPANSION = 1032
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
# Of a file in an archive: what is read elsewhere, and the lengths of two fields behind it.
_LOCAL_HEADER = struct.Struct("<26sHH")


class ArchiveError(ValueError):
    """What is wrong with an archive, in half a sentence."""


class Archive:
    """A zip archive that is open for reading.

    Attributes:
        entries: the directory's entries by name.
    """

    def __init__(self, file: zipfile.ZipFile, path: Path) -> None:
        """Check the directory of `file`, which lies at `path`.

        Raises:
            ArchiveError: a name twice, a method other than stored and deflated, an encrypted file,
                or sizes that cannot be.
        """
        self._file, self._path = file, path
        num_bytes = path.stat().st_size
        self.entries: dict[str, zipfile.ZipInfo] = {}
        for entry in file.infolist():
            name = entry.filename
            if name in self.entries:
                raise ArchiveError(f"{name!r} is in it twice")
            if entry.compress_type not in _READABLE or entry.flag_bits & _ENCRYPTED:
                raise ArchiveError(f"{name!r} is encrypted, or packed in an unusual way")
            expansion = 1 if entry.compress_type == zipfile.ZIP_STORED else _MOST_EXPANSION
            if (
                entry.compress_size > num_bytes
                or entry.file_size > entry.compress_size * expansion + 64
            ):
                raise ArchiveError(f"{name!r} cannot unpack to {human_bytes(entry.file_size)}")
            self.entries[name] = entry

    @property
    def unpacked_bytes(self) -> int:
        """What all files come to, unpacked."""
        return sum(entry.file_size for entry in self.entries.values())

    def stored_at(self, name: str) -> int | None:
        """Where in the archive a file's content begins, if it is there unpacked; else None."""
        entry = self.entries[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        with open(self._path, "rb") as stream:
            stream.seek(entry.header_offset)
            header = stream.read(_LOCAL_HEADER.size)
        with _explained():
            _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        return entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file's content, which ends after the size that its entry states.

        The checksum is compared when its last byte has been read.

        Raises:
            ArchiveError: the file is damaged; also from within the block.
        """
        with _explained(), self._file.open(self.entries[name]) as stream:
            yield stream

    def check_names(self) -> None:
        """See that unpacking writes plain files and folders below one directory, and nothing else.

        Raises:
            ArchiveError: a name that leads elsewhere, a link or a device.
        """
        for name, entry in self.entries.items():
            steps = name.rstrip("/").split("/")
            if not set(steps).isdisjoint(("", ".", "..")) or "\\" in name or "\0" in name:
                raise ArchiveError(f"{name!r} leads out of its directory")
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{name!r} is a link or a device")


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a zip archive.

    Raises:
        OSError: it cannot be read.
        ArchiveError: it is no zip archive, is damaged, or see `Archive`.
    """
    with _explained(), zipfile.ZipFile(path) as file:
        yield Archive(file, path)


@contextmanager
def _explained() -> Iterator[None]:
    """Name what zipfile stumbles over: it was written for archives that are whole."""
    try:
        yield
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise ArchiveError(shown(error) or "it ends early") from error
    except NotImplementedError as error:
        raise ArchiveError(f"it asks for what no reader here has: {error}") from error
    except UnicodeDecodeError as error:
        raise ArchiveError("a name in it is no text") from error
