"""Debian's packages that the emulated cluster consists of. Run as root on the machine itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = (
    "slurm-wlm",
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "munge",
    "openmpi-bin",
    "libopenmpi3",
    "libpmix2",
    "libpmix-dev",  # slurmd opens pmix2/lib/libpmix.so, which only the -dev package has
    "iproute2",
    "util-linux",
    "procps",
)
POLICY = Path("/usr/sbin/policy-rc.d")


class InstallError(Exception):
    """The packages cannot be had; the message says why and what to do."""


def missing_packages() -> list[str]:
    """Return the packages of `PACKAGES` that are not installed."""
    answer = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,  # it exits 1 when one of them is unknown
    )
    installed = {
        line.split()[0] for line in answer.stdout.splitlines() if line.endswith(" installed")
    }
    return [name for name in PACKAGES if name not in installed]


@contextmanager
def no_daemon_starts() -> Iterator[None]:
    """Keep apt from starting the daemons it installs; an existing policy-rc.d comes back after."""
    saved = POLICY.with_name("policy-rc.d.distsage-saved")
    if POLICY.exists():
        POLICY.rename(saved)
    try:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        if saved.exists():
            saved.rename(POLICY)


def install_missing() -> None:
    """Install what is missing; blocks for a minute or so when something is.

    Raises:
        InstallError: this is not a Debian, or apt-get failed.
    """
    if shutil.which("apt-get") is None:
        raise InstallError(
            "the emulated cluster consists of Debian's packages and apt-get is not here; "
            "run it on Debian 12 or in a privileged container of debian:12"
        )
    missing = missing_packages()
    if not missing:
        return
    print(f"cluster: installing {' '.join(missing)}", file=sys.stderr)
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"]
    install = [*apt, "install", "-y", "--no-install-recommends", *missing]
    with no_daemon_starts():
        for command in ([*apt, "update"], install):
            answer = subprocess.run(
                command,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if answer.returncode != 0:
                last = "\n".join(answer.stdout.splitlines()[-15:])
                raise InstallError(f"{' '.join(command[:1] + command[4:5])} failed:\n{last}")
