"""GraphSAGE: rows and edges of a batch come in, logits and gradients go out.

Runs on trainer ranks, in the local run and in prediction; by the loops of `distsage.kernels` on a
CPU, by PyTorch's operations elsewhere.
"""
