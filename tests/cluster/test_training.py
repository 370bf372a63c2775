"""Start to end on a Slurm: parts, sbatch, a trained model; with every launcher and layout."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import safetensors.numpy
from conftest import start_cluster
from slurm_login import REPOSITORY, SlurmCluster
from training_job import (
    INTEL,
    MPICH,
    MPICH4,
    SITE,
    SMALL,
    SRUN,
    WHEEL,
    TrainingJob,
    nothing_left,
    submit,
)

SBATCH = REPOSITORY / "sbatch"

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Nine hosts: those that start together stay apart."""
    with start_cluster("training", 9, tmp_path_factory.getbasetemp()) as cluster:
        yield cluster


def address(host: str) -> str:
    return f"10.99.0.{host.removeprefix('node')}"


def whole_run(job: TrainingJob, hosts: int, pairs: int) -> None:
    """The job has trained on the hosts of its node list, and left a whole run directory."""
    job.completes()
    summary = json.loads((job.run_dir / "summary.json").read_text())
    assert (summary["hosts"], summary["trainers"]) == (hosts, hosts * pairs)
    assert 0 <= summary["test"]["accuracy"] <= 1
    hosts_of_job = job.cluster.hosts_of(job.id)
    assert hosts_of_job == list(job.hosts)
    lines = (job.run_dir / "ip_config.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [address(host) for host in hosts_of_job]
    logs = {path.name: path.read_text() for path in (job.run_dir / "logs").iterdir()}
    assert sorted(logs) == sorted(f"rank-{rank}.txt" for rank in range(2 * hosts * pairs))
    for rank in range(2 * hosts * pairs):
        serves = "start graph service" in logs[f"rank-{rank}.txt"]
        assert serves == (rank % 2 == 0), f"rank {rank}"
    assert len(re.findall(r"^epoch ", job.output(), re.MULTILINE)) == 2
    only_ours(job.output())
    assert list((job.directory / "logs").iterdir()) == []
    nothing_left(job.cluster, job.hosts)


# What a job says that nothing goes wrong with, line by line.
OURS = (
    r"distsage: job \d+ on \S+: \d+ ranks, \d+ on each of \d+ hosts, \d+ threads each, .*",
    r"run directory run",
    r"kernels \S+ \(.*\), \d+ threads?",
    r"topology (replicated|partitioned) \(.*\)",
    r"layer 1 (averages|multiplies) .*",
    r"the cache holds .*",
    r"step \d+/\d+ of epoch \d+/\d+  loss .*",
    r"evaluating: [\d,]+ of [\d,]+ rows, .* left",
    r"epoch +\d+/\d+  loss \d+\.\d+  \d+\.\d\d s(  val .*  test .*  \(evaluated in .* s\))?",
    r"",  # Open MPI's launcher ends with one
    # Where Slurm has no task plugin, as here; not even --quiet silences it.
    r"srun: cluster configuration lacks support for cpu binding",
)


def only_ours(output: str) -> None:
    """Nothing of DGL, gloo, MPI, Slurm or Python may stand between a job's lines."""
    strangers = [
        line
        for line in output.splitlines()
        if not any(re.fullmatch(pattern, line) for pattern in OURS)
    ]
    assert not strangers, output


def start(
    cluster: SlurmCluster,
    hosts: list[str],
    directory: Path,
    parts: Path,
    *arguments: str,
    **options: object,
) -> TrainingJob:
    return submit(
        cluster,
        hosts,
        directory,
        f"--parts={parts}",
        "--run-dir=run",
        "--num-epochs=2",
        *SMALL,
        *arguments,
        **options,  # type: ignore[arg-type]
    )


def test_one_two_and_four_hosts_with_each_launcher(
    cluster: SlurmCluster, parts_of: Mapping[int, Path], tmp_path: Path
) -> None:
    layouts = [(1, 2, WHEEL), (2, 2, SITE), (4, 1, SRUN), (2, 1, WHEEL)]
    free = list(cluster.hosts)
    jobs = []
    for number, (hosts, pairs, env) in enumerate(layouts):
        taken, free = free[:hosts], free[hosts:]
        jobs.append(
            start(cluster, taken, tmp_path / str(number), parts_of[hosts], env=env, pairs=pairs)
        )
    for job, (hosts, pairs, _) in zip(jobs, layouts, strict=True):
        whole_run(job, hosts, pairs)


def test_mpich_and_intel_mpi(
    cluster: SlurmCluster, parts_of: Mapping[int, Path], tmp_path: Path
) -> None:
    jobs = [
        start(cluster, hosts, tmp_path / str(number), parts_of[2], env=env, pairs=pairs)
        for number, (hosts, env, pairs) in enumerate(
            [
                (cluster.hosts[:2], MPICH, 2),
                (cluster.hosts[2:4], INTEL, 2),
                (cluster.hosts[4:6], {**MPICH4, **SRUN, "SLURM_MPI_TYPE": "pmi2"}, 1),
                (cluster.hosts[6:8], {**INTEL, **SRUN, "SLURM_MPI_TYPE": "pmi2"}, 1),
            ]
        )
    ]
    for job, pairs, kind in zip(
        jobs, (2, 2, 1, 1), ("MPICH", "Intel", "srun", "srun"), strict=True
    ):
        whole_run(job, 2, pairs)
        assert kind in job.output().splitlines()[0]


def test_staged_parts(cluster: SlurmCluster, parts_of: Mapping[int, Path], tmp_path: Path) -> None:
    """Each host's own disk holds its own part while the job needs it, and nothing afterwards."""
    hosts = cluster.hosts[:2]
    fault = {"pace": 0.0, "spy": str(tmp_path / "staged")}
    job = start(cluster, hosts, tmp_path / "job", parts_of[2], "--stage=/tmp/stage", fault=fault)
    other = start(
        cluster, cluster.hosts[2:4], tmp_path / "other", parts_of[2], "--stage=/proc/nowhere"
    )
    whole_run(job, 2, 1)
    for k, host in enumerate(hosts):
        seen = set((tmp_path / f"staged-{host}").read_text().split())
        assert {"manifest.json", f"part{k}/graph.dgl", "topology/indices.npy"} <= seen
        assert not any(name.startswith(f"part{1 - k}") for name in seen)
    other.fails_with("^preflight, staging: .*cannot write to --stage /proc/nowhere", code="2:0")
    nothing_left(cluster, other.hosts)


def test_a_part_that_has_changed_is_noticed_by_the_next_run(
    cluster: SlurmCluster, parts_of: Mapping[int, Path], tmp_path: Path
) -> None:
    """Also when its size and its time of change are those of before."""
    parts = Path(shutil.copytree(parts_of[1], tmp_path / "parts"))
    file = parts / "part0" / "node_feat.dgl"
    hosts = cluster.hosts[:1]
    start(cluster, hosts, tmp_path / "first", parts).completes()
    before = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(before.st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(before.st_size // 2)
        stream.write(bytes([byte ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    job = start(cluster, hosts, tmp_path / "second", parts)
    job.fails_with("^preflight, checksums: .*node_feat.dgl has changed since it was", code="2:0")


def test_two_jobs_on_the_same_hosts(
    cluster: SlurmCluster, parts_of: Mapping[int, Path], tmp_path: Path
) -> None:
    """At once; with the same graph, and with another graph of the same name."""
    other = tmp_path / "other-graph"
    partition(other, "--seed=7")
    names = [json.loads((p / "manifest.json").read_text()) for p in (parts_of[2], other)]
    assert names[0]["graph_name"] == names[1]["graph_name"]
    long = ["--num-epochs=20", "--eval-every=20"]
    jobs = {
        name: start(
            cluster,
            cluster.hosts[first : first + 2],
            tmp_path / name,
            parts,
            *long,
            fault={"pace": 0.2},
        )
        for name, first, parts in [
            ("one", 0, parts_of[2]),
            ("same", 0, parts_of[2]),
            ("another", 2, parts_of[2]),
            ("other", 2, other),
            ("other alone", 4, other),
        ]
    }
    for job in jobs.values():
        job.trains()
    for job in jobs.values():
        job.completes()
    models = {name: weights(job.run_dir) for name, job in jobs.items()}
    assert models["one"] == models["same"] == models["another"]
    assert models["other"] == models["other alone"] != models["one"]
    nothing_left(cluster, cluster.hosts[:6])


def weights(run_dir: Path) -> dict[str, bytes]:
    """Of the best model, by parameter."""
    found = safetensors.numpy.load_file(run_dir / "model.safetensors")
    return {name: value.tobytes() for name, value in found.items()}


def partition(output: Path, *arguments: str) -> None:
    words = [sys.executable, "-m", "distsage", "partition", "--dataset=synthetic:3000:10"]
    subprocess.run(
        [*words, "--num-parts=2", f"--output={output}", *arguments],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=120,
    )


def test_partition_train_and_local_scripts_with_real_data(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    data = os.environ.get("DISTSAGE_DATA")
    if data is None:
        pytest.skip("DISTSAGE_DATA is not set")
    dataset = Path(data) / "cora.npz"
    hosts = cluster.hosts
    split = submit(
        cluster,
        hosts[:1],
        tmp_path / "split",
        f"--dataset={dataset}",
        "--num-parts=2",
        "--output=parts",
        script=[SBATCH / "partition.sh"],
    )
    alone = submit(
        cluster,
        hosts[2:3],
        tmp_path / "alone",
        f"--dataset={dataset}",
        "--run-dir=run",
        "--num-epochs=20",
        "--num-hidden=64",
        "--lr=0.01",
        script=[SBATCH / "local.sh"],
    )
    assert split.ends() == ("COMPLETED", "0:0"), split.output()
    assert "edge cut" in split.output()
    parts = split.directory / "parts"

    words = ["--nodelist=node1,node2", "--output=job-%j.out", f"--job-name={tmp_path.name}"]
    (tmp_path / "train").mkdir()
    made = cluster.exec(
        "controller",
        *("make", "-s", "-C", REPOSITORY, "submit", f"PARTS_DIR={parts}"),
        *(
            f"RUN_DIR={tmp_path / 'train' / 'run'}",
            "ARGS=--num-epochs 20 --num-hidden 64 --lr 0.01",
        ),
        f"SBATCH_ARGS={' '.join([*words, '-D', str(tmp_path / 'train')])}",
        cwd=(tmp_path / "train"),
        env={"DISTSAGE_VENV": sys.prefix, "OMP_NUM_THREADS": "1"},
    )
    number = re.fullmatch(r"Submitted batch job (\d+)\n", made)
    assert number, made
    train = TrainingJob(cluster, hosts[:2], tmp_path / "train", int(number[1]))
    for job in (train, alone):
        job.completes()
        summary = json.loads((job.run_dir / "summary.json").read_text())
        assert summary["test"]["accuracy"] > 0.7, job.output()
    nothing_left(cluster, hosts[:3])


def test_preflight_inside_a_job(
    cluster: SlurmCluster, parts_of: Mapping[int, Path], tmp_path: Path
) -> None:
    words = f"python -m mpi4py -m distsage preflight --parts {parts_of[2]}"
    jobs = [
        submit(
            cluster,
            cluster.hosts[first : first + 2],
            tmp_path / str(first),
            request=["--wrap", f"{launcher} {words}"],
            script=(),
            env={
                "PYTHONPATH": str(REPOSITORY),
                "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                **env,
            },
        )
        for first, launcher, env in [
            (0, "mpirun --map-by ppr:2:node --bind-to none", {}),
            (2, "srun --mpi=pmix --distribution=block", {"MPI4PY_LIBMPI": "libmpi.so.40"}),
        ]
    ]
    for job in jobs:
        assert job.ends() == ("COMPLETED", "0:0"), job.output()
        assert (
            f"preflight: synthetic-3000-10 on 2 hosts ({', '.join(job.hosts)}), 1 pairs each, over "
            in job.output()
        )
        assert "ready to train" in job.output()
        nothing_left(cluster, job.hosts)
