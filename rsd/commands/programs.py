"""Every program of a checkout with its --help, for the site.

A program is a file that says what to do when it is `__main__`. Hydra's help is that of `usage_page`. Any other program
is imported and stopped where it begins to read its options, so that nothing of it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

from rsd.commands.usage import usage_page
from rsd.options import Options

MAIN = '\nif __name__ == "__main__":'
COLUMNS = "110"


class _Asked(BaseException):
    """A program has come to where it reads its options."""

    def __init__(self, parser: Options):
        self.parser = parser


def programs(root: Path) -> dict[str, Path]:
    """How each program is called, and its file; of the folder, of scripts/ and of the package."""
    found = {}
    for path in [
        *sorted(root.glob("*.py")),
        *sorted((root / "scripts").rglob("*.py")),
        *sorted(root.glob("rsd/**/*.py")),
    ]:
        if path.name != "__main__.py" and MAIN not in path.read_text(encoding="utf-8"):
            continue
        parts = path.relative_to(root).with_suffix("").parts
        own = path.parent if path.name == "__main__.py" else path
        is_script = own.parent in (root, root / "scripts")
        found[f"python {own.relative_to(root)}" if is_script else f"python -m {'.'.join(parts)}"] = path
    return found


def page(root: Path) -> str:
    """All programs in Markdown, those first that a configuration belongs to."""
    of_hydra = {_called(conf): conf for conf in sorted((root / "conf").glob("*.yaml"))}
    others = {call: path for call, path in programs(root).items() if call not in of_hydra}
    parts = [_section(call, usage_page(conf)) for call, conf in of_hydra.items()]
    return "\n\n".join([*parts, *(_section(call, text) for call, text in _helps(root, others))])


def _called(conf: Path) -> str:
    """The command of a root configuration: the first one among its examples."""
    lines = conf.read_text(encoding="utf-8").splitlines()
    return " ".join(next(line for line in lines if line.startswith("# python ")).split()[1:3])


def _section(call: str, text: str) -> str:
    return f"## {call.removeprefix('python ').removeprefix('-m ')}\n\n```text\n{text.rstrip()}\n```"


def _helps(root: Path, calls: dict[str, Path]) -> Iterator[tuple[str, str]]:
    with patch.object(Options, "parse_known_args", _ask), patch.dict(os.environ, {"COLUMNS": COLUMNS}):
        with patch.object(sys, "path", [str(root), str(root / "scripts"), *sys.path]):
            for call, path in calls.items():
                yield call, _help(call, ".".join(path.relative_to(root).with_suffix("").parts))


def _help(call: str, module: str) -> str:
    """What a program says of its options; its docstring where it has none."""
    program: Any = importlib.import_module(module)
    if "Options" not in vars(program):
        return f"usage: {call}\n\n{(program.__doc__ or '').strip()}"
    try:
        program.main()
    except _Asked as asked:
        asked.parser.prog = call
        return asked.parser.format_help()
    raise AssertionError(f"{call} reads no options")


def _ask(parser: Options, *_: object, **__: object) -> NoReturn:
    raise _Asked(parser)
