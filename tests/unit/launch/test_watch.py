"""Watchers: every way to end a rank ends the job, with one line that names the right one."""

import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distsage.launch.watch import failure_note
from distsage.launch.watch.sweeper import Sweeper
from distsage.launch.watch.watcher import _Watcher

PROGRAM = Path(__file__).parents[1] / "programs" / "watched_program.py"


def run_ring(directory, behaviours, note="note"):
    """Run one process per behaviour; return (statuses, what all of them printed)."""
    root = PROGRAM.parents[3]
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, PROGRAM, str(rank), str(len(behaviours))),
                *(directory, behaviour, directory / note),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for rank, behaviour in enumerate(behaviours)
    ]
    try:
        outputs = [rank.communicate(timeout=90)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], "".join(outputs)


def no_rank_survives(directory):
    """The ranks (children of the watchers) end with their watchers."""
    pids = [int(path.read_text().split()[1]) for path in directory.glob("port-?")]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_ring_of_good_ranks_ends_well(tmp_path, size):
    statuses, output = run_ring(tmp_path, ["good"] * size)
    assert statuses == [0] * size
    assert output == ""
    assert not (tmp_path / "note").exists()


CASES = {
    ("raise", "wait"): ("RuntimeError: out of luck", 1),
    ("mistake", "wait"): ("no such thing; name another", 2),
    ("exit", "wait"): ("exit status 7", 7),
    ("abort", "wait"): ("killed by SIGABRT", 134),
    ("kill-watcher", "wait"): ("its watcher was killed", -9),
    ("terminate-watcher", "wait"): ("ended by SIGTERM", 143),
    ("stop", "wait"): ("stopped by a signal while training", 1),
    ("stuck", "wait"): ("no progress for 3 s (training)", 1),
    ("stuck", "idle"): ("no progress for 3 s (training)", 1),
    ("stuck", "leave"): ("no progress for 3 s (training)", 1),
    # The others have waited for many times `stall_timeout` by then.
    ("work-then-stick", "wait"): ("no progress for 3 s (training)", 1),
    ("load-then-stick", "wait"): ("no progress for 3 s (loading)", 1),
    ("compute-then-stick", "wait"): ("no progress for 3 s (computing)", 1),
    ("wait", "idle"): ("no progress on any rank for 3 s (waiting for the others)", 1),
}
# Many times `stall_timeout`, with marks, in one long call that reads, or in another process.
HEALTHY = [("work", "wait-for-work"), ("load", "wait-for-work"), ("compute", "wait-for-work")]
DEADLOCK = ("wait", "wait")


@pytest.fixture(scope="module")
def rings(tmp_path_factory):
    """All cases at once, since most of their time is waiting: {case: (directory, result)}."""
    cases = [*CASES, *HEALTHY, DEADLOCK]
    directories = {case: tmp_path_factory.mktemp("-".join(case)) for case in cases}
    with ThreadPoolExecutor(len(cases)) as pool:
        running = {
            (one, others): pool.submit(run_ring, directories[one, others], [others, one, others])
            for one, others in cases
        }
        return {case: (directories[case], running[case].result()) for case in cases}


@pytest.mark.parametrize("case", HEALTHY, ids="-".join)
def test_ranks_that_wait_live_as_long_as_one_gets_on(rings, case):
    _, (statuses, output) = rings[case]
    assert output == ""
    assert statuses == [0] * 3


def test_a_ring_of_ranks_that_all_wait_ends(rings):
    directory, (statuses, output) = rings[DEADLOCK]
    assert "no progress on any rank for 3 s (waiting for the others)" in output
    assert output.count("distsage: ") == 1
    assert 0 not in statuses
    assert no_rank_survives(directory)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_job_ends_with_one_line_that_names_the_cause(rings, case):
    directory, (statuses, output) = rings[case]
    cause, status = CASES[case]
    line = f"rank 1 (trainer on host1): {cause}"
    lines = [text for text in output.splitlines() if text.startswith("distsage: ")]
    assert lines == [f"distsage: {line}"]
    assert (directory / "note").read_text() == f"{line}\n"
    assert statuses[1] == status
    assert 0 not in statuses
    assert no_rank_survives(directory)


def test_a_stuck_rank_leaves_everybodys_stack_in_the_logs(rings):
    directory, _ = rings["stuck", "wait"]
    for rank in range(3):
        log = (directory / f"rank-{rank}.txt").read_text()
        assert "watched_program.py" in log, f"rank {rank} left no stack"


def test_a_traceback_is_printed_once(rings):
    _, (_, output) = rings["raise", "wait"]
    assert output.count("Traceback") == 1
    assert output.count("RuntimeError: out of luck") == 2  # in the traceback, and in the line


@pytest.mark.parametrize("note", ["note", "nowhere/note"])
@pytest.mark.parametrize("batch", [False, True])
def test_one_line_is_said_where_the_note_cannot_be_written(tmp_path, monkeypatch, note, batch):
    if batch:  # the script would print the note
        monkeypatch.setenv("DISTSAGE_FAILURE_NOTE", str(tmp_path / note))
    statuses, output = run_ring(tmp_path, ["wait", "full-disk", "wait"], note)
    assert output == "distsage: rank 1 (trainer on host1): cannot write it; make room\n"
    assert statuses[1] == 2
    assert 0 not in statuses
    assert no_rank_survives(tmp_path)


