"""What the C library keeps of freed memory."""

import subprocess
import sys


def test_freed_memory_is_returned() -> None:
    """Blocks of several megabytes, freed out of order between small ones that stay."""
    program = """
import sys
import numpy as np
from distsage.train import allocator

def own():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon:"))
    return int(line.split()[1]) >> 10

getattr(allocator, sys.argv[1])()
np.ones(1 << 21)  # 16 MiB: by itself glibc takes blocks of that size from its heap from now on
before, stay = own(), []
for _ in range(4):
    blocks = []
    for _ in range(8):
        blocks.append(np.ones(1 << 20))
        stay.append(np.ones(1 << 10))
    del blocks
print(own() - before)
"""

    def kept(function: str) -> int:
        command = [sys.executable, "-c", program, function]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return int(ended.stdout)

    assert kept("return_freed_memory") < 8
    assert kept("keep_freed_memory") > 32
