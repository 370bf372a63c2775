"""Names, order and addresses of the hosts: pure functions of what the ranks gathered."""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from distsage.errors import UserError

_MOST_HOSTS = 1 << 16
_MOST_LIST_BYTES = 1 << 22


@dataclass(frozen=True)
class Address:
    """An IPv4 address that a host has.

    Attributes:
        interface: such as eth0.
        ip: dotted quad.
        network: in CIDR notation.
        speed: of the interface in Mbit/s; 0 where the system does not say.
    """

    interface: str
    ip: str
    network: str
    speed: int

    @property
    def is_routed(self) -> bool:
        """Whether the network is this address alone, as in clouds: a router joins the hosts."""
        return self.network.endswith("/32")

    @property
    def link(self) -> str:
        """The network, or the interface if routed: equal where addresses may reach each other."""
        return self.interface if self.is_routed else self.network


def own_addresses() -> list[Address]:
    """IPv4 addresses of this host's interfaces that are up, loopback excluded."""
    stats = psutil.net_if_stats()
    found = []
    for interface, addresses in psutil.net_if_addrs().items():
        if interface not in stats or not stats[interface].isup:
            continue
        for address in addresses:
            if address.family != socket.AF_INET or not address.netmask:
                continue
            network = ipaddress.ip_interface(f"{address.address}/{address.netmask}").network
            if not network.is_loopback:
                speed = stats[interface].speed
                found.append(Address(interface, address.address, str(network), speed))
    return found


def expand_nodelist(nodelist: str) -> list[str]:
    """Expand Slurm's compressed list: `node[1-3,07],login` -> node1 node2 node3 node07 login.

    Raises:
        UserError: the list is malformed, or names more hosts than any job has.
    """
    names: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", nodelist.strip()):
        expanded = [""]
        position = 0
        for piece in re.finditer(r"([^\[\]]+)|\[([^\[\]]*)\]", item):
            if piece.start() != position:
                break
            position = piece.end()
            literal, ranges = piece.groups()
            numbers = [literal] if literal else _numbers(ranges)
            if not numbers:
                break
            if len(names) + len(expanded) * len(numbers) > _MOST_HOSTS:
                raise UserError(
                    f"the host list {_shortened(nodelist)} names more than {_MOST_HOSTS:,} hosts"
                )
            expanded = [prefix + number for prefix in expanded for number in numbers]
        else:
            if position == len(item):
                names += expanded
                continue
        raise UserError(f"cannot read {_shortened(item)} in the host list {_shortened(nodelist)}")
    return names


def _numbers(ranges: str) -> list[str]:
    """`1-3,07` -> 1 2 3 07; empty where it is malformed or too many."""
    numbers: list[str] = []
    for piece in ranges.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", piece)
        if match is None:
            return []
        first, last = match.group(1), match.group(2) or match.group(1)
        count = int(last) - int(first) + 1
        if count < 1:
            return []
        # One too many is enough for the caller to refuse them.
        stop = int(first) + min(count, _MOST_HOSTS + 1 - len(numbers))
        numbers += [str(number).zfill(len(first)) for number in range(int(first), stop)]
    return numbers


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:80]}...")


def name_hosts(
    system_names: Sequence[str], slurm_names: Sequence[str | None], nodelist: str | None
) -> list[str]:
    """The name of every rank's host as Slurm lists it, else as the host calls itself.

    Slurm sets SLURMD_NODENAME on each host, but Intel MPI's launcher copies that of the batch host
    to every rank. So it is taken only when all hosts of the list occur, each on one machine.
    Otherwise a host is looked up in the list by what it calls itself; a fully qualified name and a
    short one can mean the same host.

    Args:
        system_names: what the host of every rank calls itself.
        slurm_names: SLURMD_NODENAME of every rank.
        nodelist: Slurm's compressed list of the job's hosts, if there is one.

    Raises:
        UserError: the list is malformed.
    """
    if nodelist is None:
        return list(system_names)
    listed = expand_nodelist(nodelist)
    machines = set(zip(slurm_names, system_names, strict=True))
    if set(slurm_names) == set(listed) and len(machines) == len(listed):
        return [str(name) for name in slurm_names]
    return [_listed_name(name, listed) or name for name in system_names]


def _listed_name(name: str, listed: Sequence[str]) -> str | None:
    """The one name in Slurm's list that means the host `name`."""
    if name in listed:
        return name
    short = name.partition(".")[0]
    same = [one for one in listed if short in (one, one.partition(".")[0])]
    # Two fully qualified names that differ mean different hosts.
    same = [one for one in same if "." not in one or "." not in name]
    return same[0] if len(same) == 1 else None


def order_hosts(rank_hosts: Sequence[str], nodelist: str | None) -> list[str]:
    """Order the job's hosts: as Slurm lists them, otherwise by their first rank.

    Args:
        rank_hosts: the host of every rank, as `name_hosts` names it.
        nodelist: Slurm's compressed list of the job's hosts, if there is one.

    Raises:
        UserError: Slurm's list and the ranks' hosts differ.
    """
    present = list(dict.fromkeys(rank_hosts))
    if nodelist is None:
        return present
    listed = expand_nodelist(nodelist)
    if len(present) == len(listed) and not set(present) & set(listed):
        return present  # Slurm calls them otherwise, so only their number can be compared
    strangers = [name for name in present if name not in listed]
    if strangers:
        raise UserError(
            f"ranks run on {', '.join(strangers)}, which Slurm's list {nodelist} does not name; "
            "start mpirun without a host list of its own"
        )
    idle = [name for name in listed if name not in present]
    if idle:
        raise UserError(
            f"no rank runs on {', '.join(idle)}, although Slurm gave the job {nodelist}; start "
            "mpirun with --map-by ppr:2:node, so that every host gets its pair"
        )
    return listed


