"""Every key of conf/ for the site: its default in each choice, its type, its unit and what it means.

The meaning is the comment of the YAML file: on the key's line, on the lines below it that are further in, or on those
right above it. A key of several choices of a group needs one comment among them. What surprises first: a key whose
value is another key alone (`${draft.num_stages}`) means what that one means, and needs no comment of its own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

from rsd.commands.settings import KEYS, LOADER, PACKAGE, arguments
from rsd.commands.usage import first_comment
from rsd.errors import SettingError
from rsd.settings import described

BASE = "rsd.models.openvla.load_base"  # what a loader is given beside its own arguments is for that
EXPERIMENTS = "experiment"  # settings of other groups' keys
OF_HYDRA = "hydra"  # a root configuration's node that says where results go
ONE_KEY = re.compile(r"\$\{(?:oc\.select:)?(\.*)([\w.]+)(?:,[^{}]*)?\}")
DIRECTIVE = re.compile(r"# @package (\S+)")
# Where a file's keys stand, if not below the name of its folder
PLACES = {
    "env/_offers.yaml": "env.offers",
    "demonstrator/_policy.yaml": "demonstrator.make",
    "phase/draft_of": "phase",
    "robot": "model.backbone.robot",
}
UNIT = re.compile(
    r"(?:^|, )(control steps|optimizer steps|steps of an action chunk|pixels|channels|bytes|characters|frames|episodes|"
    r"stages|levels|processes|videos|tasks|layers|samples|batches|jobs|trials|observations|blocks|seconds|milliseconds|"
    r"MB|Hz|nats a token)\b"
)
TYPES = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "seq": "a list"}
UNIT_OF_NAME = {"_ms": "ms", "_s": "s", "_mb": "MB"}


@dataclass(frozen=True)
class Entry:
    """A key in a file.

    Attributes:
        file: Below conf/.
        key: In full, as it is typed on a command line.
        value: As the file has it; None of a node with keys inside.
        comment: What the file says of it; empty where it says nothing.
        target: What is made of the node that it stands in, and takes it as an argument; None where nothing is.
        tag: YAML's word for its type.
    """

    file: str
    key: str
    value: str | None
    comment: str
    target: str | None
    tag: str

    @property
    def section(self) -> str:
        """The command's file, or the group."""
        return str(Path(self.file).parent) if "/" in self.file else self.file

    @property
    def choice(self) -> str:
        return Path(self.file).stem.removeprefix("_")

    @property
    def kind(self) -> str:
        """What may stand there, in words; imports what takes it."""
        held = _arguments(self.target)
        annotation = held.get(self.key.rpartition(".")[2], KEYS.get(self.key))
        return described(annotation) if annotation is not None else TYPES.get(self.tag, "")


@dataclass(frozen=True)
class Setting:
    """A key of a section, with its entries in the section's files and what it means."""

    key: str
    meaning: str
    entries: list[Entry]

    @property
    def kind(self) -> str:
        return next((entry.kind for entry in self.entries if entry.kind), "")

    @property
    def unit(self) -> str:
        """Of a number, as its name or its comment says; empty where it has none."""
        named = next((unit for end, unit in UNIT_OF_NAME.items() if self.key.endswith(end)), "")
        if named or not re.search("number", self.kind):
            return named
        found = UNIT.search(self.meaning)
        return found[1] if found else ""


def entries(conf: Path) -> list[Entry]:
    """Keys of all files below a folder of configurations, but for experiments and Hydra's own."""
    found: list[Entry] = []
    for path in sorted(conf.rglob("*.yaml"), key=lambda path: (len(path.relative_to(conf).parts) > 1, path)):
        if path.relative_to(conf).parts[0] != EXPERIMENTS:
            found += _entries_of(path, conf)
    return found


def settings(conf: Path) -> list[Setting]:
    """All keys with their meaning, in the order of the files; in several sections where they stand in several.

    Raises:
        SettingError: a key has no comment in any file; all of them are named.
    """
    together: dict[tuple[str, str], list[Entry]] = {}
    elsewhere: dict[str, list[Entry]] = {}
    for entry in entries(conf):
        if entry.value is not None or entry.comment:
            together.setdefault((entry.section, entry.key), []).append(entry)
        if entry.comment and "/" in entry.file:  # what a command says of a value is its own
            elsewhere.setdefault(_alias(entry.key), []).append(entry)
    made = [_setting(key, same, elsewhere.get(_alias(key), [])) for (_, key), same in together.items()]
    if missing := sorted(f"{one.key} ({one.entries[0].file})" for one in made if not one.meaning):
        raise SettingError(
            f"{len(missing)} keys of conf/ have no comment that says what they mean: {', '.join(missing)}; write it "
            "behind the value, with its unit"
        )
    return made


def page(conf: Path) -> str:
    """The reference in Markdown: a section for each command and each group."""
    sections: dict[str, list[Setting]] = {}
    for one in settings(conf):
        sections.setdefault(one.entries[0].section, []).append(one)
    return "\n\n".join(_shown(name, inside, conf) for name, inside in sections.items())


def _shown(section: str, inside: list[Setting], conf: Path) -> str:
    folder = conf / section
    if folder.is_dir():
        choices = {path.stem: first_comment(path) for path in sorted(folder.glob("[!_]*.yaml"))}
        lines = [f"## {section}=", "", *(f"* `{section}={name}`: {_plain(text)}" for name, text in choices.items())]
    else:
        lines = [f"## conf/{section}", "", _plain(first_comment(folder))]
    lines += ["", "| key | default | type | unit | meaning |", "|---|---|---|---|---|"]
    for one in inside:
        row = (f"`{one.key}`", _defaults(one.entries), _plain(one.kind), one.unit, _plain(one.meaning))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return "\n".join(lines)


