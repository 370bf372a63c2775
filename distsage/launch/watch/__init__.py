"""A watcher beside every rank, so that no job hangs and none dies without saying why.

Runs on every rank.
"""
