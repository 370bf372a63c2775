"""One rank of a ring without MPI: `watched_program.py RANK SIZE DIRECTORY BEHAVIOUR NOTE`."""

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

from distsage.errors import UserError
from distsage.launch.watch import pulse, watcher
from distsage.launch.watch.progress import State, Watched
from distsage.launch.watch.ring import Ring

STALL_TIMEOUT = 3.0
# A rank that waits gives up after 3 + 10 + 3 s without progress in a ring of three.
LONG = 20.0


def load(seconds: float) -> None:
    """Read a pipe in one call, as a library reads a file: slowly, and for so long."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)  # so that a write fails when the one who reads has ended
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                os.write(writer, bytes(2**20))
                time.sleep(STALL_TIMEOUT / 6)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb", buffering=0) as stream:
        stream.readall()


def compute(seconds: float) -> None:
    """Wait for another process, which computes every now and then, for so long."""
    child = os.fork()
    if child == 0:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            until = time.process_time() + 0.1
            while time.process_time() < until:
                pass
            time.sleep(STALL_TIMEOUT / 6)
        os._exit(0)
    os.waitpid(child, 0)


def main(watched: Watched) -> None:
    rank, size, directory, behaviour = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        Path(sys.argv[3]),
        sys.argv[4],
    )
    port = watched.listen("127.0.0.1", caller_ip="127.0.0.1")
    (directory / f"port-{rank}.tmp").write_text(f"{port} {os.getpid()} {os.getppid()}")
    os.rename(directory / f"port-{rank}.tmp", directory / f"port-{rank}")
    while (directory / "hold").exists():
        time.sleep(0.01)
    ports = []
    for other in range(size):
        while not (directory / f"port-{other}").exists():
            time.sleep(0.01)
        ports.append(int((directory / f"port-{other}").read_text().split()[0]))
    watched.leave_nothing(f"distsage.test.{directory.name}.{rank}.", directory / f"staged-{rank}")
    watched.join(
        Ring(
            rank=rank,
            labels=[f"rank {r} (trainer on host{r})" for r in range(size)],
            addresses=[("127.0.0.1", port) for port in ports],
            key="00" * 32,
            note=sys.argv[5],
            log_directory=str(directory),
            stall_timeout=STALL_TIMEOUT,
        ),
        "--run-dir",
    )
    watched.mark("training")
    if behaviour == "until-enough":
        watched.mark("serving", State.IDLE)
        (directory / f"serves-{rank}").touch()
        while not (directory / "enough").exists():
            time.sleep(0.05)
        return
    if behaviour == "idle-until-asked":  # a server, whose trainers stop
        watched.mark("serving", State.IDLE)
        (directory / f"asks-{rank}").touch()
        while not any(directory.glob("stopped-*")):
            time.sleep(0.05)
        return
    if behaviour in ("asks", "asks-in-vain"):
        while not (asked := watched.stop_requested()) or behaviour == "asks-in-vain":
            watched.mark("training")
            (directory / f"asks-{rank}{'-and-knows' if asked else ''}").touch()
            time.sleep(0.05)
        (directory / f"stopped-{rank}").touch()
        return
    if behaviour == "leave-in-vain":
        # As in MPI_Finalize while a stranger holds a port of MPI's.
        libc = ctypes.CDLL(None)
        libc.__cxa_atexit(libc.pause, None, None)
        return
    if behaviour == "raise":
        raise RuntimeError("out of luck")
    if behaviour == "mistake":
        raise UserError("no such thing; name another")
    if behaviour == "full-disk":
        # The watcher can still make files, but write nothing to them.
        resource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        raise UserError("cannot write it; make room")
    if behaviour == "exit":
        os._exit(7)
    if behaviour == "abort":
        os.abort()
    if behaviour.endswith("watcher"):
        time.sleep(1.5)  # the ring is closed by then
    if behaviour == "kill-watcher":
        os.kill(os.getppid(), signal.SIGKILL)
    if behaviour == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if behaviour == "stop-watcher":
        os.kill(os.getppid(), signal.SIGSTOP)
    if behaviour == "terminate-watcher":
        os.kill(os.getppid(), signal.SIGTERM)
    if behaviour == "wait":
        watched.mark("waiting for the others", State.WAITING)
        time.sleep(60)
    if behaviour in ("work", "work-then-stick"):
        for step in range(int(LONG)):
            watched.mark(f"training, step {step}")
            time.sleep(1.0)
        watched.mark("training")
        if behaviour == "work":
            (directory / "worked").touch()
            return
        time.sleep(60)
    if behaviour == "wait-for-work":
        watched.mark("waiting for the others", State.WAITING)
        while not (directory / "worked").exists():
            time.sleep(0.05)
        return
    if behaviour in ("load", "load-then-stick"):
        watched.mark("loading", State.LOADING)
        load(LONG)
        if behaviour == "load":
            (directory / "worked").touch()
            return
        time.sleep(60)
    if behaviour in ("compute", "compute-then-stick"):
        watched.mark("computing", State.COMPUTING)
        compute(LONG)
        if behaviour == "compute":
            (directory / "worked").touch()
            return
        time.sleep(60)
    if behaviour == "leave":
        # As in MPI_Finalize: Python has ended, and the process waits for the others.
        watched.mark("leaving", State.WAITING)
        libc = ctypes.CDLL(None)
        libc.__cxa_atexit(libc.pause, None, None)
        return
    if behaviour == "idle":
        watched.mark("serving", State.IDLE)
        time.sleep(60)
    if behaviour in ("stuck", "stop", "kill-watcher", "stop-watcher", "terminate-watcher"):
        time.sleep(60)


if __name__ == "__main__":
    watcher.LEAVE_SECONDS = 5.0
    pulse.COMPUTED_SECONDS = 0.1
    watcher.run_watched(main, 10.0)
