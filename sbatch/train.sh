#!/usr/bin/env bash
# Train on the parts of a graph, one or more per host, with one mpirun (or srun) over all hosts:
#
#   sbatch --nodes=4 sbatch/train.sh --parts PARTS --run-dir RUN [OPTIONS of distsage train]
#
# The lines below are defaults: sbatch's command line and SBATCH_* variables win. sbatch/env.sh
# lists the settings that say how to start the ranks on this cluster.
#SBATCH --job-name=distsage-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=2
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR2@120
set -euo pipefail

# Every batch script begins with these lines: Slurm runs a copy of it, and what the scripts share is
# in the checkout. That is DISTSAGE_ROOT, or beside the script, or where Slurm says that the original
# lies, or where sbatch was called: last, because others may have made that directory.
original=$(scontrol show job "${SLURM_JOB_ID:-none}" 2>/dev/null |
  sed -n 's/^ *Command=\(\/[^ ]*\).*/\1/p') || true
for root in "${DISTSAGE_ROOT:-}" "$(dirname "$0")/.." "${original%/*}/.." "${SLURM_SUBMIT_DIR:-}"; do
  [[ -f $root/sbatch/env.sh ]] && break
done
[[ -f $root/sbatch/env.sh ]] || {
  echo "distsage: cannot find the checkout; set DISTSAGE_ROOT to it" >&2
  exit 2
}
# shellcheck source=sbatch/env.sh
source "$root/sbatch/env.sh"

# shellcheck disable=SC2034 # used by ranks.sh
command=(train --resume auto) alone=local
# shellcheck source=sbatch/ranks.sh
source "$root/sbatch/ranks.sh"
