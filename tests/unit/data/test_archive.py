"""Archives that were downloaded: what they may not do to the disk they are unpacked on."""

import hashlib
import stat
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import distsage.data.download
from distsage.data.builtin import _SHA256
from distsage.data.download import Source, fetch_zip
from distsage.data.ogb import _SETS
from distsage.errors import UserError


def served(path: Path, members: dict[str, bytes], modes: dict[str, int] | None = None) -> Source:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)
    return Source(path.as_uri(), 1 << 20, hashlib.sha256(path.read_bytes()).hexdigest())


def refuse(source: Source, directory: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        fetch_zip("the set", source, directory / "root" / "set")
    assert "\n" not in str(caught.value)
    assert not (directory / "root").exists() or not list((directory / "root").iterdir())


LINK = {"link": stat.S_IFLNK | 0o777}
HOSTILE = {
    "to the parent": ({"../victim": b"x"}, None, "leads out of its directory"),
    "to the parent from within": ({"a/../../victim": b"x"}, None, "leads out of its directory"),
    "absolute": ({"/victim": b"x"}, None, "leads out of its directory"),
    "a backslash": ({"..\\victim": b"x"}, None, "leads out of its directory"),
    "here": ({"./a": b"x"}, None, "leads out of its directory"),
    "a link": ({"link": b"/etc", "link/victim": b"x"}, LINK, "is a link or a device"),
    "a device": ({"link": b""}, {"link": stat.S_IFCHR | 0o666}, "is a link or a device"),
    "too much": ({"zeros": bytes(3 << 20)}, None, "unpacks to 3.0 MiB; 1.0 MiB are expected"),
    "too many": ({f"f{n}": b"" for n in range(1001)}, None, "it holds 1001 files"),
    "a file as a folder": ({"a": b"x", "a/b": b"x"}, None, "cannot be downloaded"),
}


@pytest.mark.parametrize("row", HOSTILE)
def test_what_an_archive_may_not_do(tmp_path, row):
    members, modes, words = HOSTILE[row]
    (tmp_path / "victim").write_text("precious")
    refuse(served(tmp_path / "a.zip", members, modes), tmp_path, words)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a", b"2")
    refuse(Source((tmp_path / "a.zip").as_uri(), 1 << 20), tmp_path, "'a' is in it twice")


def test_another_archive_than_the_one_that_is_known(tmp_path):
    source = served(tmp_path / "a.zip", {"a": b"x"})
    refuse(replace(source, sha256="0" * 64), tmp_path, "not the archive that is known")
    fetch_zip("the set", source, tmp_path / "root" / "set")
    assert (tmp_path / "root" / "set" / "a").read_bytes() == b"x"


def test_an_archive_that_is_longer_than_any(tmp_path):
    source = served(tmp_path / "a.zip", {"a": b"x"})
    refuse(replace(source, most_bytes=100), tmp_path, "larger than 100 B")


@pytest.mark.parametrize("stated", ["abc", "-5", "9" * 5000, "²"])
def test_a_length_that_is_none(tmp_path, stated):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.wfile.write(f"HTTP/1.0 200 OK\r\nContent-Length: {stated}\r\n\r\nno zip".encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/a.zip"
        refuse(Source(url, 1 << 20), tmp_path, "cannot be downloaded")
        thread.join()


def test_https_does_not_end_as_http(tmp_path, monkeypatch):
    """A server, or who speaks for it, that sends on to an address without encryption."""
    served(tmp_path / "a.zip", {"a": b"x"})
    plain = distsage.data.download.urllib.request.urlopen

    def redirect(url: str, timeout: float):
        response = plain((tmp_path / "a.zip").as_uri(), timeout=timeout)
        response.url = "http://elsewhere/a.zip"
        return response

    monkeypatch.setattr(distsage.data.download.urllib.request, "urlopen", redirect)
    refuse(Source("https://here/a.zip", 1 << 20), tmp_path, "was sent on to http://elsewhere")


def test_known_sets_come_over_https_with_their_checksums():
    assert all(facts.source.url.startswith("https://") for facts in _SETS.values())
    pinned = [name for name, facts in _SETS.items() if facts.source.sha256]
    assert pinned == ["ogbn-arxiv", "ogbn-products"]
    assert set(_SHA256) == {"reddit"}
