"""Everything that touches DGL's distributed internals. Runs on server and trainer ranks."""
