"""Hydra takes launchers from here alone, and only classes that are defined here; rsd's do the work."""

from rsd.commands import cluster


class Slurm(cluster.Slurm):
    """conf/hydra/launcher/submitit_slurm.yaml."""


class Local(cluster.Local):
    """conf/hydra/launcher/submitit_local.yaml."""
