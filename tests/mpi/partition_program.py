"""`distsage partition` in which a rank fails: `partition_program.py WHAT OPTIONS`. Under mpirun.

WHAT is
    killed     rank 1 is killed when it has written its share, and ranks its parts
    full disk  rank 1 finds the disk full when it writes its share
    nothing    none fails
"""

import errno
import os
import signal
import sys
from typing import Any

from distsage.cli import main

RANK = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMIX_RANK"))


def fail_in_time() -> None:
    """In the rank, whose modules may not be imported before."""
    if RANK != "1" or what == "nothing":
        return
    from distsage.partitioning import shares

    def fail(*_: Any, **__: Any) -> None:
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, "No space left on device")

    setattr(shares, "rank_remote" if what == "killed" else "part_topology", fail)


if __name__ == "__main__":
    what = sys.argv[1]
    os.register_at_fork(after_in_child=fail_in_time)
    main(["partition", *sys.argv[2:]])
