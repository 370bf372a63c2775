"""The command line of `tools/cluster`."""

import argparse
import os
import re
import signal
import sys
from pathlib import Path

from .cluster import Cluster, ClusterError
from .packages import InstallError, install_missing
from .settings import CONTROLLER, MOST_HOSTS


def parser() -> argparse.ArgumentParser:
    """Return the parser of all sub-commands."""
    top = argparse.ArgumentParser(
        prog="tools/cluster",
        description="A Slurm cluster of several hosts on this machine (needs root and Debian 12).",
        epilog="Each host has its own network, processes, host name, /tmp, /run and /dev/shm; "
        "everything else is shared, as on NFS.",
    )
    top.add_argument("--name", default="distsage", help="which cluster (default: %(default)s)")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    verbs.add_parser("install", help="install Debian's packages that are missing, as up does")
    up = verbs.add_parser("up", help="start it; installs Debian's packages when they are missing")
    up.add_argument("--hosts", type=int, default=4, metavar="N", help="default: %(default)s")
    up.add_argument("--cpus", type=int, default=4, help="CPUs of each host, default: %(default)s")
    up.add_argument("--rate", help="bandwidth of each host and direction, such as 1gbit")
    up.add_argument(
        "--shm-size", default="50%", help="size of each host's /dev/shm, default: half the memory"
    )
    up.add_argument(
        "--share",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a directory below /tmp or /run that all hosts see (the checkout always is)",
    )

    run = verbs.add_parser("exec", help="run a command on a host, in the present directory")
    run.add_argument("host", metavar="HOST", help=f"node1, node2, ... or {CONTROLLER}")
    run.add_argument("words", metavar="CMD", nargs=argparse.REMAINDER)

    # No prefix that an argument can start with: all of them are sbatch's, `-N2` as well.
    submit = verbs.add_parser(
        "submit",
        help="sbatch, as on a login host; prints the job's id",
        prefix_chars="\0",
        add_help=False,
    )
    submit.add_argument("words", metavar="SBATCH-ARGS", nargs=argparse.REMAINDER)

    verbs.add_parser("status", help="show each host as it is and as Slurm sees it")
    for verb, help_text in (
        ("crash", "take a host's power away: its peers see silence"),
        ("restore", "boot a crashed host again"),
    ):
        verbs.add_parser(verb, help=help_text).add_argument("host", metavar="HOST")
    verbs.add_parser("down", help="end it and remove every trace of it")
    return top


def show_status(cluster: Cluster) -> None:
    """Print a table of the hosts."""
    plan = cluster.running()
    print(
        f"cluster {cluster.name}: {len(plan.hosts)} hosts of {plan.cpus} CPUs, "
        f"bandwidth {plan.rate or 'unlimited'}, proctrack/{plan.proctrack}, "
        f"logs in {cluster.state / 'log'}"
    )
    living, states = cluster.first_processes(), cluster.slurm_states()
    for host in (CONTROLLER, *plan.hosts):
        state = "" if host == CONTROLLER else states.get(host, "unknown")
        print(f"{host:<10}  {'up' if host in living else 'down':<4}  {state}".rstrip())


def run(options: argparse.Namespace) -> None:
    """Carry out one sub-command; `exec` and `submit` do not return.

    Raises:
        ClusterError, InstallError: it cannot be done; the message says why.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", options.name):
        raise ClusterError(f"--name {options.name}: letters, digits, - and _ only")
    if os.geteuid() != 0:
        raise ClusterError(
            "namespaces, a bridge and Slurm's daemons need root; run it as root, or in a "
            "container started with docker run --privileged"
        )
    cluster = Cluster(options.name)
    match options.verb:
        case "install":
            install_missing()
        case "up":
            if not (1 <= options.hosts <= MOST_HOSTS and options.cpus >= 1):
                raise ClusterError(f"--hosts is 1 to {MOST_HOSTS}, --cpus at least 1")
            install_missing()
            print(
                cluster.up(
                    options.hosts, options.cpus, options.rate, options.shm_size, options.share
                )
            )
        case "exec":
            if not options.words:
                raise ClusterError("exec HOST needs a command")
            words = cluster.command(options.host, options.words)
            os.execvp(words[0], words)
        case "submit":
            words = cluster.command(CONTROLLER, ["sbatch", "--parsable", *options.words])
            os.execvp(words[0], words)
        case "status":
            show_status(cluster)
        case "crash":
            print(cluster.crash(options.host))
        case "restore":
            print(cluster.restore(options.host))
        case "down":
            print(cluster.down())


def main() -> int:
    """Run the command line; return the exit status: 2 with one message when it cannot be done."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `up` cleans up after itself
    try:
        run(parser().parse_args())
    except (ClusterError, InstallError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cluster: interrupted", file=sys.stderr)
        return 130
    return 0
