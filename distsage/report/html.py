"""Writes a page: one HTML file that needs no network. Runs on the login host."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from distsage import __version__
from distsage.errors import UserError
from distsage.files import atomic_file, explain_write_errors
from distsage.partitioning.manifest import MANIFEST
from distsage.report import figures, parts
from distsage.report.against_plan import plan_figures
from distsage.report.figures import Section
from distsage.train.records import read_run

_CHARTS = "echarts-6.0.0.min.js"


def write_report(paths: Sequence[Path], output: Path) -> None:
    """Write the page about some runs, or about some directories of parts.

    Args:
        paths: directories, all of one kind.
        output: the file to write; it appears whole or not at all.

    Raises:
        UserError: the directories are not what they should be, or `output` cannot be written.
    """
    of_parts = [path for path in paths if (path / MANIFEST).is_file()]
    if not of_parts:
        runs = [read_run(path) for path in paths]
        shown = figures.sections(runs)
        if against_plans := plan_figures(runs):
            shown.insert(1, Section("Plan and run", against_plans))
        write_page([run.name for run in runs], shown, output)
        return
    for path in paths:
        if path not in of_parts:
            raise UserError(
                f"{of_parts[0]} holds parts and {path} does not; a page is about runs or about "
                "parts: name one kind"
            )
    partitions = [parts.Partition(path) for path in paths]
    write_page([one.name for one in partitions], parts.sections(partitions), output)


def write_page(names: Sequence[str], shown: Sequence[Section], output: Path) -> None:
    """Write a page; it appears whole or not at all.

    Args:
        names: of what it is about.
        shown: on it.
        output: the file to write.

    Raises:
        UserError: `output` cannot be written.
    """
    page = files("distsage.report") / "page"

    def source(name: str) -> Markup:
        return Markup((page / name).read_text(encoding="utf-8"))  # ours, not a run's

    options = [
        {"option": figure.option, "unit": figure.unit}
        for section in shown
        for figure in section.figures
        if figure.option is not None
    ]
    # `<` could end the script: JSON knows it by its number, too.
    data = json.dumps(options).replace("<", "\\u003c")
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((page / "page.html").read_text(encoding="utf-8"))
    text = template.render(
        title=", ".join(names),
        sections=shown,
        data=Markup(data),
        style=source("page.css"),
        charts=source(_CHARTS),
        script=source("page.js"),
        version=__version__,
    )
    with explain_write_errors(output, "--output"), atomic_file(output, "w") as stream:
        stream.write(text)
