"""Hosts, roles, addresses, preflight, and the seam to DGL. Runs on every rank."""