def _defaults(same: list[Entry]) -> str:
    """One value, or each with the choices that have it."""
    choices: dict[str, list[str]] = {}
    for entry in same:
        choices.setdefault(entry.value or "", []).append(entry.choice)
    if len(choices) == 1:
        return f"`{next(iter(choices))}`" if next(iter(choices)) else ""
    return "<br>".join(f"`{value or '…'}` {', '.join(names)}" for value, names in choices.items())


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return re.sub(r"(<(?!br>)|[*_$](?![^`]*`))", r"\\\1", text)


def _alias(key: str) -> str:
    """What says what a key means: sizes are the same ones wherever an architecture stands."""
    inside = key.partition("architecture.")[2].replace("siglip.", "dino.")
    return f"architecture.{inside}" if inside else key


def _setting(key: str, same: list[Entry], elsewhere: list[Entry]) -> Setting:
    """One of the entries in a section; it means what they say, or the key that it is, or what other sections say."""
    passed_on = next(filter(None, map(_same_as, same)), "")
    meaning = _said(same) or (f"as `{passed_on}`" if passed_on else _said(elsewhere))
    return Setting(key, meaning, same)


def _said(entries: list[Entry]) -> str:
    """The comment, or each with the choices that it stands in."""
    choices: dict[str, list[str]] = {}
    for entry in entries:
        if entry.comment:
            choices.setdefault(entry.comment, []).append(entry.choice)
    if len(choices) <= 1:
        return next(iter(choices), "")
    return "<br>".join(f"{one} ({', '.join(names)})" for one, names in choices.items())


def _same_as(entry: Entry) -> str:
    """The key whose value this one's is, in full; empty where it is not that of one key alone."""
    same = ONE_KEY.fullmatch(entry.value or "")
    if same is None:
        return ""
    parts = entry.key.split(".")
    above = parts[: len(parts) - len(same[1])] if same[1] else []
    return ".".join([*above, same[2]])


def _entries_of(path: Path, conf: Path) -> Iterator[Entry]:
    file = path.relative_to(conf).as_posix()
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, yaml.CSafeLoader)
    if isinstance(root, yaml.MappingNode):
        yield from _inside(root, _place(file, text), file, text.splitlines(), _merged(path, conf))


def _place(file: str, text: str) -> str:
    """Where the keys of a file stand; empty where they are a command's own."""
    if DIRECTIVE.search(text) or "/" not in file:
        return ""
    folder = str(Path(file).parent)
    return PLACES.get(file) or PLACES.get(folder) or folder.replace("/", ".")


def _inside(node: yaml.MappingNode, place: str, file: str, lines: list[str], merged: Any) -> Iterator[Entry]:
    merged = merged if isinstance(merged, dict) else {}
    target = merged.get("_target_")
    for name, value in node.value:
        key = f"{place}.{name.value}" if place else name.value
        if name.value.startswith("_") or key in ("defaults", OF_HYDRA) or name.value == "defaults":
            continue
        is_node = isinstance(value, yaml.MappingNode) and not value.flow_style and value.value
        shown = None if is_node else _source(value, lines)
        tag = value.tag.rpartition(":")[2]
        yield Entry(file, key, shown, _comment(name, value, bool(is_node), lines), target, tag)
        if is_node:
            yield from _inside(value, key, file, lines, merged.get(name.value))


@functools.cache
def _arguments(target: str | None) -> dict[str, Any]:
    """Annotations of what a node's values are given to."""
    if not isinstance(target, str) or not target.startswith(PACKAGE):
        return {}
    own = arguments(get_object(target))[0]
    return arguments(get_object(BASE))[0] | own if target == LOADER else own


def _merged(path: Path, conf: Path) -> Any:
    """A file over those of its own group that its defaults list names."""
    own = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader) or {}
    below: dict[str, Any] = {}
    for name in own.get("defaults", []):
        if isinstance(name, str) and "/" not in name and (base := path.with_name(f"{name}.yaml")).is_file():
            below = _over(below, _merged(base, conf))
    return _over(below, own)


def _over(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {name: _over(below.get(name), value) for name, value in above.items()}


def _source(value: yaml.Node, lines: list[str]) -> str:
    """A value as the file has it, on one line."""
    start, end = value.start_mark, value.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column]
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return f"{len(value.value)} entries"
    return " ".join(line.strip() for line in lines[start.line : end.line + 1])


def _comment(name: yaml.Node, value: yaml.Node, is_node: bool, lines: list[str]) -> str:
    """The comment of a key; that of the whole file is none of its keys'."""
    number, column = name.start_mark.line, name.start_mark.column
    is_node = is_node or (isinstance(value, yaml.SequenceNode) and not value.flow_style)
    last = number if is_node else value.end_mark.line
    behind = re.sub(r"^[\s\],}]*", "", lines[last][name.end_mark.column + 1 if is_node else value.end_mark.column :])
    said = [behind] if behind.startswith("#") else []
    below = last + 1
    while said and not is_node and below < len(lines) and re.match(rf"\s{{{column + 1},}}#", lines[below]):
        said.append(lines[below].strip())
        below += 1
    above = number
    while above > 0 and re.match(rf"\s{{{column}}}#", lines[above - 1]):
        above -= 1
    over = [line.strip() for line in lines[above:number]] if above > 0 else []
    words = [" ".join(line.removeprefix("#").strip() for line in part) for part in (said, over) if part]
    return ". ".join(words)
