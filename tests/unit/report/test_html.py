"""The page as a file: one piece, nothing from elsewhere, names of the user's are no markup."""

import json
import re
import shutil
from pathlib import Path

import pytest

from distsage.cli import main
from distsage.report.figures import sections
from distsage.train.records import read_run
from tests.unit.report.schema import strangers

# Of two hosts; `distsage train` wrote it with schema 1.
EXAMPLE = Path(__file__).parents[2] / "page" / "run"


def test_a_run_that_schema_1_was_written_with_is_read() -> None:
    run = read_run(EXAMPLE)
    assert list(strangers(run)) == []
    assert run.state == ("finished", "all 7 epochs")
    assert run.hosts == ["node0", "node1"]


def figures(*paths: Path) -> dict[str, object]:
    found = sections([read_run(path) for path in paths])
    return {figure.title: figure for section in found for figure in section.figures}


def test_every_picture_has_a_table_of_its_numbers() -> None:
    shown = figures(EXAMPLE)
    assert {"Loss", "Scores", "Seconds by host and phase", "Events", "Options"} <= set(shown)
    records = [json.loads(line) for line in (EXAMPLE / "epochs.jsonl").read_text().splitlines()]
    losses = shown["Loss"].table.rows
    assert losses == [[str(r["epoch"] + 1), f"{r['loss']:.4f}"] for r in records]
    from_each = [
        [sum(r["hosts"][row]["received_bytes_from"][column] for r in records) for column in (0, 1)]
        for row in (0, 1)
    ]
    drawn = shown["Bytes received"].option["series"][0]["data"]
    assert {(row, column): value for column, row, value in drawn} == {
        (row, column): from_each[row][column] for row in (0, 1) for column in (0, 1)
    }
    local = shown["Where feature rows came from"].option["series"][0]
    assert local["name"] == "own part"
    per_trainer = [sum(r["local_rows"]["per_trainer"][t] for r in records) for t in range(4)]
    assert local["data"] == [sum(per_trainer[:2]), sum(per_trainer[2:])]


def test_two_runs_stand_side_by_side(tiny_run: Path) -> None:
    shown = figures(EXAMPLE, tiny_run)
    assert {"run: Seconds of each epoch", "tiny: Seconds of each epoch"} <= set(shown)
    assert "tiny: Bytes received" not in shown, "there is nobody to receive from"
    assert [one["name"] for one in shown["Loss"].option["series"]] == ["run", "tiny"]
    assert len(shown["Runs"].table.head) == 3
    marked = [row[0] for row in shown["Options"].table.rows if row[0].endswith(" *")]
    assert "batch-size *" in marked
    assert "lr *" not in marked


def test_a_run_of_before_the_schema_has_a_page(tiny_run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(tiny_run / "config.yaml", old)
    records = [json.loads(line) for line in (tiny_run / "epochs.jsonl").read_text().splitlines()]
    for record in records:
        del record["hosts"]
    (old / "epochs.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert {"Loss", "Seconds by host and phase"} <= set(figures(old))


def test_names_are_no_markup(tiny_run: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x>&"
    shutil.copytree(tiny_run, evil)
    with open(evil / "events.jsonl", "a") as stream:
        stream.write('{"time": 1, "event": "failed", "why": "</script><b>x</b>"}\n')
    main(["report", str(evil), "--output", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "<img src=x>" not in page
    assert "<b>x" not in page
    assert page.count("</script>") == 3
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", ours) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report", "--output", "x.html"], "required: RUN"),
        (["report", "nowhere", "--output", "x.html"], "nowhere is no run directory"),
        (["report", "{run}", "--output", "x.pdf"], "does not end in .html"),
        (["report", "{run}", "--output", "{run}/none/x.html"], "cannot write"),
        (["runs", "nowhere"], "there is no directory nowhere"),
        (["watch", "nowhere"], "nowhere is no run directory"),
    ],
)
def test_mistakes(
    arguments: list[str], sentence: str, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([argument.replace("{run}", str(tiny_run)) for argument in arguments])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