def test_a_stopped_watcher_is_missed_by_the_next_one(tmp_path):
    # The stopped process is killed by run_ring; the others must not wait for it.
    root = PROGRAM.parents[3]
    env = {**os.environ, "PYTHONPATH": str(root)}
    ranks = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(rank), "3", tmp_path, behaviour, tmp_path / "note"],
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for rank, behaviour in enumerate(["idle", "stop-watcher", "idle"])
    ]
    try:
        output = ranks[2].communicate(timeout=45)[1] + ranks[0].communicate(timeout=45)[1]
    finally:
        for rank in ranks:
            rank.kill()
    assert "distsage: rank 1 (trainer on host1): its watcher is stopped" in output
    assert output.count("distsage: ") == 1


_started = []


@pytest.fixture(autouse=True)
def _nothing_goes_on():
    yield
    for rank in _started:
        rank.kill()
        rank.wait()
    _started.clear()


def start_ring(directory, behaviours, **settings):
    """One process per behaviour, started and not waited for."""
    root = PROGRAM.parents[3]
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, PROGRAM, str(rank), str(len(behaviours))),
                *(directory, behaviour, directory / "note"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root), **settings},
        )
        for rank, behaviour in enumerate(behaviours)
    ]
    _started.extend(ranks)
    return ranks


def end_ring(ranks):
    """What all ranks printed, and their statuses."""
    try:
        output = "".join(rank.communicate(timeout=60)[0] for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    return output, [rank.returncode for rank in ranks]


def wait_for_files(directory, pattern, count):
    deadline = time.monotonic() + 45
    while len(list(directory.glob(pattern))) < count:
        assert time.monotonic() < deadline, pattern
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "to"),
    [
        *(
            (number, to)
            for number in (signal.SIGUSR1, signal.SIGUSR2)
            for to in ("watcher", "both")
        ),
        (signal.SIGTERM, "all"),
    ],
)
def test_a_signal_to_a_watcher_asks_all_ranks_to_stop(tmp_path, number, to):
    ranks = start_ring(tmp_path, ["idle-until-asked", "asks", "asks"])
    wait_for_files(tmp_path, "asks-?", 3)
    for rank in range(3 if to == "all" else 1):
        words = (tmp_path / f"port-{rank}").read_text().split()
        for pid in words[1:] if to != "watcher" else words[2:]:
            os.kill(int(pid), number)
    assert end_ring(ranks) == ("", [0] * 3)
    assert not (tmp_path / "note").exists()


def test_sigterm_to_a_rank_alone_reaches_its_watcher(tmp_path):
    ranks = start_ring(tmp_path, ["wait", "stuck", "wait"])
    wait_for_files(tmp_path, "rank-?.txt", 3)
    os.kill(int((tmp_path / "port-1").read_text().split()[1]), signal.SIGTERM)
    output, statuses = end_ring(ranks)
    assert output == "distsage: rank 1 (trainer on host1): ended by SIGTERM\n"
    assert statuses[1] == 143


def test_a_rank_that_does_not_stop_is_ended(tmp_path):
    ranks = start_ring(tmp_path, ["idle", "asks-in-vain", "idle"])
    wait_for_files(tmp_path, "asks-1", 1)
    wait_for_files(tmp_path, "rank-?.txt", 3)
    os.kill(ranks[1].pid, signal.SIGTERM)
    output, statuses = end_ring(ranks)
    assert (tmp_path / "asks-1-and-knows").exists()
    assert output == "distsage: rank 1 (trainer on host1): ended by SIGTERM\n"
    assert statuses[1] == 143
    assert no_rank_survives(tmp_path)


def test_a_rank_is_asked_to_stop_before_the_ring_is_there(tmp_path):
    (tmp_path / "hold").touch()
    ranks = start_ring(tmp_path, ["idle-until-asked", "asks"])
    wait_for_files(tmp_path, "port-?", 2)
    os.kill(ranks[0].pid, signal.SIGUSR2)
    (tmp_path / "hold").unlink()
    assert end_ring(ranks) == ("", [0] * 2)


def test_ranks_that_have_done_all_their_work_need_not_get_away_from_mpi(tmp_path):
    ranks = start_ring(tmp_path, ["leave-in-vain", "until-enough", "leave-in-vain"])
    wait_for_files(tmp_path, "serves-1", 1)
    time.sleep(1)
    assert ranks[0].poll() is None
    (tmp_path / "enough").touch()
    assert end_ring(ranks) == ("", [0] * 3)
    assert no_rank_survives(tmp_path)


