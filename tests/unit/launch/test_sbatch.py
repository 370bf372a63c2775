"""The batch scripts: what they ask of Slurm, and the one command that they run."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from distsage.launch.watch.failure_note import MISTAKE

SBATCH = Path(__file__).resolve().parents[3] / "sbatch"
GOLDEN = Path(__file__).with_name("sbatch_requests.txt")
OPEN_MPI = "mpirun (Open MPI) 4.1.4"
HYDRA = "HYDRA build details:\n    Version:                                 5.0.2"
INTEL = "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626\nCopyright 2003-2026"

TOOLS = (
    *(
        "basename",
        "bash",
        "cat",
        "date",
        "dirname",
        "env",
        "flock",
        "head",
        "hostname",
        "mkdir",
        "mv",
        "nproc",
        "rm",
        "sed",
    ),
    *("sleep", "stat", "touch"),
)

# Stands for mpirun, srun and python: writes down how it was called.
RECORDER = """#!/bin/bash
case "$*" in
  --version) echo "{version}"; exit 0 ;;
  -c*) exit 0 ;;
  *distsage.launch.job_network*) echo "$HOSTS_NETWORK"; exit 0 ;;
esac
printf '%s\\n' "$(basename "$0")" "$@" >"$RECORD"
env >"$RECORD.env"
{then}
"""


def test_what_the_scripts_ask_of_slurm() -> None:
    """A change of the defaults is seen here; nothing site-specific may come in."""
    requests = [
        f"{script.name} {line.removeprefix('#SBATCH ')}"
        for script in sorted(SBATCH.glob("*.sh"))
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    ]
    assert requests == GOLDEN.read_text().splitlines()


def test_the_scripts_begin_alike() -> None:
    """What finds the checkout cannot be shared before it is found: it stands in each, once."""
    beginnings = set()
    for name in ("train.sh", "partition.sh", "local.sh", "predict.sh"):
        script = (SBATCH / name).read_text()
        beginnings.add(script[script.index("set -euo") : script.index('source "$root')])
    assert len(beginnings) == 1


class Site:
    """A cluster of fake commands: scripts run under it, and what they call is recorded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record = directory / "record"
        self.bin = directory / "bin"
        self.environment_bin = directory / "venv" / "bin"
        for path in (self.bin, self.environment_bin, directory / "spool", directory / "submit"):
            path.mkdir(parents=True)
        self.install(self.environment_bin / "python")
        for tool in TOOLS:  # and none of MPI's or Slurm's that this machine may have
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)

    def install(self, path: Path, version: str = "", then: str = "exit 0") -> None:
        path.write_text(RECORDER.format(version=version, then=then))
        path.chmod(0o755)

    def start(
        self, script: str, arguments: Sequence[str], settings: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        """Start a script as Slurm does: a copy of it in a spool directory."""
        copy = self.directory / "spool" / "slurm_script"
        shutil.copy(SBATCH / script, copy)
        environment = {
            "PATH": str(self.bin),
            "RECORD": str(self.record),
            "DISTSAGE_ROOT": str(SBATCH.parent),
            "DISTSAGE_VENV": str(self.directory / "venv"),
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_SUBMIT_DIR": str(self.directory / "submit"),
        }
        return subprocess.Popen(
            [self.bin / "bash", copy, *arguments],
            env={k: v for k, v in {**environment, **settings}.items() if v != "unset"},
            cwd=self.directory / "submit",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **settings: str) -> tuple[int, str]:
        """Run a script to its end; return its status and what it said."""
        with self.start(script, arguments, settings) as process:
            _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    @property
    def called(self) -> list[str]:
        """The words of the one command that was called."""
        return self.record.read_text().splitlines()

    @property
    def environment(self) -> dict[str, str]:
        """The environment that it was called with."""
        lines = (self.directory / "record.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


TRAIN = ["python", "-m", "mpi4py", "-m", "distsage", "train", "--resume", "auto"]


def test_default_is_one_mpirun_with_a_pair_per_host(site: Site) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI)
    status, errors = site.run("train.sh", "--parts", "a b", "--run-dir", "x*")
    assert status == 0, errors
    mapping = ["-n", "4", "--map-by", "ppr:2:node:OVERSUBSCRIBE", "--bind-to", "none"]
    assert site.called == ["mpirun", *mapping, *TRAIN, "--parts", "a b", "--run-dir", "x*"]
    environment = site.environment
    assert environment["PYTHONPATH"] == str(SBATCH.parent)
    assert environment["MPI4PY_LIBMPI"] == "libmpi.so.40"
    assert environment["DISTSAGE_FAILURE_NOTE"] == f"{site.directory}/submit/logs/job-17/failure"
    assert environment["OMPI_MCA_btl"] == "self,tcp"
    assert ("OMPI_ALLOW_RUN_AS_ROOT" in environment) == (os.geteuid() == 0)


def test_prediction_is_started_as_training_is(site: Site) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI)
    asked = ["--run-dir", "a b", "--output", "x*"]
    status, errors = site.run("predict.sh", *asked, DISTSAGE_INTERFACE="ib0")
    assert status == 0, errors
    mapping = ["-n", "4", "--map-by", "ppr:2:node:OVERSUBSCRIBE", "--bind-to", "none"]
    words = ["python", "-m", "mpi4py", "-m", "distsage", "predict", "--interface", "ib0", *asked]
    assert site.called == ["mpirun", *mapping, *words]
    status, errors = site.run("predict.sh", SLURM_JOB_NUM_NODES="unset")
    assert (status, "sbatch sbatch/predict.sh" in errors) == (2, True)


