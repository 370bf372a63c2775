"""The network of an emulated cluster: a bridge beside the controller, one veth pair per host.

All of it is in the namespaces of the hosts; the machine's own network has no part in it.
"""

import subprocess
from collections.abc import Sequence

from . import settings


class NetworkError(Exception):
    """A command of iproute2 failed; the message is its own."""


def enter(pid: int, namespaces: str) -> list[str]:
    """Return the words that run a command in namespaces ("n", "muinp") of a process."""
    return ["nsenter", "-t", str(pid), *(f"-{letter}" for letter in namespaces)]


def make_bridge(controller: int) -> None:
    """Make the bridge in the controller's namespace. `controller` is the process id there."""
    _ip(
        controller,
        "link add br0 type bridge",
        f"address add {settings.address(settings.CONTROLLER)}/24 dev br0",
        "link set br0 up",
    )


def connect(host: str, pid: int, controller: int, rate: str | None) -> None:
    """Give a host its eth0, with the other end on the bridge, named as the host.

    `rate` (as tc writes it, "1gbit") limits each direction.

    Raises:
        NetworkError: the link cannot be made, or tc does not know such a rate.
    """
    _ip(None, f"link add eth0 netns {pid} type veth peer name {host} netns {controller}")
    _ip(controller, f"link set {host} master br0 up")
    _ip(pid, f"address add {settings.address(host)}/24 dev eth0", "link set eth0 up")
    if rate is not None:
        for namespace, device in ((pid, "eth0"), (controller, host)):
            limit = f"qdisc add dev {device} root tbf rate {rate} burst 256kb latency 50ms"
            _run([*enter(namespace, "n"), "tc", *limit.split()])


def cut(host: str, controller: int) -> None:
    """Take a host's link down at the bridge: nothing it sends is seen any more."""
    _ip(controller, f"link set {host} down")


def mend(host: str, controller: int) -> None:
    """Take a host's link up again."""
    _ip(controller, f"link set {host} up")


def remove(host: str, controller: int) -> None:
    """Remove what is left of a dead host's link; the kernel may have done so already."""
    if host in _run([*enter(controller, "n"), "ip", "-o", "link"]):
        _run([*enter(controller, "n"), "ip", "link", "delete", host], may_fail=True)


def _ip(pid: int | None, *commands: str) -> None:
    """Run ip's commands in the network namespace of a process, or in the machine's."""
    inside = [] if pid is None else enter(pid, "n")
    _run([*inside, "ip", "-batch", "-"], "\n".join(commands))


def _run(words: Sequence[str], text: str = "", may_fail: bool = False) -> str:
    answer = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if answer.returncode != 0 and not may_fail:
        raise NetworkError(answer.stderr.strip())
    return answer.stdout