@pytest.mark.parametrize(
    "behaviour", ["good", "raise", "abort", "terminate-watcher", "kill-watcher"]
)
def test_a_watcher_leaves_nothing_of_its_rank(tmp_path, behaviour):
    segments = [Path(f"/dev/shm/distsage.test.{tmp_path.name}.{rank}.x") for rank in (0, 1, 10)]
    staged = [tmp_path / f"staged-{rank}" for rank in (0, 1, 10)]
    try:
        for path in segments:
            path.touch()
        for path in staged:
            (path / "part0").mkdir(parents=True)
            (path / "part0" / "x").touch()
        run_ring(tmp_path, ["good" if behaviour == "good" else "wait", behaviour])
        if behaviour == "kill-watcher":  # nobody waits for its sweeper
            deadline = time.monotonic() + 10
            while (segments[1].exists() or staged[1].exists()) and time.monotonic() < deadline:
                time.sleep(0.01)
        assert [path.exists() for path in (*segments, *staged)] == [False, False, True] * 2
    finally:
        for path in segments:
            path.unlink(missing_ok=True)


def test_the_batch_script_learns_where_rank_0_is_watched_and_how_all_ended(tmp_path):
    note = tmp_path / "batch-note"
    ranks = start_ring(tmp_path, ["until-enough", "until-enough"], DISTSAGE_FAILURE_NOTE=str(note))
    wait_for_files(tmp_path, "serves-?", 2)
    wait_for_files(tmp_path, "batch-note.running", 1)
    running = Path(f"{note}.running")
    assert running.read_text() == f"{socket.gethostname()} {ranks[0].pid}\n"
    (tmp_path / "enough").touch()
    assert end_ring(ranks) == ("", [0] * 2)
    lock = f"batch-note.on-{socket.gethostname()}"
    assert {path.name for path in tmp_path.glob("batch-note*")} == {"batch-note.ended", lock}
    with open(tmp_path / lock) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no watcher holds it any more


def test_the_batch_script_is_told_of_progress_and_of_a_stop(tmp_path, monkeypatch):
    monkeypatch.delenv("DISTSAGE_FAILURE_NOTE", raising=False)
    failure_note.say_got_on()
    failure_note.say_stopped("preempted")
    note = tmp_path / "note"
    monkeypatch.setenv("DISTSAGE_FAILURE_NOTE", str(note))
    failure_note.say_got_on()
    failure_note.say_got_on()
    failure_note.say_stopped("preempted")
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == {"note.progress": "", "note.stopped": "preempted\n"}


def test_a_rank_whose_watcher_has_just_been_killed_ends(tmp_path):
    """Also when that was before the kernel knew that the rank is to end with it."""
    alive = tmp_path / "alive"
    code = (
        "import os, pathlib, signal, time; from distsage.launch.watch.watcher import run_watched\n"
        "fork = os.fork\n"
        "def fork_and_lose_the_parent():\n"
        "    child = fork()\n"
        "    if child: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    while os.getppid() == parent: time.sleep(0.01)\n"
        "    return child\n"
        "os.fork, parent = fork_and_lose_the_parent, os.getpid()\n"
        f"run_watched(lambda watched: pathlib.Path({str(alive)!r}).touch(), 60.0)"
    )
    # Its standard output ends with the last of the two processes.
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=45)
    assert ended.returncode == -9
    assert not alive.exists()


# What a rank does before it joins a ring, and how long it may take at first.
COME_UP = {
    "longer": ("watched.allow_startup(60); time.sleep(13)", 1.0),
    "shorter": ("watched.allow_startup(2); watched.mark('x'); time.sleep(60)", 120.0),
    "never": ("watched.mark('joining MPI'); time.sleep(60)", 1.0),
}


@pytest.fixture(scope="module")
def come_up() -> dict[str, subprocess.CompletedProcess[str]]:
    """Ranks of their own, all at once, since most of their time is waiting."""

    def run(body: str, startup_timeout: float) -> subprocess.CompletedProcess[str]:
        code = (
            "import time; from distsage.launch.watch.watcher import run_watched\n"
            f"def main(watched):\n    {body}\n"
            f"run_watched(main, {startup_timeout})"
        )
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    with ThreadPoolExecutor(len(COME_UP)) as pool:
        running = {name: pool.submit(run, *what) for name, what in COME_UP.items()}
        return {name: ended.result() for name, ended in running.items()}


def test_a_rank_says_how_long_start_up_may_take(come_up):
    """The watcher is there before the configuration is read."""
    assert (come_up["longer"].returncode, come_up["longer"].stderr) == (0, "")
    assert come_up["shorter"].returncode == 1
    assert "did not come up within 2 s (x)" in come_up["shorter"].stderr


def test_a_rank_that_never_joins_is_named(come_up):
    assert come_up["never"].returncode == 1
    assert "did not come up within 1 s (joining MPI)" in come_up["never"].stderr


def test_the_end_of_a_rank_may_be_told_twice():
    """A rank that ends while its watcher starts: once by looking, once by the signal."""
    own_end, other_end = socket.socketpair()
    with own_end, other_end:
        watcher = _Watcher(0, mmap.mmap(-1, mmap.PAGESIZE), own_end, other_end, 1.0, Sweeper())
        watcher._reap()
        assert watcher.verdict is None
