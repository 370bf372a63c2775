"""Predict, with a bound on the memory beside what the imports and compiled code take.

python -m tests.unit.programs.predict_within MIB WARM_UP RUN OUTPUT

Fails unless the same prediction without --memory does not fit.
"""

import os
import resource
import sys

from distsage.cli import main


def predict(run: str, output: str, *options: str) -> None:
    main(["predict", "--run-dir", run, "--output", output, "--what", "probabilities", *options])


def taken(kind: str) -> int:
    with open("/proc/self/status") as stream:
        (line,) = (line for line in stream if line.startswith(kind))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    mebibytes, warm_up, run, output = sys.argv[1:]
    predict(warm_up, f"{output}.npz")
    most = taken("VmData:") + (int(mebibytes) << 20)
    # Private memory; files that are mapped to be shared, or read-only, do not count.
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        predict(run, output)
    except (MemoryError, RuntimeError) as error:  # numpy's, and torch's
        print(error)
    else:
        sys.exit("it fits")
    predict(run, output, "--memory", f"{(taken('RssAnon:') >> 20) + int(mebibytes) - 10}M")
    os._exit(0)  # threads that end in C++ may want memory
