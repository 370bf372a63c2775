"""An emulated Slurm cluster: real slurmctld, slurmd and munge, each host in its own namespaces.

    cli.py       the command line of `tools/cluster`
    cluster.py   the life of a cluster: up, exec, status, crash, restore, down
    jobs.py      what a job has on the hosts: its ranks, and what it has left
    faults/      makes ranks slow or fail, for tests
    host.sh      pid 1 of each host: mounts, host name, daemons
    settings.py  the text of slurm.conf and its neighbours
    packages.py  Debian's packages, installed when they are missing

Everything a host owns (network, mounts, process ids, shared memory) belongs to the namespaces of
its pid 1, so that ending this one process removes all of it. What is left besides is one state
directory and one control group per cluster. The hosts' network is in the controller's namespace:
the machine's own network is not touched, and clusters of different names do not meet.
"""