def choose_addresses(
    hosts: Sequence[str], addresses: Mapping[str, Sequence[Address]], wanted: str | None
) -> list[Address]:
    """Pick one address per host, all on one network.

    Args:
        hosts: names, in the order of the parts.
        addresses: what each host has.
        wanted: an interface name or a network in CIDR notation; None takes the fastest network on
            which every host has an address of its own. Where there is none, it takes addresses
            without a network (/32) on interfaces of one name; `check_reach` tells later whether
            they reach each other.

    Raises:
        UserError: a host has no address on the wanted interface, or no network joins all hosts.
    """
    if wanted is not None:
        return [_wanted_address(host, addresses[host], wanted) for host in hosts]
    if len(hosts) == 1 and not addresses[hosts[0]]:
        return [Address("lo", "127.0.0.1", "127.0.0.0/8", 0)]
    best: list[Address] = []
    best_rank = (False, 0)
    for candidate in addresses[hosts[0]]:
        chosen = [
            next((a for a in addresses[host] if a.link == candidate.link), None) for host in hosts
        ]
        present = [address for address in chosen if address is not None]
        # A bridge such as docker0 has the same address everywhere and joins nobody.
        if len({address.ip for address in present}) != len(hosts):
            continue
        rank = (not candidate.is_routed, min(address.speed for address in present))
        if not best or rank > best_rank:
            best, best_rank = present, rank
    if not best:
        raise UserError(
            "no network joins all hosts of the job: "
            + "; ".join(f"{h} has {_describe(addresses[h])}" for h in hosts)
            + "; name the interface with --interface"
        )
    return best


def joining_address(
    own: Sequence[Address], names: Iterable[str], look_up: Callable[[str], str | None]
) -> Address | None:
    """The address of this host on the network in which the other hosts' names lie.

    Asks only as long as several networks may be the one. For a launcher that has to be told before
    the hosts can be asked.

    Args:
        own: addresses of this host.
        names: of all hosts.
        look_up: gives the address that a name stands for; None if it has none.
    """
    left = list(own)
    for name in names:
        ip = look_up(name)
        if ip is None or ipaddress.ip_address(ip).is_loopback:
            continue
        left = [
            one for one in left if ipaddress.IPv4Address(ip) in ipaddress.IPv4Network(one.network)
        ]
        if len(left) < 2:
            break
    return left[0] if len(left) == 1 else None


def _wanted_address(host: str, addresses: Sequence[Address], wanted: str) -> Address:
    try:
        network = ipaddress.ip_interface(wanted).network  # takes a host's address with a mask, too
    except ValueError:
        matches = [a for a in addresses if a.interface == wanted]
    else:
        matches = [a for a in addresses if ipaddress.ip_address(a.ip) in network]
    if not matches:
        raise UserError(
            f"{host} has no address on --interface {wanted}; it has {_describe(addresses)}"
        )
    return matches[0]


def _describe(addresses: Sequence[Address]) -> str:
    return ", ".join(f"{a.interface} {a.ip}" for a in addresses) or "no address"


def emulated_addresses(num_hosts: int) -> list[Address]:
    """Addresses on loopback that let one machine act as `num_hosts` hosts.

    Raises:
        UserError: more hosts than the loopback block has last octets.
    """
    if num_hosts > 254:
        raise UserError(f"--emulated-hosts {num_hosts} is too many; at most 254 fit one machine")
    return [Address("lo", f"127.0.0.{host + 1}", "127.0.0.0/8", 0) for host in range(num_hosts)]


def read_ip_config(path: Path) -> list[str]:
    """Read the addresses of a list of hosts: `IP` or `IP PORT` per line, one line per host.

    Raises:
        UserError: unreadable, empty, or a line that starts with no IPv4 address.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MOST_LIST_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read --ip-config {path}: {error.strerror}") from error
    if len(content) > _MOST_LIST_BYTES:
        raise UserError(f"--ip-config {path} is longer than any list of hosts")
    # What is no text is no address either, and named as such.
    lines = [line.split() for line in content.decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--ip-config {path} is empty; give one address per host, one per line")
    for number, fields in enumerate(lines, 1):
        try:
            ipaddress.IPv4Address(fields[0])
        except ValueError:
            raise UserError(
                f"line {number} of --ip-config {path} starts with {_shortened(fields[0])}, which "
                "is no IPv4 address; give one address per host, one per line"
            ) from None
    return [fields[0] for fields in lines]


def check_ip_config(
    path: Path, listed: Sequence[str], hosts: Sequence[str], addresses: Mapping[str, Sequence[str]]
) -> None:
    """Hold the job's hosts against a list that the user gave.

    Args:
        path: where the list comes from, for messages.
        listed: one address per host, in the order of the parts.
        hosts: names of the job's hosts, in the order of the parts.
        addresses: every address that each host has.

    Raises:
        UserError: line k does not hold an address of host k.
    """
    if len(listed) != len(hosts):
        raise UserError(
            f"--ip-config {path} lists {len(listed)} hosts but the job has {len(hosts)} "
            f"({', '.join(hosts)}); list each host once, or leave the option out"
        )
    for number, (ip, host) in enumerate(zip(listed, hosts, strict=True), 1):
        if ip not in addresses[host]:
            owner = next((name for name in hosts if ip in addresses[name]), None)
            whose = f"which belongs to {owner or 'no host of the job'}"
            raise UserError(
                f"line {number} of --ip-config {path} is {ip}, {whose}, but part "
                f"{number - 1} lies on {host} ({', '.join(addresses[host])}); correct the line, or "
                "leave the option out"
            )