def test_ranks_run_the_python_of_an_image(site: Site) -> None:
    """With the lines of docs/recipes.md: the checkout's script, srun, and a container per rank."""
    site.install(site.bin / "srun", then='while [[ $1 == -* ]]; do shift; done; exec "$@"')
    apptainer = site.bin / "apptainer"
    apptainer.write_text('#!/bin/bash\nprintf "%s\\n" "$@" >"$RECORD.image"\n')
    apptainer.chmod(0o755)
    settings = {
        "DISTSAGE_IMAGE": "/shared/an image.sif",
        "DISTSAGE_VENV": str(SBATCH.parent / "packaging/image"),
        "DISTSAGE_LAUNCHER": "srun",
        "DISTSAGE_MPI": "wheel",
    }
    status, errors = site.run("train.sh", "--parts", "a b", **settings)
    assert status == 0, errors
    assert site.called[0] == "srun"
    assert site.called[-len(TRAIN) - 2 :] == [*TRAIN, "--parts", "a b"]
    assert "MPI4PY_LIBMPI" not in site.environment  # the image has its own
    inside = (site.directory / "record.image").read_text().splitlines()
    python = "/opt/distsage/.venv/bin/python"
    assert inside == ["exec", "/shared/an image.sif", python, *TRAIN[1:], "--parts", "a b"]
    status, errors = site.run("train.sh", **settings | {"DISTSAGE_IMAGE": "unset"})
    assert (status, "no Python 3.11" in errors) == (2, True)


@pytest.mark.parametrize(
    "settings", [{"SLURM_NTASKS_PER_NODE": "4"}, {"DISTSAGE_PAIRS_PER_HOST": "2"}]
)
def test_two_pairs_per_host(site: Site, settings: dict[str, str]) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI)
    assert site.run("train.sh", SLURM_JOB_NUM_NODES="4", **settings)[0] == 0
    assert site.called[1:5] == ["-n", "16", "--map-by", "ppr:4:node:OVERSUBSCRIBE"]


@pytest.mark.parametrize(
    ("version", "said"), [(HYDRA, "MPICH 5.0.2"), (INTEL, "Version 2021.18.1 Build 20260626")]
)
def test_other_mpi_has_other_options(site: Site, version: str, said: str) -> None:
    site.install(site.bin / "mpirun", version)
    status, errors = site.run("train.sh")
    assert status == 0
    assert site.called == ["mpirun", "-n", "4", "-ppn", "2", *TRAIN]
    assert site.environment["MPI4PY_LIBMPI"] == "libmpi.so.12"
    assert errors.endswith(f"{said})\n")
    assert len(errors.splitlines()) == 1


