"""Sparse features in the parts: as they were, bounded for stock DGL, counted where memory is."""

import json
import shutil
import tempfile
from pathlib import Path

import dgl
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from distsage.config import PreflightConfig
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.features.matrix import feature_scales
from distsage.launch import preflight
from distsage.launch.stage import stage_parts, staged_path
from distsage.partitioning import estimate, storage
from distsage.partitioning.host_parts import HostParts
from distsage.partitioning.kept_rows import cached_bytes, cached_gids
from distsage.partitioning.parts import Parts
from distsage.partitioning.run import partition
from distsage.partitioning.verify import load_parts, verify
from tests.unit.partition_graphs import random_directed

NODES, WIDTH = 60, 400


def matrix(*, ones: bool = False, empty: bool = False) -> scipy.sparse.csr_matrix:
    """Rows of a few numbers; row 0 has none, row 1 one, row 2 one in every column."""
    rows = scipy.sparse.random(NODES, WIDTH, 0.02, "csr", np.float32, random_state=2).tolil()
    rows[0] = 0
    rows[1] = 0
    rows[1, 5] = 3
    rows[2] = np.arange(1, WIDTH + 1)
    found = rows.tocsr()
    if ones:
        found.data[:] = 1
    return found * 0 if empty else found


def graph_of(features: scipy.sparse.csr_matrix) -> Graph:
    return random_directed(NODES, 400, features=features)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("written") / "parts"
    partition(graph_of(matrix()), 3, path, method="random")
    return path


@pytest.mark.parametrize("kind", ["values", "ones", "zeros", "nothing"])
@pytest.mark.parametrize("bound", [0, 1 << 30])
def test_rows_come_back_as_they_were(
    kind: str, bound: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "DENSE_BOUND_BYTES", bound)
    features = matrix(ones=kind == "ones", empty=kind == "zeros")
    if kind == "nothing":
        features = scipy.sparse.csr_matrix((NODES, WIDTH), dtype=np.float32)
    path = tmp_path / "parts"
    expected = estimate.estimate(graph_of(features), 3, "random").disk
    partition(graph_of(features), 3, path, method="random")
    parts = Parts.open(path)
    verify(parts)
    manifest = parts.manifest
    assert manifest.features.is_sparse
    assert manifest.features.has_values == (kind in ("values", "zeros"))
    assert sum(part.feature_numbers for part in manifest.parts) == features.nnz
    assert (path / "part0" / "feature_values.npy").exists() == manifest.features.has_values
    scales = parts.feature_scales()
    if scales is None:
        assert not manifest.features.has_values
    else:
        np.testing.assert_array_equal(scales, feature_scales(features))
    found, _ = load_parts(path)
    assert isinstance(found.features, scipy.sparse.csr_matrix)
    in_order = features[np.asarray(parts.original_ids())]
    for one, other in (
        (found.features.indptr, in_order.indptr),
        (found.features.indices, in_order.indices),
        (found.features.data, in_order.data),
    ):
        np.testing.assert_array_equal(one, other)
    assert sum(file.stat().st_size for file in path.rglob("*")) <= 1.1 * expected + 40_000

    # Stock DGL reads labels in any case, and features below the bound.
    assert manifest.features.for_stock_dgl == (bound > 0)
    _, node_data, *_ = dgl.distributed.load_partition(str(parts.dgl_config), 1)
    assert "_N/labels" in node_data
    low, high = manifest.parts[1].nodes
    if bound:
        np.testing.assert_array_equal(node_data["_N/features"], in_order[low:high].toarray())
    else:
        assert "_N/features" not in node_data


@st.composite
def matrices(draw: st.DrawFn) -> scipy.sparse.csr_matrix:
    """Rows of no number, of one, of some, and of one in every column; or none but ones."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    width = draw(st.integers(1, 40))
    lengths = draw(st.lists(st.sampled_from([0, 1, 5, 40]), min_size=NODES, max_size=NODES))
    columns = [np.sort(rng.permutation(width)[:length]) for length in lengths]
    indptr = np.r_[0, np.cumsum([len(row) for row in columns])]
    values = rng.normal(size=indptr[-1]).astype(np.float32)
    if draw(st.booleans()):
        values[:] = 1
    return scipy.sparse.csr_matrix(
        (values, np.concatenate(columns).astype(np.int32), indptr), (NODES, width)
    )


@settings(max_examples=8, deadline=None)
@given(matrices(), st.integers(1, 4), st.data())
def test_any_rows_come_through_partitioning_and_staging(
    features: scipy.sparse.csr_matrix, num_parts: int, data: st.DataObject
) -> None:
    """A host's staged copy has the rows of its nodes, and the scales of all."""
    num_hosts = data.draw(st.integers(1, num_parts))
    hosts = [f"host{host}" for host in range(num_hosts)]
    with tempfile.TemporaryDirectory() as scratch:
        partition(graph_of(features), num_parts, Path(scratch, "parts"), method="random")
        parts = HostParts.deal(Parts.open(Path(scratch, "parts")), hosts)
        for host in range(num_hosts):
            copy = stage_parts(parts, host, staged_path(Path(scratch, "stage"), "job", host))
            found = copy.sparse_features(host)
            values = np.ones(len(found.columns)) if found.values is None else found.values
            low, high = copy.nodes(host)
            shape = high - low, features.shape[1]
            rows = scipy.sparse.csr_matrix((values, found.columns, found.indptr), shape)
            own = np.asarray(copy.parts.original_ids()[low:high])
            np.testing.assert_array_equal(rows.toarray(), features[own].toarray())
            scales, expected = copy.parts.feature_scales(), feature_scales(features)
            assert (scales is None) == (expected is None)
            if scales is not None:
                np.testing.assert_array_equal(scales, expected)


