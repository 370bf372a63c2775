# shellcheck shell=bash
# Sourced by train.sh, predict.sh and partition.sh: run a command of distsage as one MPI job over all
# hosts of the Slurm job, with one mpirun (or srun), and end as it ends.
#
#   command         the command, and options that the script's own arguments may follow
#   alone           the command that does the same on one machine, without MPI
#   ranks_per_host  where they are no pairs of server and trainer
# shellcheck disable=SC2154 # the caller has set them, and sourced env.sh
: "${command[0]}" "$alone" "$root" "$site_path"

hosts=${SLURM_JOB_NUM_NODES:-}
[[ -n $hosts ]] ||
  die "${command[0]}.sh runs inside a Slurm job: sbatch sbatch/${command[0]}.sh ...; without Slurm," \
    "use python -m distsage $alone, or mpirun as the README shows"
if [[ -z ${ranks_per_host:-} ]]; then
  pairs=${DISTSAGE_PAIRS_PER_HOST:-$((${SLURM_NTASKS_PER_NODE:-2} / 2))}
  [[ $pairs =~ ^[1-9][0-9]*$ ]] ||
    die "'$pairs' pairs per host: set DISTSAGE_PAIRS_PER_HOST to 1 or more, or give sbatch an even" \
      "--ntasks-per-node"
  share_cpus "$pairs"
  ranks_per_host=$((2 * pairs))
fi
ranks=$((hosts * ranks_per_host))

# Which MPI, and how its launcher puts the pairs of ranks on the hosts.
if [[ -z ${DISTSAGE_MPI:-} ]]; then
  DISTSAGE_MPI=site
  [[ -x $DISTSAGE_VENV/bin/mpirun ]] && DISTSAGE_MPI=wheel
fi
if [[ $DISTSAGE_MPI == site ]]; then
  mpirun=$(PATH=$site_path command -v mpirun) || true
else
  mpirun=$DISTSAGE_VENV/bin/mpirun
fi
version=$("${mpirun:-false}" --version 2>/dev/null | head -2) || true
case $version in
  *"Open MPI"*) library=libmpi.so.40 ;;
  *) library=libmpi.so.12 ;; # MPICH, Intel MPI, MVAPICH
esac
case $version in
  "HYDRA build details"*) version="MPICH ${version##* }" ;;
  *) version=${version%%$'\n'*} ;;
esac
# Tell mpi4py which library it is; by itself it takes that of the virtual environment, where there
# is one. Of a library beside mpirun it gets the whole path, without which Intel's does not find its
# own libraries, and of any other the name, which the system looks up.
if [[ $DISTSAGE_MPI == site ]]; then
  beside=${mpirun%/bin/*}/lib/$library
  [[ $mpirun == */bin/* && -e $beside ]] && library=$beside
  export MPI4PY_LIBMPI=${MPI4PY_LIBMPI:-$library}
fi

launcher=${DISTSAGE_LAUNCHER:-mpirun}
case $launcher in
  mpirun)
    [[ -n $version ]] ||
      die "no mpirun on $(hostname): load the cluster's MPI with DISTSAGE_MODULES, or set" \
        "DISTSAGE_LAUNCHER=srun"
    if [[ $version == *"Open MPI"* ]]; then
      launch=("$mpirun" -n "$ranks" --map-by "ppr:$ranks_per_host:node:OVERSUBSCRIBE" --bind-to none)
    else
      launch=("$mpirun" -n "$ranks" -ppn "$ranks_per_host")
    fi
    ;;
  srun)
    launch=(srun "--mpi=${SLURM_MPI_TYPE:-pmix}" --kill-on-bad-exit=1 "--nodes=$hosts"
      "--ntasks=$ranks" "--ntasks-per-node=$ranks_per_host" --distribution=block --overcommit
      --cpu-bind=none)
    # Intel MPI has to be told that it is started by way of PMI-2.
    [[ ${SLURM_MPI_TYPE:-} == pmi2 ]] && export I_MPI_PMI=${I_MPI_PMI:-pmi2}
    # MPICH 5 sends its address in pieces that end with whatever lies in memory. Now and then one is
    # longer than the 1024 bytes that Slurm reads of a line, and the ranks abort when they start.
    [[ ${SLURM_MPI_TYPE:-}/$version == pmi2/"MPICH 5"* ]] &&
      die "under srun --mpi=pmi2 jobs of $version abort now and then when they start; unset" \
        "DISTSAGE_LAUNCHER, so that its own mpirun starts them, or load MPICH 4"
    ;;
  *) die "DISTSAGE_LAUNCHER is $launcher; it is mpirun or srun" ;;
esac
# MPI starts the ranks and carries a few small messages between them. TCP is fast enough for those,
# DGL needs it anyway, and it leaves no segments in /dev/shm when a rank is killed.
export OMPI_MCA_pml=${OMPI_MCA_pml:-ob1} OMPI_MCA_btl=${OMPI_MCA_btl:-self,tcp}
if ((EUID == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# MPI and its daemons talk over the job's network alone: the one that is named, or the one in which
# the hosts' names lie.
options=()
interface='' network=''
if [[ -n ${DISTSAGE_INTERFACE:-} ]]; then
  options=(--interface "$DISTSAGE_INTERFACE")
  network=$DISTSAGE_INTERFACE
  [[ $network == */* ]] || interface=$network
  if [[ -n $interface ]]; then export UCX_NET_DEVICES=${UCX_NET_DEVICES:-$interface}; fi
