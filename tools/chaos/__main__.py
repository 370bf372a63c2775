"""Rounds of faults on training jobs of an emulated Slurm: `make chaos`. Needs root.

The exit status is 1 when a round has shown a problem, and 2 when rounds cannot be held.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from tools.slurm_cluster.cluster import ClusterError
from tools.slurm_cluster.packages import InstallError

from . import report, rounds
from .faults import FAULTS
from .rounds import Outcome
from .site import ChaosError, site


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m tools.chaos",
        description="Faults at random moments of training jobs; each run has to come to the same "
        "end as the undisturbed one, bit for bit.",
    )
    options.add_argument("--rounds", type=int, default=100, help="default: %(default)s")
    options.add_argument("--seed", type=int, default=0, help="the same seed, the same rounds")
    options.add_argument(
        "--faults", type=_names, default=list(FAULTS), metavar="A,B", help=", ".join(FAULTS)
    )
    options.add_argument("--output", type=Path, help="a file for the record of all rounds, JSON")
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(FAULTS):
        raise argparse.ArgumentTypeError(f"no fault {', '.join(sorted(unknown))}")
    return names


def main() -> int:
    """Hold the rounds; return the exit status."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left
    if os.geteuid() != 0:
        print("chaos: an emulated cluster needs root", file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []
    try:
        with site() as place:
            reference = rounds.undisturbed(place)
            print(f"undisturbed run: first epoch after {reference.startup_seconds:.1f} s")
            for plan in rounds.plans(options.rounds, options.seed, options.faults):
                outcomes.append(rounds.play(place, plan, reference))
                print(report.line(outcomes[-1]), flush=True)
                if options.output is not None:
                    report.write(options.output, outcomes, options.seed)
    except (ChaosError, ClusterError, InstallError) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    print(f"\n{report.machine()}\n\n{report.table(outcomes)}")
    return int(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
