"""Documents: links lead somewhere, the README stays short, and tables that repeat the code equal it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from rsd.comparison.published import load_published
from tests.test_architecture import ALLOWED
from tests.test_errors import exception_classes
from tests.test_readme import python_blocks

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "released" / "README.md"]
INCLUDED = re.compile(r'^--8<-- "([^"]+)"$', re.M)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
IMPORTS = re.compile(r"(?<=<!-- imports: the same as ALLOWED in tests/test_architecture.py -->\n).*(?=<!-- end)", re.S)


PATH = re.compile(r"(?:README\.md|(?:conf|docs|released|rsd|scripts|tests)(?:/[\w-]+)*(?:/[\w-]+\.\w+|/))")
MADE_UP = {"conf/data/NAME.yaml", "conf/decoding/NAME.yaml", "conf/model/NAME.yaml"}  # for the reader to choose


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def imports_table() -> str:
    """Who may import whom, as docs/architecture.md has it."""
    lines = ["| room | may import |", "|---|---|"]
    for room, names in ALLOWED.items():
        lines.append(f"| `{room}` | {' '.join(f'`{name}`' for name in sorted(names)) or '–'} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}, which does not exist"
        assert not anchor or anchor in headings(target), f"{page.name} links to {link}; headings: {headings(target)}"


def pages_of(nav: list) -> set[str]:
    """Pages of a navigation of mkdocs, at any depth: a page, or a title with a page or with more of them."""
    entries = [entry if isinstance(entry, str) else next(iter(entry.values())) for entry in nav]
    return {page for entry in entries for page in (pages_of(entry) if isinstance(entry, list) else {entry})}


def site() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_every_page_can_be_reached_from_the_readme_or_the_site():
    reached = {(README.parent / link.partition("#")[0]).resolve() for link in LINK.findall(README.read_text())}
    reached |= {ROOT / "docs" / page for page in pages_of(site()["nav"])}
    assert set(PAGES) - reached - {README} == set()
    assert [str(page) for page in sorted(reached) if not page.exists()] == []


def test_the_site_fetches_nothing_and_is_strict():
    assert site()["theme"]["font"] is False and site()["strict"] is True
    assert "extra_javascript" not in site()
    assert all((ROOT / "docs" / style).is_file() for style in site()["extra_css"])
    assert "url(" not in "".join((ROOT / "docs" / style).read_text(encoding="utf-8") for style in site()["extra_css"])
    kinds = [level for part in site()["validation"].values() for level in part.values()]
    assert set(kinds) == {"warn"}  # which strict makes errors


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []


def test_the_table_of_imports_is_the_one_that_is_checked():
    (table,) = IMPORTS.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert table == imports_table(), f"put this into docs/architecture.md:\n\n{imports_table()}"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_other_pages_imports_what_there_is(page):
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module, fromlist=["_"])
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert missing == [], f"{page.name}: {node.module} has no {missing}"


@pytest.mark.parametrize("group", ["decoding", "phase"])
def test_every_choice_has_a_page_with_its_yaml_and_a_command(group):
    choices = {path.stem for path in (ROOT / "conf" / group).glob("[!_]*.yaml")}
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / f"{group}s").glob("*.md")}
    assert pages.keys() == choices
    for name, text in pages.items():
        assert f'--8<-- "conf/{group}/{name}.yaml"' in text and f"{group}={name}" in text, name


def test_every_tokenizer_is_in_the_title_of_a_page():
    titles = [page.read_text(encoding="utf-8").partition("\n")[0] for page in (ROOT / "docs/tokenizers").glob("*.md")]
    choices = {path.stem for path in (ROOT / "conf" / "quantizer").glob("[!_]*.yaml")}
    assert {name for title in titles for name in re.findall(r"\w+", title)} == choices


def test_every_class_of_error_is_on_the_page_of_errors():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    classes = {name for name in exception_classes() if not name.startswith("_")} - {"RSDError"}
    assert {name for name in classes if f"`{name}`" not in page} == set()


def test_published_rates_are_those_that_runs_are_held_to():
    page = (ROOT / "docs" / "reproductions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\d.]+) % \| (\d+) \|", page, re.M)
    held = [
        (model, suite, f"{100 * rate:.1f}", str(table["num_episodes"]))
        for table in load_published()["tables"]
        for model, rates in table["success_rates"].items()
        for suite, rate in rates.items()
    ]
    assert rows == held


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_tests_exist(page):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{page.name}: {path} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_the_site_puts_in_exist(page):
    included = INCLUDED.findall(page.read_text(encoding="utf-8"))
    assert [name for name in included if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_backticks_exist(page):
    quoted = [word for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")) for word in code.split()]
    paths = {word for word in quoted if PATH.fullmatch(word)} - MADE_UP
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
