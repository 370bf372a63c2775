"""How ranks are started on this machine: for the demo, the accuracy table and the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from distsage.errors import UserError


def launcher(ranks: int, prefix: Path = Path(sys.prefix)) -> tuple[list[str], dict[str, str]]:
    """The beginning of a command that starts `ranks` processes here, and its environment.

    Args:
        ranks: number of processes.
        prefix: where an MPI is installed; without one there, the machine's own is taken.

    Raises:
        UserError: there is no mpirun.
    """
    # Within a Slurm allocation mpirun would place the ranks on its hosts; these stay here.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment |= {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",  # waiting ranks leave the cores to the others
        "PYTHONUNBUFFERED": "1",
    }
    own = prefix / "bin" / "mpirun"
    if own.exists() and prefix != Path(sys.prefix):
        # Intel's mpirun finds its helpers by PATH; mpi4py would look into its own environment.
        environment["PATH"] = f"{own.parent}:{environment['PATH']}"
        environment["MPI4PY_LIBMPI"] = str(prefix / "lib" / "libmpi.so.12")
    mpirun = str(own) if own.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise UserError(
            "there is no mpirun: load this machine's MPI, or install one into the environment "
            "with DISTSAGE_MPI=wheel make install"
        )
    answer = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=60)
    is_open_mpi = "Open MPI" in answer.stdout
    if not own.exists():
        library = "libmpi.so.40" if is_open_mpi else "libmpi.so.12"  # MPICH, Intel MPI
        environment.setdefault("MPI4PY_LIBMPI", library)
    placing = ["--oversubscribe", "--bind-to", "none"] if is_open_mpi else []
    return [mpirun, "-n", str(ranks), *placing], environment
