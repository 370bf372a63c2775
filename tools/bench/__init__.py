"""distsage beside plain DGL, side by side in one run: `python -m tools.bench --help`."""
