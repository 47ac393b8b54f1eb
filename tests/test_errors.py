"""One base class for everything that speaks to the user."""

import ast
import builtins
from pathlib import Path

from rsd.errors import RSDError, SettingError

ROOM = Path(__file__).parents[1] / "rsd"


def exception_classes() -> dict[str, set[str]]:
    """Every exception class defined in rsd/, with the names of all classes that it derives from."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for path in sorted(ROOM.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }

    def ancestors(name: str) -> set[str]:
        own = bases.get(name, set())
        return own.union(*(ancestors(base) for base in own - {name}))

    def is_exception(name: str) -> bool:
        found = getattr(builtins, name, None)
        return isinstance(found, type) and issubclass(found, BaseException)

    every = {name: ancestors(name) for name in bases}
    return {name: above for name, above in every.items() if any(map(is_exception, above))}


def test_every_error_class_derives_from_the_one_base_class():
    classes = exception_classes()
    assert len(classes) > 25 and {"CheckpointError", "DataError", "MissingLibraryError"} <= classes.keys()
    strange = [name for name, above in classes.items() if name != "RSDError" and "RSDError" not in above]
    assert strange == []


def test_a_setting_error_is_a_value_error_too():
    assert issubclass(SettingError, RSDError) and issubclass(SettingError, ValueError)
