"""Seed nodes come in, the edges of a mini-batch go out.

Runs on trainer ranks and in the workers of the local run; a server picks neighbours here, too, for
trainers whose hosts do not have the whole topology.
"""
