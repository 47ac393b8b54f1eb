"""Hydra takes sweepers from packages of this name alone; rsd's lie with the commands, and are imported when asked for."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Grid":
        from rsd.commands.grid import Grid

        return Grid
    if name == "Search":
        from rsd.commands.search import Search

        return Search
    raise AttributeError(name)
