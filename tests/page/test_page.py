"""Pages in a browser without a network, as `make test-page` opens them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsage.cli import main
from distsage.report.html import write_report
from tools.browser import Browser

RUN = Path(__file__).with_name("run")  # of two hosts, as `distsage train` wrote it
AXE = Path(__file__).parents[2] / ".page" / "axe.min.js"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "no chromium: tools/install_browser.sh installs it"
    browser = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page about one run, one about two, one about parts, and one about a plan."""
    folder = tmp_path_factory.mktemp("pages")
    other = folder / "slower"
    shutil.copytree(RUN, other)
    (other / "config.yaml").write_text(
        (RUN / "config.yaml").read_text().replace("dropout: 0.5", "dropout: 0.25")
    )
    words = ["--dataset", "synthetic:2000:8", "--num-parts", "4", "--part-method", "random"]
    main(["partition", *words, "--attempts", "2", "--output", str(folder / "parts")])
    shown = {"one run": [RUN], "two runs": [RUN, other], "parts": [folder / "parts"]}
    for name, paths in shown.items():
        write_report(paths, folder / f"{name}.html")
    words = ["--parts", str(folder / "parts"), "--hosts", "1,2,4", "--mem", "8G", "--batches", "2"]
    words += ["--num-hidden", "8", "--batch-size", "50", "--network", "10gbit"]
    main(["plan", *words, "--output", str(folder / "plan.html")])
    return {name: folder / f"{name}.html" for name in (*shown, "plan")}


# How many colours each canvas has; an empty one has one.
COLOURS = """[...document.querySelectorAll('.chart canvas')].map((canvas) => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
})"""
PROBLEMS = """axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'best-practice'] }).then((found) =>
  found.violations.map((one) => one.id + ': ' + one.nodes.map((node) => node.html).slice(0, 3)))"""


@pytest.mark.parametrize(
    ("page", "width", "dark", "pictures", "tables"),
    [
        ("one run", 1400, False, 12, 3),
        ("two runs", 400, True, 22, 4),
        ("parts", 1400, True, 6, 2),
        ("parts", 400, False, 6, 2),
        ("plan", 1400, False, 7, 5),
        ("plan", 400, True, 7, 5),
    ],
    ids=[
        "one run, wide, light",
        "two runs, on a phone, dark",
        "parts, wide, dark",
        "parts, on a phone, light",
        "a plan, wide, light",
        "a plan, on a phone, dark",
    ],
)
def test_the_page_is_whole(
    page: str,
    width: int,
    dark: bool,
    pictures: int,
    tables: int,
    pages: dict[str, Path],
    browser: Browser,
) -> None:
    """`tables`: those of no picture."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(pages[page], width, dark=dark)
    colours = browser.value(COLOURS)
    assert len(colours) == pictures
    assert min(colours) > 10, "a picture is blank"
    assert (
        browser.value("document.querySelectorAll('figure table').length") == len(colours) + tables
    )
    assert browser.value("[...document.querySelectorAll('table')].every((t) => t.rows.length > 1)")
    assert browser.value("document.documentElement.scrollWidth") <= width
    browser.value(AXE.read_text() + "; 0")
    # Tables are hidden until somebody opens them, and axe looks at what is seen.
    browser.value("document.querySelectorAll('details').forEach((one) => (one.open = true)); 0")
    assert browser.value(PROBLEMS) == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []
    files = [url for url in browser.requests if not url.startswith(("file:", "data:"))]
    assert files == []


def test_keys_read_the_values(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["one run"], 800, dark=False)
    browser.value("document.querySelectorAll('.chart')[0].focus(); 0")
    losses = [json.loads(line)["loss"] for line in (RUN / "epochs.jsonl").read_text().splitlines()]
    said = "document.querySelector('.said').textContent"
    for epoch in (1, 2):
        browser.press("ArrowRight")
        assert browser.value(said) == f"epoch {epoch}, run: {losses[epoch - 1]:.4g}"
    browser.press("Escape")
    assert browser.value(said) == ""
