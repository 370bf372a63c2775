"""Partition a dataset, with a bound on the memory beside what the imports and compiled code take.

python -m tests.unit.programs.partition_within MIB WARM_UP DATASET OUTPUT
"""

import os
import resource
import sys

from distsage.cli import main


def partition(dataset: str, output: str) -> None:
    options = ["--num-parts", "2", "--part-method", "random", "--split", "0.6/0.2/0.2"]
    main(["partition", "--dataset", dataset, "--output", output, *options])


def taken() -> int:
    with open("/proc/self/status") as stream:
        (line,) = (line for line in stream if line.startswith("VmData:"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    mebibytes, warm_up, dataset, output = sys.argv[1:]
    partition(warm_up, f"{output}-warm-up")
    most = taken() + (int(mebibytes) << 20)
    # Private memory; files that are mapped read-only do not count.
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    partition(dataset, output)
    os._exit(0)  # threads that end in C++ may want memory
