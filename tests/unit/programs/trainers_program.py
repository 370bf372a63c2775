"""One of two trainers that connect by gloo: `trainers_program.py NUMBER DIRECTORY SECRET`."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed

from distsage.launch.proof import prove_trainers

number, directory, secret = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].encode()


class HeldStore(torch.distributed.Store):
    """Keeps a trainer's address, where it listens already, from the other one for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._file = torch.distributed.FileStore(str(directory / "store"), 2)

    def set(self, key: str, value: bytes) -> None:
        """As torch.distributed's stores have it."""
        while (directory / "hold").exists():
            time.sleep(0.01)
        self._file.set(key, value)

    def get(self, key: str) -> bytes:
        """As torch.distributed's stores have it."""
        return self._file.get(key)

    def wait(self, keys: list[str], timeout: timedelta = timedelta(seconds=60)) -> None:
        """As torch.distributed's stores have it."""
        self._file.wait(keys, timeout)


os.environ["GLOO_SOCKET_IFNAME"] = "lo"
torch.distributed.init_process_group(
    "gloo",
    store=HeldStore(),
    rank=number,
    world_size=2,
    timeout=timedelta(seconds=60),
)
try:
    prove_trainers(secret, ["trainer 0", "trainer 1"], seconds=10.0)
    print("proven")
except ConnectionError as error:
    print(error)
sys.stdout.flush()
os._exit(0)  # gloo would wait for the other one
