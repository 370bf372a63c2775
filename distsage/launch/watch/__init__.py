"""A watcher beside every rank, so that no job hangs and none dies without saying why.

In come a rank's marks of progress and the beats of the ring of watchers; out comes, when a rank
fails or is stuck, the end of the whole job with one line. Runs on every rank.
"""
