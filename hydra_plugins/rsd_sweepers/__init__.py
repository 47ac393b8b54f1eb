"""Hydra takes sweepers from packages of this name alone, and only classes that are defined there; rsd's do the work."""

from rsd.commands import grid, search, study


class Grid(grid.Grid):
    """conf/hydra/sweeper/grid.yaml."""


class Search(search.Search):
    """conf/hydra/sweeper/optuna.yaml."""


class Study(study.Study):
    """conf/hydra/sweeper/study.yaml."""
