"""The page about parts: what partition has written, in figures."""

from pathlib import Path

import numpy as np
import pytest

from distsage.cli import main
from distsage.partitioning.parts import Parts
from distsage.report.figures import Figure
from distsage.report.parts import Partition, sections


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts, the better of two attempts."""
    output = tmp_path_factory.mktemp("parts") / "three"
    words = ["--dataset", "synthetic:400:8:4", "--num-parts", "3", "--part-method", "random"]
    words += ["--fan-out", "3,3", "--batch-size", "20", "--attempts", "2"]
    main(["partition", *words, "--output", str(output)])
    return output


def figures(*paths: Path) -> dict[str, Figure]:
    found = sections([Partition(path) for path in paths])
    return {figure.title: figure for section in found for figure in section.figures}


def test_figures_say_what_the_parts_hold(parts: Path) -> None:
    shown = figures(parts)
    whole = Parts.open(parts)
    manifest = whole.manifest
    own, halo = (one["data"] for one in shown["Own nodes and halo"].option["series"])
    assert own == [part.num_nodes for part in manifest.parts]
    assert halo == [part.halo_nodes for part in manifest.parts]
    inner, cut = (one["data"] for one in shown["Inner edges and cut edges"].option["series"])
    assert sum(inner) + sum(cut) == manifest.num_edges
    assert sum(cut) == manifest.edge_cut
    lines = shown["Remote rows of a batch by cache ratio"].option["series"]
    probability = np.array(whole.cache_probability(1), np.float64)
    assert lines[1]["data"][10] == pytest.approx(probability[len(probability) // 2 :].sum())
    assert [line["data"][-1] for line in lines] == pytest.approx([0, 0, 0], abs=1e-9)
    without_cache = [line["data"][0] for line in lines]
    assert shown["Remote rows of a batch"].option["series"][0]["data"] == without_cache
    facts = dict(shown["Parts"].table.rows)
    tried = shown["Remote rows of a batch by attempt"].table.rows
    assert facts["remote rows expected in a batch"] == min(row[1] for row in tried)
    assert facts["edge cut"].startswith(f"{manifest.edge_cut:,} directed edges (")
    assert [row[0] for row in shown["Balance of the parts"].table.rows] == ["0", "1", "2"]
    assert all(figure.table.rows for figure in shown.values())


def test_directories_stand_side_by_side(parts: Path, tmp_path: Path) -> None:
    other = tmp_path / "two"
    words = ["--dataset", "synthetic:400:8:4", "--num-parts", "1", "--fan-out", "3,3"]
    main(["partition", *words, "--output", str(other)])
    shown = figures(parts, other)
    assert {"three: Own nodes and halo", "two: Own nodes and halo"} <= set(shown)
    assert "two: Remote rows of a batch by cache ratio" not in shown, "there is nothing to cache"
    marked = {row[0] for row in shown["Options"].table.rows if row[0].endswith(" *")}
    assert {"method *", "batch-size *"} <= marked
    assert "dataset *" not in marked


def test_one_command_writes_pages_about_runs_or_about_parts(
    parts: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    main(["report", str(parts), "--output", str(page)])
    assert "<title>distsage: three</title>" in page.read_text()
    with pytest.raises(SystemExit) as end:
        main(["report", str(parts), str(tiny_run), "--output", str(tmp_path / "both.html")])
    assert end.value.code == 2
    assert f"{parts} holds parts and {tiny_run} does not" in capsys.readouterr().err
    assert not (tmp_path / "both.html").exists()
