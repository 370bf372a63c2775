"""Node ids come in, rows of features go out: from this host's memory, its cache, or other hosts.

Runs on trainer ranks and in the local run.
"""
