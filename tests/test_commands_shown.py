"""Every command that a page shows is composed, or its options are read, by what would read them; nothing is run.

Commands stand in code blocks, indented or fenced, and between backticks. Words in capitals are for the reader to
choose, `…` is what was left out, and brackets are around what may be. In a sweep the first and the last of the values
are composed.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from hydra.errors import HydraException

from rsd.commands.usage import check_choices
from rsd.errors import SettingError
from rsd.options import new_file, new_folder, old_file, old_folder
from tests.commands.test_usage import SCRIPTS
from tests.test_add_your_own import own as own  # the fixture: files of docs/add_your_own.md
from tests.test_docs import PAGES

ROOT = Path(__file__).parents[1]
PAGES = [*PAGES, ROOT / "CONTRIBUTING.md"]
INSULATOR = re.compile(r"```yaml conf/data/(\w+\.yaml)\n(.*?)```", re.S)  # of the tutorial
FENCED = re.compile(r"^```(\w*).*?\n(.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`((?:\w+=\S+ )*python [^`]+)`")
INDENTED = re.compile(r"^ {4,}\S.*$")
COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:python|torchrun|make|pip|python3?|export) ")
PLACEHOLDER = re.compile(r"=[A-Z]+$")  # env=SUITE
WRITTEN = {"my_recordings.py", "write_insulator.py", "data=insulator", "data=NAME"}  # by the reader
OLD = "of that commit"  # in a comment beside a command that today's scripts do not have


class Reached(BaseException):
    """The options have been read."""


def blocks(text: str) -> Iterator[str]:
    """Code of a page, each block as one text with continued lines joined."""
    for language, body in FENCED.findall(text):
        if language in ("", "bash"):
            yield body
    lines = FENCED.sub("\n", text).splitlines()
    block: list[str] = []
    for line in [*lines, ""]:
        if INDENTED.match(line):
            block.append(line.strip())
        elif block:
            yield "\n".join(block)
            block = []
    joined = " ".join(" ".join(lines).split())
    yield from INLINE.findall(joined)


def commands(page: Path) -> list[list[str]]:
    """Words of each python command of a page."""
    found = []
    for block in blocks(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if not COMMAND.match(line) or OLD in line:
                continue
            words = shlex.split(line.split(" || ")[0].split(" && ")[-1], comments=True)
            words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]  # of the environment
            if words[:1] == ["python"] and words[1:2] != ["-c"]:
                found.append([word.strip("[]") if word[0] == "[" else word for word in words[1:]])
    return found


def told(words: list[str]) -> list[str]:
    """Without dots, and without a bracket that a word before it has opened."""
    words = [word.removesuffix("]") if word.count("[") < word.count("]") else word for word in words]
    return [word for word in words if word and not word.endswith(("…", "...")) and word not in ("|", ">")]


def settings(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Overrides with the first value of each sweep, those with the last, and options of Hydra's own."""
    options = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if "=" in word and not word.startswith(("-", "hydra", "resume="))]
    first, last = [], []
    for text, parsed in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        value = parsed.value()
        ends = [text.partition("=")[2]] * 2
        if isinstance(value, ChoiceSweep):
            ends = [str(value.list[0]), str(value.list[-1])]
        elif isinstance(value, RangeSweep):
            ends = [str(value.start)] * 2
        elif isinstance(value, IntervalSweep):
            ends = [str(value.start), str(value.end)]
        first.append(f"{parsed.get_key_element()}={ends[0]}")
        last.append(f"{parsed.get_key_element()}={ends[1]}")
    if "-m" not in options:
        return overrides, overrides, options
    return first, last, options


