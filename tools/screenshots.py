"""The pictures in docs/images: pages as Chromium draws them. `make screenshots` runs it.

Of a run that `distsage train` wrote on two hosts (tests/page/run), and of parts that are made here.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distsage.cli import main as distsage
from distsage.report.html import write_report
from tools.browser import Browser

REPOSITORY = Path(__file__).parents[1]
IMAGES = REPOSITORY / "docs" / "images"
_RUN = REPOSITORY / "tests" / "page" / "run"
_PARTS = ["--dataset", "synthetic:20000:10", "--num-parts", "4", "--attempts", "3"]
_WIDTH = 1000
# What is shown of each page, from the first to the last section.
_SHOWN = {"run": ("section-2", "section-4"), "parts": ("section-3", "section-4")}


def take(pages: dict[str, Path], images: Path, chromium: str, profile: Path) -> Sequence[Path]:
    """Draw each page in light and in dark; return the PNGs.

    Args:
        pages: HTML files by the name of their pictures.
        images: the directory to write to.
        chromium: the program.
        profile: a new directory for it.
    """
    browser = Browser(chromium, profile)
    taken = []
    try:
        for name, page in pages.items():
            for dark in (False, True):
                browser.open(page, _WIDTH, dark=dark)
                path = images / f"{name}-{'dark' if dark else 'light'}.png"
                browser.screenshot(path, *_SHOWN[name])
                taken.append(path)
    finally:
        browser.close()
    return taken


def main() -> None:
    """Write docs/images."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("screenshots: no chromium; tools/install_browser.sh installs it")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        distsage(["partition", *_PARTS, "--output", str(folder / "parts")])
        pages = {"run": folder / "run.html", "parts": folder / "parts.html"}
        write_report([_RUN], pages["run"])
        write_report([folder / "parts"], pages["parts"])
        for path in take(pages, IMAGES, chromium, folder / "profile"):
            print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
