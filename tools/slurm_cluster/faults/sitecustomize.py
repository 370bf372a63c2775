"""Makes ranks of a job slow, or one fail; Python imports it from PYTHONPATH before the job's code.

It strikes where ranks mark their progress, so that the product needs no hook for it. The variable
DISTSAGE_TEST_FAULT is JSON with

    pace    seconds that every training step takes longer, in the job's first run
    fsync   seconds that every os.fsync takes longer, in the job's first run
    rank    the rank that fails (none: no rank does)
    how     "raise" or "hang"
    when    a file; the rank fails at its next mark after the file has appeared
    spy     a path; the names below /tmp/stage of each host, while it is there, go to PATH-HOST
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

_ranks = (os.environ.get(name) for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"))
_rank = next(filter(None, _ranks), None)

if _rank is not None and "DISTSAGE_TEST_FAULT" in os.environ:
    from distsage.launch.watch.progress import State, Watched

    _fault = json.loads(os.environ["DISTSAGE_TEST_FAULT"])
    _mark = Watched.mark

    def _mark_and_fail(self: Watched, doing: str, state: State = State.WORKING) -> None:
        _mark(self, doing, state)
        if doing.startswith("computing step") and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(_fault["pace"])
        if doing == "importing DGL" and "spy" in _fault:
            names = [
                str(path.relative_to(copy))
                for copy in Path("/tmp/stage").iterdir()
                for path in copy.rglob("*")
            ]
            Path(f"{_fault['spy']}-{socket.gethostname()}").write_text("\n".join(names))
        if _rank == str(_fault.get("rank")) and state is State.WORKING:
            if not Path(_fault["when"]).exists():
                return
            if _fault["how"] == "raise":
                raise RuntimeError("a fault of the test")
            while True:
                time.sleep(1)

    _fsync = os.fsync

    def _slow_fsync(fd: Any) -> None:
        time.sleep(_fault["fsync"])
        _fsync(fd)

    if "fsync" in _fault and "SLURM_RESTART_COUNT" not in os.environ:
        os.fsync = _slow_fsync
    Watched.mark = _mark_and_fail  # type: ignore[method-assign]
