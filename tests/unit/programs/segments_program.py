"""What DGL does with shared memory, changed as in a job. Started by the tests: PARTS, PREFIX, WHAT.

Makes a segment and the graph's as a server does, or opens them as a trainer does, and prints the
names of all segments of the job, then what the partition book says.
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
from distsage.partition.parts import Parts

parts_dir, prefix, what = sys.argv[1:]
parts = Parts.open(Path(parts_dir))
assignment = Assignment(0, 4, "server" if what == "serve" else "trainer", 1, 2, 0, 1)
install(
    DGLJob(
        *(assignment, [("127.0.0.1", 1)] * 2, ["a", "b"], ["c", "d"], None, parts, prefix),
        *(b"secret", 1.0, "float32"),
    )
)
if what == "serve":
    (book, *_) = dgl.distributed.load_partition_book(str(parts.dgl_config), 1)
    book.shared_memory("small")
    rows = kvstore.empty_shared_mem("rows-kvdata-", True, (3,), "int64")
    rows.copyfrom(dgl.ndarray.array(torch.arange(3).numpy()))
    graph, *_ = dgl.distributed.load_partition(str(parts.dgl_config), 1, load_feats=False)
    shared = graph.formats("csc").shared_memory("small", formats=["csc"])
    print(json.dumps(sorted(path.name for path in SHARED_MEMORY.glob(f"{prefix}*"))), flush=True)
    sys.stdin.read()
elif what == "read":
    rows = kvstore.empty_shared_mem("rows-kvdata-", False, (3,), "int64")
    book = dist_graph.get_shared_mem_partition_book("small")
    said = [book.partid, book.metadata(), book.nid2partid(torch.arange(20)).tolist()]
    print(json.dumps([rows.asnumpy().tolist(), said]))
else:
    dgl.heterograph_index.create_heterograph_from_shared_memory("small")
    print(json.dumps("attached"))
