"""Writes a page: one HTML file that needs no network. Runs on the login host."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from distsage import __version__
from distsage.files import atomic_file, explain_write_errors
from distsage.report.figures import sections
from distsage.train.records import Run

_CHARTS = "echarts-6.0.0.min.js"


def write_report(runs: Sequence[Run], output: Path) -> None:
    """Write the page about some runs; it appears whole or not at all.

    Raises:
        UserError: `output` cannot be written.
    """
    page = files("distsage.report") / "page"

    def source(name: str) -> Markup:
        return Markup((page / name).read_text(encoding="utf-8"))  # ours, not a run's

    shown = sections(runs)
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
        title=", ".join(run.name for run in runs),
        sections=shown,
        data=Markup(data),
        style=source("page.css"),
        charts=source(_CHARTS),
        script=source("page.js"),
        version=__version__,
    )
    with explain_write_errors(output, "--output"), atomic_file(output, "w") as stream:
        stream.write(text)
