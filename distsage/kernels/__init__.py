"""Loops that numba compiles: arrays in, arrays out. They know no torch, no MPI and no files.

They run in the threads of trainer ranks, on servers that pick neighbours, in the workers of the
local run and in prediction.
"""