else
  read -r interface network < <(
    python -m distsage.launch.job_network "${SLURM_JOB_NODELIST:-}" 2>/dev/null
  ) || true
fi
if [[ -n $network ]]; then
  export OMPI_MCA_btl_tcp_if_include=${OMPI_MCA_btl_tcp_if_include:-$network}
  export OMPI_MCA_btl_tcp_disable_family=${OMPI_MCA_btl_tcp_disable_family:-6} # IPv4 only
  export OMPI_MCA_oob_tcp_if_include=${OMPI_MCA_oob_tcp_if_include:-$network}  # of Open MPI 4
  export PRTE_MCA_prte_if_include=${PRTE_MCA_prte_if_include:-$network}        # of Open MPI 5
fi
if [[ -n $interface ]]; then # MPICH and Intel MPI know interfaces by name only
  export HYDRA_IFACE=${HYDRA_IFACE:-$interface}
  export I_MPI_HYDRA_IFACE=${I_MPI_HYDRA_IFACE:-$interface}
  export FI_TCP_IFACE=${FI_TCP_IFACE:-$interface}
fi

# shellcheck source=sbatch/going_on.sh
source "$root/sbatch/going_on.sh"
# The first rank that fails leaves a line in the failure note, and the line is printed last. A
# launcher may then linger, because it waits for a host that is lost, or after a good end because a
# stranger holds one of its ports; it is ended.
end_lingering() {
  until [[ -e $DISTSAGE_FAILURE_NOTE || -e $DISTSAGE_FAILURE_NOTE.ended ]]; do
    sleep 1
    stat --cached=never "${notes:?}" >/dev/null || true # NFS looks again
  done
  if [[ -e $DISTSAGE_FAILURE_NOTE ]]; then sleep 3; else sleep 10; fi
  kill -TERM "$1" && sleep 2 && kill -KILL "$1"
}

say "job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}: $ranks ranks, $ranks_per_host on each of $hosts" \
  "hosts, $OMP_NUM_THREADS threads each, $launcher${version:+ ($version)}"
"${launch[@]}" python -m mpi4py -m distsage "${command[@]}" "${options[@]}" "$@" &
job=$!
end_lingering "$job" >/dev/null 2>&1 &
watcher=$!

wait_for "$job"
kill "$watcher" 2>/dev/null || true

stat --cached=never "${notes:?}" >/dev/null || true # NFS looks again
cause=$(cat "$DISTSAGE_FAILURE_NOTE" 2>/dev/null) || true
if [[ $cause == *": ended by SIGTERM" ]] && ((status > 128 && status != 143)); then
  cause= # not the ranks' end: their launcher ended first, and ended them
fi
lost= # ranks that came up, did not end well and left no word
if [[ -e $DISTSAGE_FAILURE_NOTE.running && ! -e $DISTSAGE_FAILURE_NOTE ]]; then lost=yes; fi
if [[ $lost || -e $DISTSAGE_FAILURE_NOTE ]] && ((status == 0)); then
  status=1 # some launchers end with status 0 although they have lost ranks
fi
if [[ -e $DISTSAGE_FAILURE_NOTE.ended && ! -e $DISTSAGE_FAILURE_NOTE.stopped ]]; then
  cause='' status=0 # all ranks have ended well, whatever became of their launcher
fi
if [[ $cause == "a mistake in what was given; rank 0 has said which" ]]; then
  cause='' status=2 # Intel MPI's launcher may end with 255 then
fi
if [[ -z $cause ]] && { [[ $lost ]] || ((status > 128)); }; then
  cause="$launcher on $(hostname) ended with status $status although no rank failed; was it, or one of\
 its daemons, killed?"
fi
wait_for_watchers # the cause is known: what they say now follows from it
end_or_go_on "$status" "$cause"
