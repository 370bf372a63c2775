"""distsage beside plain DGL, side by side in one run: `python -m tools.bench --help`."""

import sys

from distsage.errors import UserError
from distsage.kernels import level

# Before a module here imports torch: where a level is forced, DGL and PyTorch are held to it, too.
# The programs that a benchmark starts inherit it.
try:
    level.hold_to(level.chosen())
except UserError as error:
    print(f"bench: {error}", file=sys.stderr)
    raise SystemExit(2) from None
