"""distsage beside plain DGL, side by side in one run: `python -m tools.bench --help`."""

from distsage.kernels import level

# Before a module here imports torch: where a level is forced, DGL and PyTorch are held to it, too.
level.hold_to(level.chosen())
