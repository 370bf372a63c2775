"""Parts and options come in, what a job would take goes out: memory, bytes, seconds, and a request.

Runs on the login host, without MPI. Batches are a pure function of seed, epoch, trainer and step,
so a plan samples those of the job itself and counts.
"""
