# shellcheck shell=bash
# Sourced by the batch scripts: the environment of a job. A setting is taken from the environment,
# and its default where the environment has none: export it, give it to sbatch --export, or set it
# in this file.
#
#   DISTSAGE_MODULES        modules to load, such as "python/3.11 openmpi/4.1" (default: none)
#   DISTSAGE_VENV           virtual environment (default: .venv of the checkout, when it is there)
#   DISTSAGE_MPI            wheel: the virtual environment's Open MPI; site: the cluster's own
#                           (default: wheel when the environment has one)
#   DISTSAGE_LAUNCHER       mpirun or srun (default: mpirun)
#   DISTSAGE_PAIRS_PER_HOST pairs of server and trainer on each host (default: half of sbatch's
#                           --ntasks-per-node)
#   DISTSAGE_INTERFACE      interface (ib0) or subnet (10.1.0.0/16) to talk over (default: chosen)
#   DISTSAGE_LOGS           directory that all hosts see, for the job's notes (default: logs)
#   OMP_NUM_THREADS         threads of each trainer (default: its share of the host's CPUs)
#   SLURM_MPI_TYPE          srun's --mpi (default: pmix; MPICH and Intel MPI take pmi2)

say() { printf 'distsage: %s\n' "$*" >&2; }
die() {
  say "$@"
  exit 2
}

# The caller has found the checkout.
root=$(cd "$root" && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

if [[ -n ${DISTSAGE_MODULES:-} ]]; then
  declare -F module >/dev/null || die "there is no 'module' command here; unset DISTSAGE_MODULES"
  # shellcheck disable=SC2086 # a list of words
  module load $DISTSAGE_MODULES
fi
# shellcheck disable=SC2034 # used by ranks.sh
site_path=$PATH # where the cluster's own MPI is found

DISTSAGE_VENV=${DISTSAGE_VENV:-$root/.venv}
if [[ -d $DISTSAGE_VENV/bin ]]; then
  export VIRTUAL_ENV=$DISTSAGE_VENV PATH=$DISTSAGE_VENV/bin:$PATH
fi
python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
  die "no Python 3.11 on $(hostname): make one with 'make install' in $root, or name a virtual" \
    "environment in DISTSAGE_VENV, or modules in DISTSAGE_MODULES"

# share_cpus N: give each of N trainers on a host as many threads as its share of the CPUs that Slurm
# gave the job. Servers are idle most of the time; no CPUs are set aside for them.
share_cpus() {
  local cpus given share
  cpus=$(nproc)
  given=${SLURM_CPUS_ON_NODE:-$cpus}
  share=$(((given < cpus ? given : cpus) / $1))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((share > 0 ? share : 1))}
}

# A directory where the ranks, on any host, can leave a note for the batch script.
DISTSAGE_LOGS=${DISTSAGE_LOGS:-${SLURM_SUBMIT_DIR:-$PWD}/logs}
mkdir -p "$DISTSAGE_LOGS" || die "cannot write to $DISTSAGE_LOGS; set DISTSAGE_LOGS"
