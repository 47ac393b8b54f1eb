"""What --help prints, read from a command's root configuration, so that nothing stands twice.

Where each part comes from:
* The comment at the head of the root configuration says what the command does; its lines that begin with "python" are
  the examples.
* Entries of its defaults list with a comment are the groups; a comment that ends in a colon asks for a line a choice.
  A choice is a file of the group, its line is the first line of that file, and names with an underscore are private.
* Values with a comment on their line are the values that the page lists.
* conf/paths/default.yaml says where things are, and hydra.run.dir where this command's results go.

Torch is not needed, and of Hydra only its grammar: the page comes at once, and also when the configuration lacks a
choice.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from omegaconf import OmegaConf

from rsd.errors import SettingError
from rsd.settings import shown

WIDTH = 110
INDENT = 28
REQUIRED = "???"
GROUP = re.compile(r"^  - (\w+): (\S+)(?:\s+# (.*))?$", re.M)
VALUE = re.compile(r"^(\w+): ([^\s#].*?) +# (.*)$", re.M)
RUN_DIR = re.compile(r"^  run:\n    dir: (.*)$", re.M)
NAME = re.compile(r"[\w-]+")
MULTIRUN = ("-m", "--multirun")
EXPERIMENT = "experiment"
PIPELINES = "train"  # the command that takes them
OF_HYDRA = "hydra/"  # groups of Hydra's own


@dataclass(frozen=True)
class Group:
    """A configuration group of a command: its default choice, what it is for, and each choice's first comment line."""

    name: str
    default: str
    purpose: str
    choices: dict[str, str]


def first_comment(path: Path) -> str:
    """The first line of a file, when it is a comment that is no directive; otherwise nothing."""
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @"))
    first = next(lines, "")
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def read_groups(config: Path) -> list[Group]:
    """The groups in a root configuration's defaults list that have a comment, in its order."""
    groups = []
    for name, default, purpose in GROUP.findall(config.read_text(encoding="utf-8")):
        if purpose:
            files = sorted((config.parent / name).glob("[!_]*.yaml"))
            if name == EXPERIMENT and config.stem != PIPELINES:
                files = [file for file in files if not is_pipeline(config, file.stem)]
            groups.append(Group(name, default, purpose, {file.stem: first_comment(file) for file in files}))
    return groups


def is_pipeline(config: Path, name: str) -> bool:
    """Whether an experiment is a pipeline."""
    file = config.parent / "experiment" / f"{name}.yaml"
    return file.is_file() and bool(re.search(r"^steps:", file.read_text(encoding="utf-8"), re.M))


def experiment_of(arguments: Sequence[str]) -> str | None:
    """The experiment that is typed, if it is one."""
    typed = [one.partition("=")[2].strip("'\"") for one in arguments if one.lstrip("+").startswith("experiment=")]
    return typed[-1] if typed else None


def check_choices(config: Path, arguments: Sequence[str]) -> None:
    """See that every group without a default is chosen, and what is chosen exists; Hydra would say it in ten lines.

    Only experiments can be several. Which choices exist is left to Hydra where command lines have options of Hydra's or
    folders of choices elsewhere, and so is a group that an experiment may choose.

    Raises:
        SettingError: it is not so; the message lists the group's choices.
        HydraException: an argument cannot be read.
    """
    given = dict(argument.lstrip("+").partition("=")[::2] for argument in arguments)
    typed = [argument for argument in arguments if "=" in argument and not argument.startswith(("-", "~"))]
    typed += [argument for argument in arguments if argument.startswith("~=")]
    for override in OverridesParser.create().parse_overrides(typed):
        _check_kind(config, override)
    if any(key.startswith("-") and key not in MULTIRUN for key in given) or "hydra.searchpath" in given:
        return
    for group in read_groups(config):
        remedy = _remedy(config, group.name)
        if (same := _same_as(group)) is not None and not given.keys() & {group.name, EXPERIMENT}:
            there = {file.stem for file in (config.parent / group.name).glob("[!_]*.yaml")}
            choice = given.get(same, "")
            if choice in {file.stem for file in (config.parent / same).glob("[!_]*.yaml")} - there:
                raise SettingError(f"{same}={choice} has no {group.name} of its own; {remedy}")
        if group.default == REQUIRED and not given.keys() & {group.name, EXPERIMENT}:
            raise SettingError(remedy)
        for choice in given.get(group.name, "").split(","):
            is_there = (config.parent / group.name / f"{choice}.yaml").is_file()
            if NAME.fullmatch(choice) and not is_there:
                raise SettingError(f"there is no {group.name} {choice!r}; {remedy}")


