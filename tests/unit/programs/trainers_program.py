"""One of two trainers that connect by gloo: `trainers_program.py NUMBER DIRECTORY SECRET`."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed

from distsage.launch.proof import prove_trainers

number, directory, secret = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].encode()
while (directory / f"hold-{number}").exists():
    time.sleep(0.01)
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
torch.distributed.init_process_group(
    "gloo",
    store=torch.distributed.FileStore(str(directory / "store"), 2),
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
