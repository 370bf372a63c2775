"""`distsage train` on a disk that fills before the model is saved. Started by the tests.

The rank that saves it, and its watcher, can still make files then, but write next to nothing to
them.
"""

import os
import resource
import sys
from typing import Any

from distsage.cli import main


def fill_the_disk_in_time() -> None:
    from distsage.train.run_directory import RunDirectory

    save_model = RunDirectory.save_model

    def fill_and_save(*arguments: Any) -> None:
        for process in (os.getpid(), os.getppid()):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        save_model(*arguments)

    RunDirectory.save_model = fill_and_save  # type: ignore[method-assign]


if __name__ == "__main__":
    os.register_at_fork(after_in_child=fill_the_disk_in_time)  # torch must not be there before
    main(["train", *sys.argv[1:]])