def read_options(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's own parser reads its words; paths are not looked for."""
    known = argparse.ArgumentParser.parse_known_args
    begun: list[bool] = []

    def read(self: argparse.ArgumentParser, *given: object) -> object:
        if begun:  # the parser of a subcommand
            return known(self, *given)  # type: ignore[call-overload]
        begun.append(True)
        for action in [*self._actions, *(one for part in parts(self) for one in part._actions)]:
            if action.type in (old_folder, old_file, new_folder, new_file):
                action.type = str
        _, rest = known(self, words)
        if unknown := [word for word in rest if word.startswith("--")]:
            self.error(f"unknown: {unknown}")
        raise Reached

    for name in ("parse_args", "parse_known_args"):  # the second leaves overrides to Hydra
        monkeypatch.setattr(argparse.ArgumentParser, name, read)
    monkeypatch.setattr("sys.argv", [module, *words])
    with pytest.raises(Reached):
        importlib.import_module(module).main()


def parts(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Parsers of subcommands."""
    inside = [one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return [part for choices in inside for part in choices.values()]


@pytest.fixture(scope="module")
def groups(own: Path) -> Path:
    """A folder with the choices that pages have their readers write."""
    for name, text in INSULATOR.findall((ROOT / "docs" / "tutorial_insulator.md").read_text(encoding="utf-8")):
        (own / "my_conf" / "data" / name).write_text(text)
    return own / "my_conf"


def typed_like(script: str) -> list[list[str]]:
    """Words of all commands with this script, each once."""
    every = {tuple(told(words)): None for page in PAGES for words in commands(page)}
    return [list(words[1:]) for words in every if words[0] == script]


@pytest.mark.parametrize("script", SCRIPTS)
def test_choices_exist_and_sweeps_can_be_read(script):
    problems = []
    for words in typed_like(script):
        overrides, _, options = settings(words)
        if "--config-dir" in options or any(word.startswith("resume=") for word in words):
            continue  # choices of the reader's own, and what is stored in the run
        overrides = ["data=rlds" if word in WRITTEN else word for word in overrides]
        overrides = [word for word in overrides if not PLACEHOLDER.search(word)]
        if script == "train.py" and not any(word.startswith(("phase=", "experiment=")) for word in overrides):
            continue  # a phase that is left to the reader, phase=…
        try:
            check_choices(ROOT / "conf" / f"{SCRIPTS[script]}.yaml", overrides)
        except SettingError as error:
            problems.append(f"{script} {' '.join(words)}: {error}")
    assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_compose(script, groups):
    problems = []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for words in typed_like(script):
            if any(word.startswith("resume=") for word in words):
                continue  # the rest is stored in the run
            for typed in {tuple(one) for one in settings(words)[:2]}:
                overrides = ["data=insulator" if word == "data=NAME" else word for word in typed]
                overrides = [word for word in overrides if not PLACEHOLDER.search(word) and word != "protocol=rest"]
                chosen = any(word.startswith(("phase=", "experiment=")) for word in overrides)
                if script == "train.py" and (not chosen or any("=pipeline_" in word for word in overrides)):
                    continue  # a phase that is left to the reader; steps with a configuration each
                try:
                    compose(SCRIPTS[script], [f"hydra.searchpath=[file://{groups}]", *overrides])
                except HydraException as error:
                    problems.append(f"{' '.join(overrides)}: {' '.join(str(error).split())[:300]}")
    assert problems == []


def test_options_of_scripts_are_read(monkeypatch, capsys):
    every = {tuple(told(words)): None for page in PAGES for words in commands(page)}
    problems = []
    for script, *words in every:
        if script.startswith("scripts/") and script not in SCRIPTS:
            try:
                inside = "" if script.endswith(".py") else ".__main__"  # a folder that is a program
                read_options(script.removesuffix(".py").replace("/", ".") + inside, words, monkeypatch)
            except SystemExit:
                said = capsys.readouterr().err
                named = "arguments are required" in said  # a command that is named, not given
                if not named and "where there is no" not in said:  # SRC
                    problems.append(f"{script} {' '.join(words)}: {said}")
            monkeypatch.undo()
        elif script == "-m":
            path = ROOT / words[0].replace(".", "/")
            ours = words[0].startswith(("rsd.", "scripts."))
            if ours and not path.is_dir() and not path.with_suffix(".py").is_file():
                problems.append(f"no module {words[0]}")
        elif script not in WRITTEN and not (ROOT / script).exists():
            problems.append(f"no script {script}")
    assert problems == []


def test_there_are_many():
    assert sum(len(commands(page)) for page in PAGES) > 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_targets_of_make_and_extras_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    typed = set(re.findall(r"(?:^ {4}|`)make ([a-z-]+)\b", text, re.M))
    assert typed <= targets
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    extras = set(re.findall(r"^(\w+) =$", setup.partition("[options.extras_require]")[2], re.M))
    named = {one for found in re.findall(r"(?:\.|rsd)\[([\w,]+)\]'", text) for one in found.split(",")}
    assert named <= extras
