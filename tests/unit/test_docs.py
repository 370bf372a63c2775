"""README, CONTRIBUTING and docs/ name options, defaults, files and messages that exist."""

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import nbformat
import pytest
import yaml
from jupyter_client import KernelManager
from nbclient import NotebookClient

import distsage
from distsage.config import DEFAULT_CACHE_RATIO, POSITIONAL, TrainConfig
from distsage.parser import CONFIGS

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
WITH_DECISIONS = [*PAGES, ROOT / "DECISIONS.md"]
OTHERS = {
    "sbatch, srun": "nodes ntasks-per-node cpus-per-task time mem mem-per-cpu gpus-per-node export "
    "exclusive exclude mpi distribution no-requeue signal",
    "mpirun": "hostfile map-by bind-to oversubscribe version",
    "tools/cluster and docker": "hosts rate privileged rm",
    "every command": "config help",
}
LINES_OF_README = 200


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def every_page(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=name_of)


def option(name: str) -> str:
    return name.replace("_", "-")


def options_of(config: Any) -> set[str]:
    return {option(each.name) for each in dataclasses.fields(config) if each.metadata != POSITIONAL}


def options_in(text: str) -> set[str]:
    return {option(name) for name in re.findall(r"(?<![\w-])--([a-z][a-z_-]*)", text)}


def code_in(text: str) -> str:
    """Fenced blocks and code in lines, without the prose between them."""
    blocks = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`]+)`", rest)])


def section(page: str, title: str) -> str:
    text = (ROOT / page).read_text()
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {title}"
    return found.group(1)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LINES_OF_README


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\(([a-z-]+\.md)\)", (ROOT / "docs/index.md").read_text()))
    assert listed == {page.name for page in DOCS} - {"index.md"}


@every_page(PAGES)
def test_every_option_exists(page: Path) -> None:
    known = {name for command in CONFIGS.values() for name in options_of(command)}
    known |= {name for names in OTHERS.values() for name in names.split()}
    tools = {name for path in (ROOT / "tools").rglob("*.py") for name in tool_options(path)}
    unknown = options_in(page.read_text()) - known - tools
    assert not unknown


def tool_options(path: Path) -> set[str]:
    """Options of a program in tools/."""
    return set(re.findall(r'add_argument\(\s*"--([a-z-]+)"', path.read_text()))


@every_page(PAGES)
def test_commands_are_given_their_own_options(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for command, given in re.findall(r"-m distsage (\w+)([^`\n]*)", text):
        if command in CONFIGS:
            unknown = options_in(given) - options_of(CONFIGS[command]) - {"config", "help"}
            assert not unknown, command


@pytest.mark.parametrize("command", CONFIGS)
def test_every_option_of_a_command_is_explained(command: str) -> None:
    assert options_in(section("docs/options.md", command)) == options_of(CONFIGS[command])


@pytest.mark.parametrize("command", ["partition", "train", "local", "predict"])
def test_defaults(command: str) -> None:
    fields = {option(field.name): field.default for field in dataclasses.fields(CONFIGS[command])}
    rows = re.findall(
        r"^\| `--([a-z-]+)` \| ([^|]+) \|", section("docs/options.md", command), re.MULTILINE
    )
    assert rows
    for name, shown in rows:
        default = DEFAULT_CACHE_RATIO if name == "cache-ratio" else fields[name]
        if isinstance(default, bool):
            assert shown == ("on" if default else "off"), name
        elif isinstance(default, int | float) and shown != "required":
            assert shown == f"{default:g}", name
        elif isinstance(default, str):
            assert shown == default, name


@pytest.mark.parametrize("command", ["partition", "train", "local", "predict"])
def test_choices(command: str) -> None:
    kinds = {option(field.name): field.type for field in dataclasses.fields(CONFIGS[command])}
    for row in re.findall(r"^\| `--.*", section("docs/options.md", command), re.MULTILINE):
        name = row.split("`")[1].removeprefix("--")
        if get_origin(kinds[name]) is Literal:
            assert all(re.search(rf"\b{choice}\b", row) for choice in get_args(kinds[name])), name


def test_keys_of_yaml_are_options() -> None:
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            assert set(map(option, yaml.safe_load(block))) <= options_of(TrainConfig)


@every_page(PAGES)
def test_every_variable_is_read_somewhere(page: Path) -> None:
    named = set(re.findall(r"\bDISTSAGE_[A-Z_]+", page.read_text()))
    sources = [ROOT / "Makefile", ROOT / "tools/cluster"]
    sources.append(ROOT / "packaging/image/bin/python")
    for folder in ("distsage", "sbatch", "tools", "tests"):
        sources += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh")]
    sources.remove(Path(__file__))
    read = {name for path in sources for name in re.findall(r"DISTSAGE_[A-Z_]+", path.read_text())}
    assert named <= read, named - read


def test_every_setting_of_the_batch_scripts_is_explained() -> None:
    settings = set(re.findall(r"^#   ([A-Z_]+) ", (ROOT / "sbatch/env.sh").read_text(), re.M))
    assert len(settings) >= 9
    explained = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", section_of_variables(), re.MULTILINE))
    assert settings <= explained, settings - explained


def section_of_variables() -> str:
    return section("docs/options.md", "Environment variables")


@every_page(WITH_DECISIONS)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|[^\w-])make ([a-z][a-z-]*)", code_in(page.read_text())))
    assert named <= targets, named - targets