def test_the_library_beside_mpirun_comes_first(site: Site) -> None:
    """Intel MPI finds its own libraries only when its path is given."""
    library = site.directory / "lib" / "libmpi.so.12"
    library.parent.mkdir()
    library.touch()
    site.install(site.bin / "mpirun", INTEL)
    assert site.run("train.sh")[0] == 0
    assert site.environment["MPI4PY_LIBMPI"] == str(library)
    assert site.run("train.sh", MPI4PY_LIBMPI="libother.so")[0] == 0
    assert site.environment["MPI4PY_LIBMPI"] == "libother.so"


def test_the_virtual_environments_mpirun_comes_first_unless_the_site_is_asked_for(
    site: Site,
) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI, then="exit 7")
    site.install(site.environment_bin / "mpirun", OPEN_MPI)
    assert site.run("train.sh")[0] == 0
    assert "MPI4PY_LIBMPI" not in site.environment
    assert site.run("train.sh", DISTSAGE_MPI="site")[0] == 7
    assert site.environment["MPI4PY_LIBMPI"] == "libmpi.so.40"


@pytest.mark.parametrize(("mpi_type", "option"), [("unset", "pmix"), ("pmi2", "pmi2")])
def test_srun(site: Site, mpi_type: str, option: str) -> None:
    site.install(site.bin / "srun")
    settings = {"DISTSAGE_LAUNCHER": "srun", "SLURM_MPI_TYPE": mpi_type}
    assert site.run("train.sh", "--parts", "a b", **settings)[0] == 0
    words = site.called
    assert words[: words.index("python")] == [
        "srun",
        f"--mpi={option}",
        "--kill-on-bad-exit=1",
        "--nodes=2",
        "--ntasks=4",
        "--ntasks-per-node=2",
        "--distribution=block",
        "--overcommit",
        "--cpu-bind=none",
    ]
    assert words[words.index("python") :] == [*TRAIN, "--parts", "a b"]
    assert site.environment.get("I_MPI_PMI") == (mpi_type if mpi_type == "pmi2" else None)


@pytest.mark.parametrize(
    ("version", "mpi_type", "status"),
    [("5.0.2", "pmi2", 2), ("5.0.2", "pmix", 0), ("4.3.2", "pmi2", 0)],
)
def test_mpich_5_is_not_started_by_way_of_pmi2(
    site: Site, version: str, mpi_type: str, status: int
) -> None:
    site.install(site.bin / "srun")
    site.install(site.bin / "mpirun", HYDRA.replace("5.0.2", version))
    found, said = site.run("train.sh", DISTSAGE_LAUNCHER="srun", SLURM_MPI_TYPE=mpi_type)
    assert found == status
    assert ("jobs of MPICH 5.0.2 abort now and then when they start" in said) == (status == 2)


def test_interface_reaches_mpi_and_distsage_and_the_command_line_wins(site: Site) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI)
    site.run("train.sh", "--interface", "eth0", DISTSAGE_INTERFACE="ib0")
    assert site.called[-4:] == ["--interface", "ib0", "--interface", "eth0"]
    environment = site.environment
    assert environment["OMPI_MCA_btl_tcp_if_include"] == "ib0"
    names = ("HYDRA_IFACE", "I_MPI_HYDRA_IFACE", "UCX_NET_DEVICES", "FI_TCP_IFACE")
    assert [environment[name] for name in names] == ["ib0"] * 4
    site.run("train.sh", DISTSAGE_INTERFACE="10.1.0.0/16")  # of which only Open MPI can make sense
    assert site.environment["OMPI_MCA_btl_tcp_if_include"] == "10.1.0.0/16"
    assert not set(names) & set(site.environment)


