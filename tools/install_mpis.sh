#!/usr/bin/env bash
# Install MPICH and Intel MPI for the tests, each into a directory of its own that any environment's
# mpi4py can use, and link them as .mpis/mpich, .mpis/mpich4 and .mpis/intel. Safe to run again.
#
#   DISTSAGE_HOME  where they are kept (default: ~/.cache/distsage)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
home=${DISTSAGE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/distsage}
mkdir -p "$home" .mpis
exec 9>"$home/lock-mpis"
flock 9 # two calls at once install once

install() {
  local name=$1 package=$2 prefix=$home/${2/==/-}
  if [[ ! -e $prefix/.complete ]]; then
    printf 'install: %s into %s\n' "$package" "$prefix" >&2
    rm -rf "$prefix"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
      --ignore-installed --prefix "$prefix" "$package"
    touch "$prefix/.complete"
  fi
  ln -sfn "$prefix" ".mpis/$name"
}

install mpich mpich==5.0.2
# The last one that can be started by srun --mpi=pmi2; see sbatch/ranks.sh.
install mpich4 mpich==4.3.2
# From 2021.19 on the wheel wants libfabric as a package, which the index does not have.
install intel impi-rt==2021.18.1
