#!/bin/bash
# pid 1 of one host of an emulated cluster, in fresh network, mount, pid, uts and ipc namespaces:
#
#     host.sh STATE HOST SHM_SIZE CGROUP [SHARED...] < go
#
# STATE is the cluster's directory, SHM_SIZE the size of /dev/shm, CGROUP the host's own directory
# in the machine's freezer hierarchy ("none": without control groups), SHARED are directories that
# all hosts see although they lie below /tmp or /run. The line "go" on standard input says that the
# host's network is there; end of file instead of it ends the host.
set -euo pipefail
state=$1 host=$2 shm_size=$3 cgroup=$4
shift 4

mount --make-rprivate /
mount -t proc proc /proc
hostname "$host"
ip link set lo up

# Names come from /etc/hosts alone; an unreachable name server would cost 20 s a look-up.
mount --bind "$state/etc/hosts" /etc/hosts
mount --bind "$state/etc/nsswitch.conf" /etc/nsswitch.conf
mount --bind "$state/etc/slurm" /etc/slurm

# Control groups as slurmd expects them, with this host's own subtree of the machine's hierarchy
# under the name that `slurmd -N` uses. slurmd looks for the plain files to see that it is mounted.
if [[ $cgroup != none ]]; then
  exec {own_cgroup}<"$cgroup"
  freezer=/sys/fs/cgroup/freezer
  mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
  mkdir -p "$freezer/slurm_$host"
  touch "$freezer"/{release_agent,notify_on_release,cgroup.procs,tasks,cgroup.clone_children}
  mount --no-canonicalize --bind "/proc/self/fd/$own_cgroup" "$freezer/slurm_$host"
  exec {own_cgroup}<&-
fi

# /tmp, /run and /dev/shm are this host's own, except for what is shared below them.
declare -A shared
for directory in "$@"; do
  exec {descriptor}<"$directory"
  shared[$directory]=$descriptor
done
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o "mode=1777,size=$shm_size" shm /dev/shm
for directory in "$@"; do
  descriptor=${shared[$directory]}
  mkdir -p "$directory"
  mount --no-canonicalize --bind "/proc/self/fd/$descriptor" "$directory"
  exec {descriptor}<&-
done
mkdir -p /run/munge /run/lock /run/slurm/state /run/slurm/spool
cd /

read -r go && [[ $go == go ]]
exec </dev/null

munged --force --foreground --key-file="$state/munge.key" --socket=/run/munge/munge.socket.2 \
  --pid-file=/run/munge/munged.pid --seed-file=/run/munge/munged.seed \
  --log-file=/run/munge/munged.log &
if [[ $host == controller ]]; then
  slurmctld -D -i -L "$state/log/slurmctld" &
else
  slurmd -D -N "$host" -L "$state/log/$host.slurmd" &
fi

# Reap for ever. A daemon that ends is seen from outside as a host that Slurm does not reach.
sleep infinity &
wait