def test_mpi_is_held_to_the_network_of_the_hosts_names(site: Site) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI)
    found = {"HOSTS_NETWORK": "eth1 10.2.0.0/16"}
    assert site.run("train.sh", **found)[0] == 0
    environment = site.environment
    networks = ("btl_tcp_if_include", "oob_tcp_if_include")
    names = [*(f"OMPI_MCA_{name}" for name in networks), "PRTE_MCA_prte_if_include"]
    assert [environment[name] for name in names] == ["10.2.0.0/16"] * 3
    assert environment["OMPI_MCA_btl_tcp_disable_family"] == "6"
    names = ["HYDRA_IFACE", "I_MPI_HYDRA_IFACE", "FI_TCP_IFACE"]
    assert [environment[name] for name in names] == ["eth1"] * 3
    assert "--interface" not in site.called  # the ranks choose by themselves
    site.run("train.sh", **found, OMPI_MCA_btl_tcp_if_include="ib0", HYDRA_IFACE="ib0")
    assert site.environment["OMPI_MCA_btl_tcp_if_include"] == "ib0"
    assert site.environment["HYDRA_IFACE"] == "ib0"


def test_trainers_share_the_cpus_that_slurm_gave(site: Site) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI)
    (site.bin / "nproc").unlink()
    (site.bin / "nproc").write_text("#!/bin/bash\necho 64\n")
    (site.bin / "nproc").chmod(0o755)
    for cpus, pairs, threads in (("16", "1", "16"), ("16", "2", "8"), ("1", "2", "1")):
        site.run("train.sh", SLURM_CPUS_ON_NODE=cpus, DISTSAGE_PAIRS_PER_HOST=pairs)
        assert site.environment["OMP_NUM_THREADS"] == threads
    site.run("train.sh", SLURM_CPUS_ON_NODE="128")
    assert site.environment["OMP_NUM_THREADS"] == "64"
    site.run("train.sh", OMP_NUM_THREADS="3")
    assert site.environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("command", ["partition", "local"])
def test_one_host_scripts_pass_their_arguments_on(site: Site, command: str) -> None:
    status, errors = site.run(
        f"{command}.sh",
        "--dataset",
        "a b",
        SLURM_CPUS_ON_NODE="1",
        SLURM_NTASKS_PER_NODE="1",
        SLURM_JOB_NUM_NODES="1",
    )
    assert status == 0, errors
    resume = ["--resume", "auto"] if command == "local" else []
    assert site.called == ["python", "-m", "distsage", command, *resume, "--dataset", "a b"]
    assert site.environment["OMP_NUM_THREADS"] == "1"


def test_partitioning_on_several_hosts_is_one_rank_on_each_with_all_cores(site: Site) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI)
    settings = {"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "1", "SLURM_CPUS_ON_NODE": "1"}
    status, errors = site.run(
        "partition.sh", "--dataset", "a b", DISTSAGE_INTERFACE="ib0", **settings
    )
    assert status == 0, errors
    mpi = "-n 3 --map-by ppr:1:node:OVERSUBSCRIBE --bind-to none python -m mpi4py -m distsage"
    expected = [*mpi.split(), "partition", "--interface", "ib0", "--dataset", "a b"]
    assert site.called == ["mpirun", *expected]
    assert site.environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("script", ["train.sh", "partition.sh", "local.sh"])
def test_the_checkout_is_found_from_the_submit_directory_or_from_slurm(
    site: Site, script: str
) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI)
    found = {"DISTSAGE_ROOT": "unset", "SLURM_SUBMIT_DIR": str(SBATCH.parent)}
    found["DISTSAGE_LOGS"] = str(site.directory)
    assert site.run(script, **found)[0] == 0
    status, errors = site.run(script, DISTSAGE_ROOT="unset")
    assert (status, "set DISTSAGE_ROOT" in errors) == (2, True)
    scontrol = site.bin / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho '   Command={SBATCH / script} --parts a/b'\n")
    scontrol.chmod(0o755)
    assert site.run(script, DISTSAGE_ROOT="unset")[0] == 0


