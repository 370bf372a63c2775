"""`distsage predict`, with a rank that is killed: `predict_program.py RANK MOMENT OPTIONS`.

Started by mpirun. MOMENT is the rank's n-th call of a function, such as `OutputDirectory.begin 1`,
and its last one. Without RANK and MOMENT (`none PATH`) no rank is killed, and PATH-RANK lists the
moments of each.
"""

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import distsage
from distsage.cli import main

RANK = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMIX_RANK"))
HOME = Path(distsage.__file__).parent
# Of a rank's work on the model; what else it does is the same in any job.
FILES = {str(path) for path in (HOME / "prediction").glob("*.py")}
FILES |= {str(HOME / name) for name in ("files.py", "train/halo_inference.py")}
FILES |= {str(HOME / "train/server_rank.py")}


def watch_calls() -> None:
    """In the rank, which has been forked."""
    calls: Counter[str] = Counter()

    def called(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_qualname
        # Closures are called when time has passed.
        if event != "call" or frame.f_code.co_filename not in FILES or "<" in name:
            return
        calls[name] += 1
        if victim == "none":
            with open(f"{moment}-{RANK}", "a") as stream:
                stream.write(f"{name} {calls[name]}\n")
        elif victim == RANK and moment == f"{name} {calls[name]}":
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(called)


if __name__ == "__main__":
    victim, moment = sys.argv[1:3]
    os.register_at_fork(after_in_child=watch_calls)
    main(["predict", *sys.argv[3:]])
