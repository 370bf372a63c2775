"""`distsage train` whose hosts see an older list of servers. Started by the tests.

As on a network's file system, where a host may remember a file for a while.
"""

import os
import sys
from pathlib import Path

from distsage.cli import main


def see_an_older_list() -> None:
    from distsage.launch.watch.progress import Watched
    from distsage.launch.watch.ring import Ring

    join = Watched.join

    def join_and_forget(self: Watched, ring: Ring, option: str) -> None:
        # When rank 0 has written it, and before DGL is there.
        Path(ring.log_directory).with_name("ip_config.txt").write_text("10.9.9.9 1\n")
        join(self, ring, option)

    Watched.join = join_and_forget  # type: ignore[method-assign]


if __name__ == "__main__":
    os.register_at_fork(after_in_child=see_an_older_list)
    main(["train", *sys.argv[1:]])