@pytest.mark.parametrize("script", ["train.sh", "partition.sh", "local.sh"])
@pytest.mark.parametrize("command", ["{script}", "(null)"])
def test_the_directory_where_sbatch_was_called_is_not_believed_before_the_checkout(
    site: Site, script: str, command: str
) -> None:
    """Somebody else may have made it, and `env.sh` in it."""
    site.install(site.bin / "mpirun", OPEN_MPI)
    submit = site.directory / "submit"
    for theirs in (submit / "sbatch", submit / "(null)" / ".." / "sbatch"):
        theirs.mkdir(parents=True, exist_ok=True)
    (submit / "sbatch" / "env.sh").write_text('touch "$RECORD.stranger"; exit 9\n')
    says = command.format(script=SBATCH / script)
    scontrol = site.bin / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho '   Command={says}'\n")
    scontrol.chmod(0o755)
    settings = {"DISTSAGE_ROOT": "unset"}
    if command == "(null)":  # a script from standard input: Slurm knows no file of it
        settings = {"SLURM_SUBMIT_DIR": "unset", "DISTSAGE_ROOT": "unset"}
    status, _ = site.run(script, **settings)
    assert status == (2 if command == "(null)" else 0)
    assert not (site.directory / "record.stranger").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"SLURM_JOB_NUM_NODES": "unset"}, "inside a Slurm job"),
        ({"SLURM_NTASKS_PER_NODE": "1"}, "pairs per host"),
        ({"DISTSAGE_PAIRS_PER_HOST": "two"}, "pairs per host"),
        ({"DISTSAGE_LAUNCHER": "qsub"}, "mpirun or srun"),
        ({"DISTSAGE_MODULES": "openmpi"}, "module"),
        ({}, "no mpirun"),
    ],
)
def test_mistakes_get_one_sentence(site: Site, settings: dict[str, str], sentence: str) -> None:
    status, errors = site.run("train.sh", **settings)
    assert status == 2
    assert sentence in errors
    assert len(errors.splitlines()) == 1
    assert not site.record.exists()


def test_status_of_the_launcher_is_the_status_of_the_job(site: Site) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI, then="exit 5")
    assert site.run("train.sh")[0] == 5
    # Some launchers end with status 0 although a rank has failed.
    site.install(site.bin / "mpirun", OPEN_MPI, then='touch "$DISTSAGE_FAILURE_NOTE"')
    assert site.run("train.sh")[0] == 1
    # Or with one of their own, when the ranks have ended because of a user's mistake.
    mistake = f"echo '{MISTAKE}' >\"$DISTSAGE_FAILURE_NOTE\"; exit 255"
    site.install(site.bin / "mpirun", INTEL, then=mistake)
    status, errors = site.run("train.sh")
    assert (status, len(errors.splitlines())) == (2, 1), errors
    assert list((site.directory / "submit" / "logs").iterdir()) == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_reaches_the_launcher_and_ends_the_job(site: Site) -> None:
    # As mpirun after scancel: it cleans up, which takes a moment, and ends with status 0.
    then = """trap 'sleep 0.3; echo told >"$RECORD.told"; exit 0' TERM
sleep 60 >/dev/null 2>&1 & wait"""
    site.install(site.bin / "mpirun", OPEN_MPI, then=then)
    with site.start("train.sh", [], {}) as process:
        wait_for((site.directory / "record.env").exists)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "ended by SIGTERM" in errors
    assert (site.directory / "record.told").read_text() == "told\n"


def test_launcher_that_lingers_after_a_failure_is_ended(site: Site) -> None:
    # As mpirun when a host has lost its power: deaf, and waiting for ever.
    then = """trap '' TERM
touch "$DISTSAGE_FAILURE_NOTE"
exec sleep 60"""
    site.install(site.bin / "mpirun", OPEN_MPI, then=then)
    status, _ = site.run("train.sh")
    assert status == 128 + signal.SIGKILL


def test_watchers_of_a_killed_launcher_have_time_to_put_the_host_in_order(site: Site) -> None:
    watcher = 'sleep 1.5; touch "$RECORD.in-order"'
    lock = 'flock -s "$DISTSAGE_FAILURE_NOTE.on-another-host"'
    then = f"({lock} bash -c '{watcher}') >/dev/null 2>&1 & sleep 0.5; kill -KILL $$"
    site.install(site.bin / "mpirun", OPEN_MPI, then=then)
    assert site.run("train.sh")[0] == 128 + signal.SIGKILL
    assert (site.directory / "record.in-order").exists()


