"""What DGL does with shared memory, changed as in a job. Started by the tests: PARTS, PREFIX, WHAT.

Makes a segment as a server does, or opens it as a trainer does, and prints the names of all
segments of the job, then what the partition book says.
"""

import json
import sys
from pathlib import Path

import dgl
import torch
from dgl.distributed import dist_graph, kvstore

from distsage.launch.dgl.messages import DGLJob
from distsage.launch.dgl.patches import install
from distsage.launch.roles import Assignment
from distsage.limits import SHARED_MEMORY
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.parts import Parts

parts_dir, prefix, what = sys.argv[1:]
parts = HostParts.deal(Parts.open(Path(parts_dir)), ["a", "b"])
assignment = Assignment(0, 4, "server" if what == "serve" else "trainer", 1, 2, 0, 1)
install(
    DGLJob(
        *(assignment, [("127.0.0.1", 1)] * 2, ["a", "b"], ["c", "d"], None, parts, prefix),
        *(b"secret", 1.0, "float32", None),
    )
)
if what == "serve":
    (_, _, _, book, *_) = dist_graph.load_partition(str(parts.parts.dgl_config), 1, False)
    book.shared_memory("small")
    rows = kvstore.empty_shared_mem("rows-kvdata-", True, (3,), "int64")
    rows.copyfrom(dgl.ndarray.array(torch.arange(3).numpy()))
    print(json.dumps(sorted(path.name for path in SHARED_MEMORY.glob(f"{prefix}*"))), flush=True)
    sys.stdin.read()
else:
    rows = kvstore.empty_shared_mem("rows-kvdata-", False, (3,), "int64")
    book = dist_graph.get_shared_mem_partition_book("small")
    said = [book.partid, book.metadata(), book.nid2partid(torch.arange(20)).tolist()]
    print(json.dumps([rows.asnumpy().tolist(), said]))
