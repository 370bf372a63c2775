"""One MPI job, from `mpirun` to servers that serve and trainers that can train. Runs on every rank.

In come the configuration, which rank 0 reads, and the parts; out comes a `Job`, which every rank
agrees on: who runs where, over which addresses and ports, with which part. `watch` ends the job
when a rank fails or is stuck, `dgl` is DGL's runtime.
"""