def test_a_host_reads_nothing_that_only_stock_dgl_needs(written: Path) -> None:
    parts = Parts.open(written)
    everything, own = parts.files_of(), parts.files_of([1])
    assert "part1/dense_feat.dgl" in everything
    assert "part1/dense_feat.dgl" not in own
    assert {"part1/feature_columns.npy", "part1/feature_values.npy", "feature_counts.npy"} <= {*own}


def on_three_hosts(path: Path) -> HostParts:
    return HostParts.deal(Parts.open(path), ["a", "b", "c"])


def options(**chosen: object) -> PreflightConfig:
    return PreflightConfig(parts="unused", **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "number"), [("float32", 8), ("bfloat16", 6), ("int8", 5)])
def test_the_cache_is_the_rows_that_fit(written: Path, dtype: str, number: int) -> None:
    parts = on_three_hosts(written)
    ranking = parts.cache_ranking(0)
    counts = parts.parts.feature_counts()[ranking]
    taken = [8 * (n + 1) + number * int(counts[:n].sum()) for n in range(len(ranking) + 1)]
    for budget in (0, 7, 8, *taken[1:9], taken[8] - 1, 10**9):
        kept = cached_gids(parts, 0, options(cache_bytes=budget, feat_dtype=dtype))
        np.testing.assert_array_equal(kept, ranking[: len(kept)])
        fits = [n for n in range(1, len(ranking) + 1) if taken[n] <= budget]
        assert len(kept) == max(fits, default=0)
        assert cached_bytes(parts, kept, dtype) == (taken[len(kept)] if len(kept) else 0)
    remote = NODES - parts.manifest.parts[0].num_nodes
    assert len(cached_gids(parts, 0, options(cache_ratio=0.2))) == int(remote * 0.2)


def test_memory_counts_numbers_and_not_columns(written: Path, tmp_path: Path) -> None:
    dense = graph_of(matrix().toarray())
    partition(dense, 3, tmp_path / "dense", method="random")
    sparse_parts, dense_parts = on_three_hosts(written), on_three_hosts(tmp_path / "dense")
    for part in range(3):
        summary = sparse_parts.manifest.parts[part]
        bare = options(cache_ratio=0)
        difference = preflight.shared_memory_need(
            dense_parts, part, bare
        ) - preflight.shared_memory_need(sparse_parts, part, bare)
        # DGL's file names its tensors; one more name is a few bytes.
        as_table = 4 * WIDTH * summary.num_nodes
        as_rows = 8 * (summary.num_nodes + 1) + 8 * summary.feature_numbers
        assert abs(difference - (as_table - as_rows)) < 200


@pytest.mark.parametrize(
    ("name", "number"), [("part1/feature_columns.npy", WIDTH), ("part1/feature_columns.npy", -1)]
)
def test_columns_that_no_table_has(written: Path, tmp_path: Path, name: str, number: int) -> None:
    path = Path(shutil.copytree(written, tmp_path / "parts"))
    columns = np.lib.format.open_memmap(path / name, "r+")
    columns[3] = number
    columns.flush()
    parts = Parts.open(path)
    with pytest.raises(UserError, match="does not hold the rows that the manifest"):
        parts.sparse_features(1)
    with pytest.raises(UserError, match=r"feature_columns\.npy has changed"):
        verify(parts, [1])


def _features(value: dict, **changes: object) -> None:
    value["features"].update(changes)


WRONG = {
    "another kind": lambda v: _features(v, kind="ragged"),
    "a kind that is no text": lambda v: _features(v, kind=[]),
    "values that are no boolean": lambda v: _features(v, has_values=1),
    "no values but their files": lambda v: _features(v, has_values=False),
    "dense rows that are nowhere": lambda v: v["files"].pop("part0/dense_feat.dgl"),
    "a table of sparse rows": lambda v: _features(v, kind="dense"),
    "more numbers than there are": lambda v: v["parts"][0].update(feature_numbers=5000),
    "more numbers than the table has": lambda v: v["parts"][0].update(feature_numbers=1 << 30),
    "counts of another length": lambda v: v["files"]["feature_counts.npy"].update(bytes=10),
    "no storage": lambda v: v.pop("features"),
    "a bound that is text": lambda v: _features(v, dense_bound_bytes="1 GiB"),
}


@pytest.mark.parametrize("row", WRONG)
def test_a_manifest_that_contradicts_itself(written: Path, tmp_path: Path, row: str) -> None:
    path = Path(shutil.copytree(written, tmp_path / "parts"))
    value = json.loads((path / "manifest.json").read_text())
    WRONG[row](value)
    (path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Parts.open(path)
