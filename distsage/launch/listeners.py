"""Listening sockets of libraries, which would take whoever connects. Runs on trainer ranks."""

import contextlib
import os
import re
import select
import socket
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


def listening() -> set[int]:
    """The descriptors of this process that are sockets which listen."""
    found = set()
    for entry in _DESCRIPTORS.iterdir():
        with contextlib.suppress(OSError):  # the one of this loop, or no socket
            descriptor = os.dup(int(entry.name))
            with socket.socket(fileno=descriptor) as copy:
                if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found.add(int(entry.name))
    return found


def take_nobody_any_more(descriptors: set[int]) -> None:
    """Have the event loops of this process (epoll) no longer hear of connections to sockets.

    The kernel keeps some that come nevertheless, and drops the others; none takes a descriptor of
    this process. The loop that owns a socket may close it as ever.

    Args:
        descriptors: of sockets that listen.
    """
    loops = []
    for entry in _DESCRIPTORS.iterdir():
        with contextlib.suppress(OSError):  # the one of this loop
            if os.readlink(entry) == "anon_inode:[eventpoll]":
                loops.append(entry.name)
    for name in loops:
        watched = Path(f"/proc/self/fdinfo/{name}").read_text()
        with contextlib.closing(select.epoll.fromfd(os.dup(int(name)))) as loop:
            for number in re.findall(r"^tfd:\s*(\d+)", watched, re.MULTILINE):
                if int(number) in descriptors:
                    loop.modify(int(number), 0)
