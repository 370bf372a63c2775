#!/usr/bin/env bash
# Split a graph into parts, on one host, or on several that write them together:
#
#   sbatch [--nodes=4] sbatch/partition.sh --dataset NAME_OR_PATH --num-parts 4 --output PARTS
#
# One host reads the graph and assigns its nodes, whatever their number. It says before it starts how
# much memory it needs; ask for it with sbatch --mem.
# The lines below are defaults: sbatch's command line and SBATCH_* variables win.
#SBATCH --job-name=distsage-partition
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
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

share_cpus 1
if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then
  # shellcheck disable=SC2034 # used by ranks.sh
  command=(partition) alone=partition ranks_per_host=1
  # shellcheck source=sbatch/ranks.sh
  source "$root/sbatch/ranks.sh" # and ends
fi
exec python -m distsage partition "$@"