@every_page(WITH_DECISIONS)
def test_every_file_exists(page: Path) -> None:
    code = code_in(page.read_text())
    folders = "distsage|tools|tests|sbatch|docs|packaging"
    # Not a part of a longer path, and not a file that a command of the page writes.
    for path in re.findall(rf"(?<![\w/.$-])((?:{folders})/[\w./-]*)", code):
        if path != "docs/faults-table.md":
            assert (ROOT / path.rstrip(".")).exists(), path
    for module in re.findall(r"\b((?:distsage|tools)(?:\.[a-z_]+)+)\b", code):
        of_library = module.split(".")[1] in ("__all__", *distsage.__all__)
        if not of_library and not module.endswith((".yaml", ".md")):
            parts = ROOT.joinpath(*module.split("."))
            assert parts.is_dir() or parts.with_suffix(".py").exists(), module


def test_every_file_of_the_tree_exists() -> None:
    trees = re.findall(r"^```text\n\.\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(trees) == 1
    folders: list[str] = []
    checked = 0
    for line in trees[0].splitlines():
        match = re.match(r"((?:│   |    )*)[├└]── (\S+)", line)
        assert match, line
        depth = len(match.group(1)) // 4
        path = Path(*folders[:depth], match.group(2))
        assert (ROOT / path).exists(), path
        folders[depth:] = [match.group(2)]
        checked += 1
    rooms = {path.parent.name for path in (ROOT / "distsage").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"── (\w+)/", trees[0]))
    assert checked > len(rooms)


def test_every_test_of_the_strangers_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "trust.md").read_text()))
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert named <= set(re.findall(r"def (test_\w+)", tests))


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", h.lower()).replace(" ", "-") for h in headings}


@every_page([*WITH_DECISIONS, ROOT / "CHANGELOG.md"])
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), target


def source_words() -> str:
    """All of the code's messages: string literals that follow each other are joined."""
    text = ""
    for folder in ("distsage", "sbatch"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".sh"):
                text += path.read_text()
    text = re.sub(r'"\s*\\?\n\s*f?"', " ", text)  # one message over several lines
    return re.sub(r"\s+", " ", text).replace("{SHARED_MEMORY}", "/dev/shm")


def rows_of_messages() -> Iterator[str]:
    text = (ROOT / "docs/errors.md").read_text()
    for row in re.findall(r"^\| (`.*)$", text, re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row.split(" | ")[0])


def test_every_message_is_one_of_the_code() -> None:
    words = source_words()
    # Names, numbers and what is left out stand for something of the user's.
    examples = (
        "torch nan src features train_mask val_mask manifest.json nodes.csv part rank GPUs "
        "partitioning"
    )
    separator = re.compile(
        rf"\b(?:{'|'.join(map(re.escape, examples.split()))})(?!\w)|--run-dir"
        r"|\b[A-Z][A-Z_]*\b\S*|\S*\d\S*|\.\.\.|\S*['\"()/]\S*"
    )
    checked = 0
    for message in rows_of_messages():
        for piece in filter(None, (piece.strip(" ,;:") for piece in separator.split(message))):
            assert piece in words, (message, piece)
            checked += 1
    assert checked >= 100


def test_the_pages_are_built(tmp_path: Path) -> None:
    """No link between them leads nowhere, and the navigation has each of them."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {path.stem for path in DOCS} <= {
        path.stem for path in (tmp_path / "site").glob("*.html")
    }
    navigation = re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == [page.name for page in DOCS]


def test_what_is_said_of_others_has_a_source() -> None:
    rows = re.findall(r"^\| (.*) \|$", (ROOT / "docs/alternatives.md").read_text(), re.MULTILINE)
    checked = 0
    for row in rows[2:]:
        _, ours, *others = row.split(" | ")
        assert len(others) == 4, row
        assert re.search(r"\]\([a-z-]+\.md", ours), ours
        for cell in others:
            assert cell == "-" or "](https://" in cell, cell
            checked += cell != "-"
    assert checked >= 20


def test_figures_of_tuning_are_those_that_were_measured() -> None:
    tables = re.findall(r"^\|.*", (ROOT / "docs/tuning.md").read_text(), re.MULTILINE)
    measured = (ROOT / "docs/benchmarks.md").read_text()
    figures = [figure for row in tables for figure in re.findall(r"(?<=\| )\d+\.\d+(?= \|)", row)]
    assert len(figures) >= 30
    for figure in figures:
        assert re.search(rf"\| {re.escape(figure)}(?= [(|])", measured), figure


def test_the_notebook_runs(tmp_path: Path) -> None:
    """Every cell, in a kernel of its own. What it prints may differ in seconds."""
    notebook = nbformat.read(ROOT / "docs/library.ipynb", as_version=4)
    kernel = KernelManager(kernel_name="python3", transport="ipc", ip=str(tmp_path / "kernel"))
    here = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, km=kernel, timeout=300, startup_timeout=120, resources=here).execute()
    named = {
        name for cell in notebook.cells for name in re.findall(r"distsage\.(\w+)\(", cell.source)
    }
    functions = {name for name in distsage.__all__ if name.islower()}
    assert functions <= named
