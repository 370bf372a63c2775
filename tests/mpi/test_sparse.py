"""Sparse features train as the same data do dense, wherever a row comes from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from conftest import Partitioned, planted
from jobs import distsage, epochs, losses, mpirun, summary, train

from distsage.data.graph import Graph
from distsage.partitioning.parts import Parts
from distsage.partitioning.verify import load_parts
from distsage.train.run_directory import RunDirectory

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(600)]

QUICK = ("--num-hidden", 16, "--batch-size", 40, "--lr", 0.02, "--fan-out", "4,6")


def bags_of_words(width: int = 300) -> Graph:
    """The planted graph; a class has some columns of its own. Rows of no number, one, and all."""
    graph = planted()
    rng = np.random.default_rng(3)
    words = rng.integers(0, width, (graph.num_nodes, 6))
    own = rng.random(words.shape) < 0.4
    words[own] = words[own] % 20 + 20 * np.broadcast_to(graph.labels[:, None], words.shape)[own]
    dense = np.zeros((graph.num_nodes, width), np.float32)
    dense[np.arange(graph.num_nodes)[:, None], words] = rng.normal(1, 0.3, words.shape)
    dense[:3] = 0
    dense[1, 7] = 2
    dense[2] = rng.normal(size=width) / 20
    return replace(graph, name="words", features=scipy.sparse.csr_matrix(dense))


def test_every_row_is_its_nodes_for_all_trainers_of_a_host(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    """Also for those whose own server has not loaded the part."""
    graph = bags_of_words()
    parts = partitioned(graph, 2)
    options = ["--parts", parts, "--run-dir", tmp_path, "--emulated-hosts", 2]
    program = Path(__file__).with_name("rows_view.py")
    mpirun(8, program, *options, "--feat-dtype", "float16", "--cache-ratio", 0.3)
    found, _ = load_parts(parts)
    expected = found.features.toarray().astype(np.float16)
    for trainer in range(4):
        view = dict(np.load(tmp_path / f"rows-{trainer}.npz"))
        assert str(view["dtype"]) == "torch.float16"
        np.testing.assert_array_equal(view["fetched"], expected[view["mixed"]])
        assert len(view["cached_gid"]) > 0
        np.testing.assert_array_equal(view["cached"], expected[view["cached_gid"]])


def test_int8_is_the_same_in_a_job_and_on_one_machine(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    """The scales come from the parts in one, and from the features in the other."""
    parts = partitioned(bags_of_words(), 1)
    options = (*QUICK, "--num-epochs", 3, "--feat-dtype", "int8")
    train(2, parts, tmp_path / "job", *options, hosts=1)
    distsage("local", "--parts", parts, "--run-dir", tmp_path / "local", *options)
    assert losses(tmp_path / "job") == losses(tmp_path / "local")
    for mask in ("val", "test"):
        assert summary(tmp_path / "job")[mask] == summary(tmp_path / "local")[mask]


def total(run_dir: Path, name: str) -> float:
    return sum(record[name]["total"] for record in epochs(run_dir))


def test_as_dense_with_and_without_a_cache_and_after_a_stop(
    partitioned: Partitioned, tmp_path: Path
) -> None:
    graph = bags_of_words()
    sparse_parts = partitioned(graph, 2)
    dense_parts = partitioned(replace(graph, features=graph.features.toarray()), 2)
    sparse, dense, again = (tmp_path / name for name in ("sparse", "dense", "again"))
    whole = (*QUICK, "--num-epochs", 4, "--eval-every", 2)
    no_cache = ("--cache-ratio", 0)

    said = train(4, sparse_parts, sparse, *whole, *no_cache, hosts=2).stdout
    assert said.count("\nlayer 1 multiplies sparse rows, then averages (6.") == 1
    assert summary(sparse)["input_layer"] == "sparse"
    train(4, dense_parts, dense, *whole, *no_cache, hosts=2)
    np.testing.assert_allclose(losses(sparse), losses(dense), rtol=2e-5)
    for mask in ("val", "test"):
        assert summary(sparse)[mask] == summary(dense)[mask]
    assert total(sparse, "missed_rows") == total(dense, "missed_rows") > 0
    assert total(sparse, "received_bytes") < total(dense, "received_bytes") / 10

    # The same to the last bit: first without a cache, then with one.
    train(4, sparse_parts, again, *QUICK, "--num-epochs", 2, "--eval-every", 2, *no_cache, hosts=2)
    cached = ("--cache-bytes", 5000, "--resume", "auto", "--num-workers", 2)
    train(4, sparse_parts, again, *whole, *cached, hosts=2)
    assert losses(again) == losses(sparse)
    one, other = (RunDirectory(path).load_model()[1] for path in (sparse, again))
    assert all((one[name] == other[name]).all() for name in one)
    assert total(again, "cached_rows") > 0
    assert Parts.open(sparse_parts).manifest.features.is_sparse
