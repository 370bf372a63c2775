"""What DGL's documentation tells people to write, on a directory that distsage wrote.

Started once as server and once as client, told apart by DGL_ROLE. Arguments: IP_CONFIG,
PART_CONFIG, ORIGINAL_IDS. The client prints one line, the losses of its two steps.
"""

import sys

import dgl
import dgl.nn.pytorch as dglnn
import numpy as np
import torch
from torch.nn.functional import cross_entropy, relu

ip_config, part_config, original_ids_path = sys.argv[1:]
dgl.distributed.initialize(ip_config)  # a server stays in here
torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
graph = dgl.distributed.DistGraph("stock", part_config=part_config)
train_gid = dgl.distributed.node_split(
    graph.ndata["train_mask"], graph.get_partition_book(), force_even=True
)
original_ids = torch.from_numpy(np.load(original_ids_path))
assert (original_ids[train_gid] % 4 == 0).all()
layers = torch.nn.ModuleList([dglnn.SAGEConv(2, 8, "mean"), dglnn.SAGEConv(8, 3, "mean")])
optimizer = torch.optim.Adam(layers.parameters())
loader = dgl.dataloading.DistNodeDataLoader(
    graph, train_gid, dgl.dataloading.NeighborSampler([2, 2]), batch_size=5, shuffle=True
)
losses = []
for inputs, seeds, blocks in loader:
    h = graph.ndata["features"][inputs]
    # The ring: feature of v is (v, 2v), edges come from v-1 and v-2, fan-out 2 takes both.
    assert torch.equal(h[:, 0].long(), original_ids[inputs])
    source, target = blocks[-1].edges()
    ends = blocks[-1].srcdata[dgl.NID][source], blocks[-1].dstdata[dgl.NID][target]
    step = (original_ids[ends[1]] - original_ids[ends[0]]) % graph.num_nodes()
    assert sorted(set(step.tolist())) == [1, 2]
    assert len(step) == 2 * len(seeds)
    h = h / graph.num_nodes()
    for depth, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
        h = layer(block, h)
        if depth == 0:
            h = relu(h)
    loss = cross_entropy(h, graph.ndata["labels"][seeds])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print("losses", *losses, flush=True)