def test_a_watcher_that_speaks_when_all_is_over_leaves_nothing(site: Site) -> None:
    late = 'sleep 1; echo late >"$DISTSAGE_FAILURE_NOTE"; touch "$RECORD.late"'
    site.install(site.bin / "mpirun", OPEN_MPI, then=f"({late}) >/dev/null 2>&1 & exit 1")
    site.run("train.sh")
    wait_for((site.directory / "record.late").exists)
    assert list((site.directory / "submit" / "logs").iterdir()) == []


# Stands for scontrol: knows of a preemption, and ends the script when the job is queued again, as
# Slurm does.
SCONTROL = """#!/bin/bash
case "$*" in
  "show job -o 17") echo "JobId=17 JobState=RUNNING {facts} RunTime=00:00:09" ;;
  "requeue "*) echo "$2" >"$RECORD.requeued"; {then} ;;
esac
"""


def add_scontrol(site: Site, facts: str = "PreemptTime=None", *, refuses: bool = False) -> Path:
    """Returns the file with the number of the job that was queued again."""
    then = "exit 1" if refuses else "kill -KILL $PPID"
    (site.bin / "scontrol").write_text(SCONTROL.format(facts=facts, then=then))
    (site.bin / "scontrol").chmod(0o755)
    return site.directory / "record.requeued"


STOPPED = 'echo "the time limit is near" >"$DISTSAGE_FAILURE_NOTE.stopped"'
PROGRESS = 'touch "$DISTSAGE_FAILURE_NOTE.progress"'
TOLD = 'echo "it was asked to" >"$DISTSAGE_FAILURE_NOTE.stopped"'
ENDED = 'echo "rank 3: ended by SIGTERM" >"$DISTSAGE_FAILURE_NOTE"'
LOST = 'echo "rank 2 (server on b): its host is lost (no beat)" >"$DISTSAGE_FAILURE_NOTE"; exit 1'
RUNNING = 'echo "a 17" >"$DISTSAGE_FAILURE_NOTE.running"'
PREEMPTED = "PreemptTime=2026-11-26T10:00:00"


@pytest.mark.parametrize(
    ("end", "facts", "settings", "queued", "said"),
    [
        (f"{STOPPED}; {PROGRESS}", "PreemptTime=None", {}, "17", None),
        (STOPPED, "PreemptTime=None", {}, None, "had not got on"),
        (f"{TOLD}; {PROGRESS}; {ENDED}", "PreemptTime=None", {}, None, "rank 3: ended by SIGTERM"),
        (STOPPED, PREEMPTED, {"SLURM_RESTART_COUNT": "90"}, "17", None),
        (f"{PROGRESS}; {LOST}", "PreemptTime=None", {"SLURM_RESTART_COUNT": "90"}, "17", None),
        (LOST, "PreemptTime=None", {"SLURM_RESTART_COUNT": "2"}, "17", None),
        (LOST, "PreemptTime=None", {"SLURM_RESTART_COUNT": "3"}, None, "its host is lost"),
        ("exit 0", PREEMPTED, {}, None, None),
        ("exit 1", PREEMPTED, {}, "17", None),
        ("exit 1", "PreemptTime=None", {}, None, None),
        ("exit 250", "PreemptTime=None", {"SLURM_RESTART_COUNT": "2"}, "17", None),
        ("exit 250", "PreemptTime=None", {"SLURM_RESTART_COUNT": "3"}, None, "status 250"),
        ("exit 250", "PreemptTime=None", {}, None, "status 250"),
        ("exit 2", "PreemptTime=None", {"SLURM_RESTART_COUNT": "1"}, None, None),
        (f"{RUNNING}; exit 250", "PreemptTime=None", {"SLURM_RESTART_COUNT": "1"}, None, "250"),
        (
            f"{STOPPED}; {PROGRESS}",
            "PreemptTime=None",
            {"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2"},
            "15_2",
            None,
        ),
    ],
    ids=[
        "time limit",
        "time limit without progress",
        "a rank was told",
        "preempted",
        "lost host with progress",
        "lost host, early",
        "lost host without progress",
        "success",
        "launcher failed for a preemption",
        "failure",
        "launcher failed once the job ran again",
        "launcher failed three times",
        "launcher failed at first",
        "a mistake is found when the job runs again",
        "launcher failed after the ranks had come up",
        "array",
    ],
)
def test_which_jobs_slurm_runs_again(
    end: str, facts: str, settings: dict[str, str], queued: str | None, said: str | None, site: Site
) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI, then=end)
    requeued = add_scontrol(site, facts)
    status, errors = site.run("train.sh", **settings)
    assert (requeued.read_text().strip() if requeued.exists() else None) == queued
    assert said is None or said in errors
    exits = end.rpartition("exit ")[2]
    assert queued or status == (int(exits) if exits.isdecimal() else 143)
    assert list((site.directory / "submit" / "logs").iterdir()) == []


