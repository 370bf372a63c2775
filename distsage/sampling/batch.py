"""What a mini-batch is: the sampled edges, layer by layer. Trainer ranks and the local run.

The arrays are numpy's on a CPU; on a GPU the same records hold tensors (`distsage.train.feeding`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Block:
    """The edges of one sampled layer, in CSC.

    The first `num_dst` of its source nodes are its destinations.

    Attributes:
        indptr: int64 `[num_dst + 1]`. Destination i has the edges `indices[indptr[i]:indptr[i+1]]`.
        indices: integer `[nnz]`, the source of each edge: a `_bid` in [0, num_src), or a `_gid` in
            the input layer of a batch whose inputs are not numbered.
        num_src: number of source nodes.
    """

    indptr: Any
    indices: Any
    num_src: int

    @property
    def num_dst(self) -> int:
        """Number of destination nodes."""
        return len(self.indptr) - 1


@dataclass(frozen=True)
class MiniBatch:
    """What a trainer needs to know about one step, apart from features and labels.

    The layers are in the order of the computation: `input_edges` is layer 1, `blocks[0]` layer 2,
    and the destinations of the last one are the seeds. Source node j of `blocks[0]` is destination
    j of the input layer.

    Attributes:
        key: the dropout stream of this batch (`distsage.kernels.rng.stream_key`).
        seed_gid: int64 `[B]`.
        blocks: layers 2..L, indices are int32 `_bid`.
        dst_gid: `[n1]` of the topology's integer type, the destinations of the input layer.
        input_edges: layer 1, `[n1]` destinations. Its indices are `_gid`, or int32 `_bid` where
            the inputs are numbered; num_src is then `len(input_gid)`, otherwise N.
        input_gid: None, or the unique input nodes, `[num_src]`; `dst_gid` is its beginning.
    """

    key: np.uint64
    seed_gid: np.ndarray
    blocks: tuple[Block, ...]
    dst_gid: np.ndarray
    input_edges: Block
    input_gid: np.ndarray | None

    @property
    def num_edges(self) -> int:
        """Sampled edges of all layers."""
        return sum(len(block.indices) for block in (self.input_edges, *self.blocks))
