"""Command lines that Hydra does not read: options held to rsd/settings.py, one line of error and no traceback.

    parser = Options(description=…)
    parser.add_argument("--episodes", type=held(Count), default=8)
    parser.add_argument("--out", type=new_file)

What surprises first: an option that names a file to be written is checked here, before the work begins, and not when
hours later its result finds no place. The check itself makes no file and no folder.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from rsd.errors import RSDError
from rsd.files import in_words, obstacle
from rsd.settings import described, fits, shown

Result = TypeVar("Result")


class Options(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.removeprefix("argument ").split()).replace(": is ", " is ", 1)
        self.exit(2, f"error: {line}; {self.prog} --help names the options\n")


def held(annotation: Any) -> Callable[[str], Any]:
    """What reads an option's text as a value of an annotation from rsd/settings.py."""

    def read(text: str) -> Any:
        value: Any = text
        try:
            value = (get_args(annotation) or (annotation,))[0](text)
        except ValueError:
            pass  # shown as it was typed
        if not fits(value, annotation):
            raise argparse.ArgumentTypeError(f"is {shown(value)}, expected {described(annotation)}")
        return value

    return read


def any_path(text: str) -> Path:
    """A path as it was typed; the empty one, which pathlib takes for the present folder, is none."""
    if not text:
        raise argparse.ArgumentTypeError("is '', expected a path")
    return Path(text)


def old_folder(text: str) -> Path:
    """A folder that is there."""
    if not any_path(text).is_dir():
        raise argparse.ArgumentTypeError(f"is {text!r}, where there is no folder")
    return Path(text)


def old_file(text: str) -> Path:
    """A file that is there."""
    if not any_path(text).is_file():
        raise argparse.ArgumentTypeError(f"is {text!r}, where there is no file")
    return Path(text)


def new_folder(text: str) -> Path:
    """A folder, there or to be made, in which files can be written."""
    _require_room(text, any_path(text))
    return Path(text)


def new_file(text: str) -> Path:
    """A file that can be written, in a folder that is there; a file that is there will be replaced."""
    file = any_path(text)
    _require_room(text, file.parent)
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"is {text!r}, where there is no folder; make {file.parent}")
    if file.exists() and not file.is_file():
        raise argparse.ArgumentTypeError(f"is {text!r}, which is no file; name a file to write")
    return file


def _require_room(text: str, directory: Path) -> None:
    if (reason := obstacle(directory)) is not None:
        raise argparse.ArgumentTypeError(f"is {text!r}, where nothing can be written: {reason}; choose another folder")


def reported(main: Callable[[], Result]) -> Callable[[], Result]:
    """Decorator for a script's main: expected errors end in one line and exit code 1; a defect keeps its traceback."""

    @functools.wraps(main)
    def wrapped() -> Result:
        try:
            return main()
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)
        except RSDError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            if error.errno is None:
                raise
            sys.exit(f"error: {in_words(error, 'the output')}")

    return wrapped