def test_a_job_that_slurm_does_not_queue_again_says_what_to_do(site: Site) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI, then=f"{STOPPED}; {PROGRESS}")
    add_scontrol(site, refuses=True)
    status, errors = site.run("train.sh")
    assert status == 143
    assert errors.splitlines()[-1] == (
        "distsage: the run has stopped early, because the time limit is near, but Slurm does "
        "not queue job 17 again; submit it again with the same --run-dir"
    )


@pytest.mark.parametrize("script", ["train.sh", "local.sh"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_asks_the_run_to_stop(script: str, number: int, site: Site) -> None:
    """It comes before the ranks have come up, and is passed on when they have."""
    then = f"""trap '{STOPPED}; exit 0' USR2
touch "$RECORD.ready"
sleep 1.5; echo "$(hostname) $$" >"$DISTSAGE_FAILURE_NOTE.running"
while true; do sleep 0.1; done"""
    program = site.bin / "mpirun" if script == "train.sh" else site.environment_bin / "python"
    site.install(program, OPEN_MPI, then=then)
    add_scontrol(site)
    with site.start(script, [], {}) as process:
        wait_for((site.directory / "record.ready").exists)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "the run has stopped early, because the time limit is near, and had not" in errors


@pytest.mark.parametrize(("facts", "queued"), [(PREEMPTED, "17"), ("PreemptTime=None", None)])
def test_sigterm_of_a_preemption_is_told_from_scancel(
    facts: str, queued: str | None, site: Site
) -> None:
    then = f"trap '{PROGRESS}; exit 0' TERM; while true; do sleep 0.1; done"
    site.install(site.bin / "mpirun", OPEN_MPI, then=then)
    requeued = add_scontrol(site, facts)
    with site.start("train.sh", [], {}) as process:
        wait_for((site.directory / "record.env").exists)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert (requeued.read_text().strip() if requeued.exists() else None) == queued
    assert ("ended by SIGTERM" in errors) == (queued is None)


def test_slurm_is_asked_once_when_the_job_ends(site: Site) -> None:
    site.install(site.bin / "mpirun", OPEN_MPI)
    (site.bin / "squeue").write_text("#!/bin/sh\necho 2026-11-26T10:00:00\n")
    (site.bin / "squeue").chmod(0o755)
    site.run("train.sh", TZ="UTC")
    assert site.environment["SLURM_JOB_END_TIME"] == "1795687200"
    site.run("train.sh", SLURM_JOB_END_TIME="1795687201")
    assert site.environment["SLURM_JOB_END_TIME"] == "1795687201"
    (site.bin / "squeue").write_text("#!/bin/sh\necho N/A\n")
    site.run("train.sh")
    assert site.environment["SLURM_JOB_END_TIME"] == ""


def test_job_whose_ranks_have_all_ended_well_has_succeeded(site: Site) -> None:
    """Also when its launcher waits for ever, because a stranger holds one of its ports."""
    then = """trap '' TERM
touch "$DISTSAGE_FAILURE_NOTE.ended"
exec sleep 60"""
    site.install(site.bin / "mpirun", OPEN_MPI, then=then)
    status, errors = site.run("train.sh")
    assert (status, len(errors.splitlines())) == (0, 1), errors
    assert list((site.directory / "submit" / "logs").iterdir()) == []
