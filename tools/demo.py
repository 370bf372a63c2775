"""The whole of distsage on this machine: `make demo`.

Splits a synthetic graph into two parts, trains on them with one mpirun of four ranks that act as
two hosts, and trains once more without the graph's edges, to show what the graph is worth.
"""

import argparse
import contextlib
import fcntl
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from distsage.errors import UserError
from tools.mpirun import launcher
from tools.summary import summary_table

_MARKER = ".distsage-demo"
_PYTHON = sys.executable
# Seconds that a step may take, and that it may be silent until the demo says that it still runs.
_STEP_SECONDS = 600
_SILENCE_SECONDS = 5
_EPOCHS = 15


def main() -> None:
    """Run the demo; a failure ends with one sentence and a status other than 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument(
        "--nodes",
        type=int,
        default=60_000,
        help="of the graph, at least 1000; default: %(default)s",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        help="directory to write; an earlier demo in it is replaced; default: %(default)s",
    )
    args = parser.parse_args()
    # A termination unwinds, so that the running step is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(args.nodes, args.output)
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def run(num_nodes: int, directory: Path) -> None:
    """Take the three steps and print the table. Blocks for about a minute.

    Raises:
        UserError: the directory is in use or not the demo's, or a step failed.
    """
    if num_nodes < 1000:
        raise UserError(f"--nodes is {num_nodes}; the demo needs at least 1000")
    started = time.monotonic()
    mpirun, environment = launcher(4)
    dataset = f"synthetic:{num_nodes}"
    epochs = ["--num-epochs", str(_EPOCHS)]
    batches = ["--batch-size", "500"]
    with _fresh_directory(directory) as output:
        distsage = [_PYTHON, "-m", "distsage"]
        partition = [*distsage, "partition", "--dataset", dataset, "--num-parts", "2"]
        partition += batches
        _step(
            f"1/3  splitting {dataset} into 2 parts",
            [*partition, "--output", str(output / "parts")],
            environment,
        )
        train = [*mpirun, _PYTHON, "-m", "mpi4py", "-m", "distsage", "train", *epochs]
        train += ["--emulated-hosts", "2", *batches, "--parts", str(output / "parts")]
        _step(
            "2/3  training on 2 emulated hosts: 4 ranks, 2 of them servers, 2 trainers",
            [*train, "--run-dir", str(output / "train")],
            environment,
        )
        local = [*distsage, "local", "--dataset", dataset, "--ignore-edges", *epochs]
        _step(
            "3/3  training without the graph, on the features alone, for comparison",
            [*local, "--run-dir", str(output / "without-graph")],
            environment,
        )
    table = summary_table(directory / "train", directory / "without-graph")
    print(f"\n{table}\n\ndone in {time.monotonic() - started:.0f} s")


@contextlib.contextmanager
def _fresh_directory(path: Path) -> Iterator[Path]:
    """Empty the demo's directory, which nobody else uses meanwhile."""
    marker = path / _MARKER
    if path.exists() and not marker.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is no earlier demo; name another --output")
    try:
        path.mkdir(parents=True, exist_ok=True)
        stream = open(marker, "w")  # noqa: SIM115 - closed below, which gives up the lock
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another demo is running in {path}; wait for it") from None
        for entry in path.iterdir():
            if entry.name == _MARKER:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        yield path


def _step(title: str, command: list[str], environment: dict[str, str]) -> None:
    """Run one command and pass on what it prints; say so when it has been silent for a while.

    Raises:
        UserError: it failed, or took too long.
    """
    print(f"\n{title}\n$ {_shown(command)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
    try:
        while True:
            seconds = time.monotonic() - started
            if seconds > _STEP_SECONDS:
                raise UserError(f"step {title[:3]} has not ended after {_STEP_SECONDS} s")
            try:
                line = lines.get(timeout=_SILENCE_SECONDS)
            except queue.Empty:
                print(f"     ... {seconds + _SILENCE_SECONDS:.0f} s", flush=True)
                continue
            if line is None:
                break
            print(f"     {line.rstrip()}", flush=True)
        status = process.wait(timeout=30)
    finally:
        _end(process)
    if status != 0:
        raise UserError(f"step {title[:3]} failed with status {status}; see its last lines above")


def _read_lines(stream: "Iterator[str]", lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _end(process: "subprocess.Popen[str]") -> None:
    """End a step and what it started, if it still runs."""
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)


def _shown(command: list[str]) -> str:
    """The command as one would type it in the checkout."""
    return shlex.join(word.removeprefix(f"{os.getcwd()}/") for word in command)


if __name__ == "__main__":
    main()
