"""The files that the daemons of an emulated cluster read."""

from pathlib import Path

CONTROLLER = "controller"
CONTROLLER_ADDRESS = "10.99.0.100"
SCAVENGER, URGENT = "scavenger", "urgent"
"""Partitions beside the default one: jobs of the first are preempted by those of the second."""
GRACE_SECONDS = 20
MOST_HOSTS = 90


def host_names(count: int) -> list[str]:
    """Return node1 .. nodeN."""
    return [f"node{k}" for k in range(1, count + 1)]


def address(host: str) -> str:
    """Return the IPv4 address of a host of the cluster."""
    if host == CONTROLLER:
        return CONTROLLER_ADDRESS
    return f"10.99.0.{int(host.removeprefix('node'))}"


def slurm_conf(name: str, hosts: list[str], cpus: int, proctrack: str, state: Path) -> str:
    """Return slurm.conf: short timeouts, no accounting, jobs of root, cores as the resource.

    Jobs of the default partition are never preempted.
    """
    nodes = "\n".join(
        f"NodeName={host} NodeAddr={address(host)} CPUs={cpus} RealMemory=8000 State=UNKNOWN"
        for host in hosts
    )
    preempted = f"PreemptMode=REQUEUE GraceTime={GRACE_SECONDS}"
    main = "MaxTime=INFINITE OverSubscribe=YES:2"
    return f"""\
ClusterName={name}
SlurmctldHost={CONTROLLER}({CONTROLLER_ADDRESS})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=10
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={state}/log/jobs
StateSaveLocation=/run/slurm/state
SlurmdSpoolDir=/run/slurm/spool
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
{nodes}
PartitionName=main Nodes=ALL State=UP Default=YES PreemptMode=OFF {main}
PartitionName={SCAVENGER} Nodes=ALL State=UP PriorityTier=1 {preempted}
PartitionName={URGENT} Nodes=ALL State=UP PriorityTier=2 PreemptMode=OFF
"""


def cgroup_conf() -> str:
    """Return cgroup.conf for control groups of version 1, mounted by host.sh."""
    return "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n"


def nsswitch_conf() -> str:
    """Return nsswitch.conf: no name server, for an unreachable one costs 20 s a look-up."""
    return "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"


def etc_hosts(hosts: list[str]) -> str:
    """Return /etc/hosts, the only source of names."""
    lines = ["127.0.0.1 localhost"]
    lines += [f"{address(host)} {host}" for host in [CONTROLLER, *hosts]]
    return "\n".join(lines) + "\n"
