"""Every kind of label, from a user's files to predictions that give the summary's scores again.

The scores of the distributed evaluation are held against scikit-learn's, computed from what
`distsage predict` writes of every node by its original id.
"""

from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from conftest import planted
from jobs import distsage, mpirun, summary, train

from distsage.config import EvaluateConfig
from distsage.data.graph import Graph
from distsage.prediction.scores import evaluate
from distsage.train.run_directory import RunDirectory

pytestmark = pytest.mark.mpi

OPTIONS = ("--num-epochs", 6, "--num-hidden", 16, "--batch-size", 60, "--lr", 0.02)
MASKS = ("train", "val", "test")


def write_tables(graph: Graph, directory: Path) -> None:
    """Edge and node tables with the graph's names of nodes."""
    directory.mkdir()
    names = graph.original_ids
    assert names is not None
    dst = np.repeat(np.arange(graph.num_nodes), np.diff(graph.topology.indptr))
    pairs = zip(names[graph.topology.indices], names[dst], strict=True)
    edges = "".join(f"{src},{dst}\n" for src, dst in pairs)
    (directory / "edges.csv").write_text(f"src,dst\n{edges}")
    labels = graph.labels.reshape(graph.num_nodes, -1).astype(int)
    label_names = [f"label_{c}" for c in range(labels.shape[1])]
    header = ["id", *(label_names if graph.labels.ndim == 2 else ["label"]), "split"]
    header += [f"x{f}" for f in range(graph.num_features)]
    lines = [",".join(header)]
    for v in range(graph.num_nodes):
        (split,) = (mask for mask in MASKS if getattr(graph, f"{mask}_mask")[v])
        row = [names[v], *labels[v], split, *(repr(float(x)) for x in graph.features[v])]
        lines.append(",".join(map(str, row)))
    (directory / "nodes.csv").write_text("\n".join(lines) + "\n")


def write_npz(graph: Graph, path: Path) -> None:
    """The same in one file; ids are row numbers."""
    dst = np.repeat(np.arange(graph.num_nodes), np.diff(graph.topology.indptr))
    np.savez(
        path,
        num_nodes=graph.num_nodes,
        edge_src=graph.topology.indices,
        edge_dst=dst,
        features=graph.features,
        labels=graph.labels,
        **{f"{mask}_mask": getattr(graph, f"{mask}_mask") for mask in MASKS},
    )


def scores_from_scratch(
    graph: Graph, dataset: Path, tmp_path: Path, ranks: int
) -> dict[str, dict[str, float]]:
    """Partition, train on 2 hosts, predict; the scores by scikit-learn."""
    parts, run_dir, output = tmp_path / "parts", tmp_path / "run", tmp_path / "out.npz"
    distsage("partition", "--dataset", dataset, "--num-parts", 2, "--output", parts)
    train(ranks, parts, run_dir, *OPTIONS, hosts=2)
    distsage("predict", "--run-dir", run_dir, "--output", output)
    with np.load(output) as predicted:
        ids, probabilities = predicted["ids"].tolist(), predicted["values"]
    names = graph.original_ids if dataset.is_dir() else np.arange(graph.num_nodes)
    place = {name: v for v, name in enumerate(np.asarray(names).tolist())}
    order = np.array([place[name] for name in ids])
    assert sorted(order) == list(range(graph.num_nodes))
    scores = {}
    for mask in MASKS:
        chosen = getattr(graph, f"{mask}_mask")[order]
        truth, p = graph.labels[order][chosen], probabilities[chosen]
        if truth.ndim == 2:
            scores[mask] = {"micro_f1": sklearn.metrics.f1_score(truth, p > 0.5, average="micro")}
            continue
        scores[mask] = {"accuracy": sklearn.metrics.accuracy_score(truth, p.argmax(1))}
        if p.shape[1] == 2:
            scores[mask]["roc_auc"] = sklearn.metrics.roc_auc_score(truth, p[:, 1])
    return scores


def check(graph: Graph, dataset: Path, tmp_path: Path, ranks: int) -> None:
    expected = scores_from_scratch(graph, dataset, tmp_path, ranks)
    result = summary(tmp_path / "run")
    for mask, scores in expected.items():
        assert result[mask] == pytest.approx(scores, abs=1e-4)
        assert set(result[mask]) == set(scores)
        assert min(scores.values()) > 0.55
    again, _ = evaluate(EvaluateConfig(run_dir=tmp_path / "run"))
    assert again == {mask: pytest.approx(result[mask], abs=1e-4) for mask in MASKS}


def test_two_classes(tmp_path: Path) -> None:
    graph = planted("two", num_classes=2)
    write_npz(graph, tmp_path / "two.npz")
    check(graph, tmp_path / "two.npz", tmp_path, ranks=4)


def test_several_labels_per_node(tmp_path: Path) -> None:
    graph = planted("several", multilabel=True)
    write_tables(graph, tmp_path / "several")
    check(graph, tmp_path / "several", tmp_path, ranks=8)
    asked = ("evaluate", "--run-dir", tmp_path / "run", "--emulated-hosts", 2)
    said = mpirun(4, "-m", "distsage", *asked).stdout.splitlines()
    noted = summary(tmp_path / "run")
    for mask in MASKS:
        value = f"{noted[mask]['micro_f1']:.4f}"
        beside = f" (in training {value})" if mask == "val" else ""
        assert f"{mask} micro_f1 {value}{beside}" in said


def test_three_classes(tmp_path: Path) -> None:
    graph = planted("three")
    write_tables(graph, tmp_path / "three")
    check(graph, tmp_path / "three", tmp_path, ranks=4)


def test_a_table_with_categories_by_its_parts_and_by_itself(tmp_path: Path) -> None:
    """Parts are standardised when they are made, the table when it is predicted for: both once."""
    graph = planted("mixed")
    dataset = tmp_path / "mixed"
    write_tables(graph, dataset)
    header, *rows = (dataset / "nodes.csv").read_text().splitlines()
    rows = [f"{row},{'abc'[v % 3] if v % 7 else ''}" for v, row in enumerate(rows)]
    (dataset / "nodes.csv").write_text("\n".join([f"{header},letter", *rows]) + "\n")
    reading = ("--categorical", "letter", "--fill", "mean", "--feature-norm", "standard")
    reading += ("--split", "0.5/0.2/0.3", "--seed", "5")
    parts, run_dir = tmp_path / "parts", tmp_path / "run"
    distsage("partition", "--dataset", dataset, "--num-parts", 2, "--output", parts, *reading)
    train(4, parts, run_dir, *OPTIONS, hosts=2)
    predict = ("predict", "--run-dir", run_dir, "--output")
    distsage(*predict, tmp_path / "parts.npz")
    distsage(*predict, tmp_path / "table.npz", "--dataset", dataset)
    with np.load(tmp_path / "parts.npz") as one, np.load(tmp_path / "table.npz") as other:
        assert one["ids"].tolist() == other["ids"].tolist()
        np.testing.assert_allclose(one["values"], other["values"], rtol=1e-4, atol=1e-6)
    # Its masks are drawn again as they were for the parts.
    scores, _ = evaluate(EvaluateConfig(run_dir=run_dir, dataset=str(dataset)))
    noted = summary(run_dir)
    assert scores == {mask: pytest.approx(noted[mask], abs=1e-4) for mask in MASKS}
    assert RunDirectory(run_dir).load_model()[0]["rows_divided"] is False