def _check_kind(config: Path, override: Override) -> None:
    """See that what is given for a group is one name, or each of a sweep's is."""
    group = override.key_or_group
    if not group:
        raise SettingError(f"{override.input_line} names no setting before its =; write KEY=VALUE without blanks")
    if not ((config.parent / group).is_dir() or f"{group}/".startswith(OF_HYDRA)):
        return
    value: Any = override.value()
    swept = value.list if isinstance(value, ChoiceSweep) else [value]
    for one in swept:
        names = one if isinstance(one, list) and group == EXPERIMENT else [one]
        if any(isinstance(name, list | bool | int | float) for name in names):
            raise SettingError(f"{group} is {shown(one)}, expected one choice; {_remedy(config, group)}")
        if one is None or one == "":
            without = [known.name for known in read_groups(config) if known.default == "null"]
            leave = f"leave out {override.input_line} for none, or " if group in without else ""
            raise SettingError(f"{group} is {shown(one)}, which is no choice; {leave}{_remedy(config, group)}")


def _remedy(config: Path, group: str) -> str:
    files = sorted((config.parent / group).glob("[!_]*.yaml"))
    choices = "".join(f" {group}={file.stem}" for file in files)
    return f"choose a {group}:{choices}; --help says what each of them is" if files else f"choose a {group}"


def usage_page(config: Path) -> str:
    """The page for a root configuration, for example conf/train.yaml."""
    text = config.read_text(encoding="utf-8")
    head = [line.removeprefix("#").strip() for line in text.split("\ndefaults:")[0].splitlines()]
    examples = [line for line in head if line.startswith("python ")]
    groups = read_groups(config)
    command = " ".join(examples[0].split()[:2])
    needed = "".join(f" {group.name}=…" for group in groups if group.default == REQUIRED)
    lines = [" ".join(line for line in head if line not in examples), "", "Usage"]
    lines += [f"  {command}{needed} [GROUP=CHOICE …] [KEY=VALUE …]"]
    for group in sorted(groups, key=lambda group: not group.purpose.endswith(":")):
        if group.purpose.endswith(":"):
            lines += ["", f"{group.name}=…  {group.purpose}", *_listed(group)]
    lines += ["", "Groups, with their choices; [the default]"]
    for group in groups:
        if not group.purpose.endswith(":"):
            lines += _folded(group.name, group.purpose) + _folded("", _in_a_row(group))
    lines += ["", "Values, with their defaults"]
    for key, value, purpose in VALUE.findall(text):
        lines += _folded(f"{key}={_plain(value)}", purpose)
    lines += ["", "Examples", *(f"  {example}" for example in examples)]
    lines += ["", "Where things are; paths.root=DIR moves all of it", *_places(config)]
    return "\n".join([*lines, "", *_more(command, needed)])


def _listed(group: Group) -> Iterator[str]:
    """A choice a line, the default in brackets, with the first comment line of its file."""
    width = 3 + max(map(len, group.choices))
    for name, line in group.choices.items():
        marked = f"[{name}]" if name == group.default else f" {name}"
        yield from textwrap.wrap(
            line,
            WIDTH,
            initial_indent=f" {marked:<{width}} ",
            subsequent_indent=" " * (width + 2),
            break_on_hyphens=False,
        )


def _in_a_row(group: Group) -> str:
    """All choices, the default in brackets; one that is the choice in another group is "as" that."""
    chosen = [f"[{name}]" if name == group.default else name for name in group.choices]
    same = _same_as(group)
    return " ".join(([f"[as {same}=]"] if same else []) + chosen)


def _same_as(group: Group) -> str | None:
    """The group whose choice is this one's default; None where the default is one of its own."""
    same = re.fullmatch(r"\$\{(\w+)\}", group.default)
    return None if same is None else same[1]


def _folded(name: str, text: str) -> list[str]:
    """A name and what it is, on as many lines as it takes."""
    lines = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)
    head = f"  {name}".ljust(INDENT)
    first = [head.rstrip()] if len(name) + 3 > INDENT else [head + lines.pop(0)]
    return first + [" " * INDENT + line for line in lines]


def _plain(value: str) -> str:
    """A default as a reader takes it: "${protocol.num_trials}" is whatever protocol.num_trials is."""
    return re.sub(r"\$\{([\w.]+)\}", r"\1", value)


def _places(config: Path) -> Iterator[str]:
    """The folders of conf/paths/default.yaml, and the command's own in them."""
    file = config.parent / "paths" / "default.yaml"
    paths = OmegaConf.load(file)
    for key, _, purpose in VALUE.findall(file.read_text(encoding="utf-8")):
        yield from _folded(str(OmegaConf.select(paths, key)), purpose)
    (run_dir,) = RUN_DIR.findall(config.read_text(encoding="utf-8"))
    run_dir = re.sub(r"\$\{unused:(.*)\}$", r"\1", run_dir)
    run_dir = re.sub(r"\$\{paths\.(\w+)\}", lambda found: str(OmegaConf.select(paths, found[1])), run_dir)
    run_dir = re.sub(r"\$\{now:[^}]*\}", "DATE_TIME", re.sub(r"\$\{(\w+)\.name\}", r"<\1>", run_dir))
    yield from _folded(run_dir, "what this command leaves; hydra.run.dir=DIR puts it elsewhere")


def _more(command: str, needed: str) -> Iterator[str]:
    yield f"Every value can be set and swept: {command}{needed} --cfg job prints them all, -m takes lists (KEY=A,B)."
    yield "--hydra-help tells of Hydra's own options; README.md and docs/ have the rest."
