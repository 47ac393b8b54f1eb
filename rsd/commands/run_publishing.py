"""What a run of train.py publishes: the names, known before it starts, and at its end a link or a multirun's offer."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rsd.commands.publishing import Offer, check_publishable, names_of, publish, write_offer
from rsd.errors import SettingError
from rsd.runs import is_job_of_sweep


def published_names(cfg: DictConfig) -> dict[str, Path]:
    """Parts of what a run of train.py will export, and the names that they get; see `names_of`.

    Raises:
        PublishError: one cannot be published.
        SettingError: a job of a multirun trains at several points; it can offer one checkpoint.
    """
    names = names_of(cfg.phase)
    if len(names) > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise SettingError(
            f"draft.layer is {list(names)} in a multirun, whose jobs make one draft each; leave out -m, or sweep the "
            "layers one by one: draft.layer=2,3"
        )
    for name in names.values():
        check_publishable(name)
    return names


def publish_run(checkpoint: Path, name: Path) -> Path:
    """Publish a run's checkpoint; a job of a multirun, resumed or not, only offers it, and the sweep's end decides.

    Returns:
        Where the checkpoint can be found from now on: under its name, or in the run folder.

    Raises:
        PublishError: see `publish`.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN or is_job_of_sweep(checkpoint.parent):
        write_offer(checkpoint.parent, Offer(checkpoint, name))
        return checkpoint
    publish(checkpoint, name)
    return name
