"""data=mixture: the configuration of every member alone, and the datamodule that draws from all of them.

A member is named as `data=` would name it: a choice of conf/data, a set of Open X-Embodiment that rsd/data/openx.py
knows, or else any RLDS data set below data.root. What surprises first: what is typed as data.KEY=VALUE holds for all
members, what stands in data.members.NAME for that one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rsd.data import DataError
from rsd.data.mixture import check_weights
from rsd.data.mixture_module import MixtureDataModule
from rsd.data.openx import CAMERAS, TRANSFORMS, libero, published_mixture, published_mixtures, why_missing
from rsd.errors import SettingError
from rsd.settings import Text, require

OF_THE_MIXTURE = ("data.members", "data.mixture", "data.balance_weights", "data.name", "data.unnorm_key")
MIXTURE, ANY, WEIGHT = "mixture", "rlds", "weight"
GRIPPER = ("data.gripper.open=1", "data.gripper.closed=0", "data.gripper.between=true")  # what a transform gives


def is_mixture(cfg: DictConfig) -> bool:
    """Whether a configuration's data are several data sets."""
    return "members" in cfg.data


def require_one(cfg: DictConfig) -> None:
    """Raise SettingError where several data sets are given to a command that reads one."""
    if not is_mixture(cfg):
        return
    names = ", ".join(check_weights(weights_of(cfg)))
    raise SettingError(
        f"data=mixture is several data sets ({names}), and this command reads one: data=NAME, or data=rlds "
        "data.root=… data.name=NAME"
    )


def weights_of(cfg: DictConfig) -> dict[str, Any]:
    """Members and their weights, of data.mixture or data.members.

    Raises:
        SettingError: both are given or neither, or a member has no weight.
    """
    name, members = cfg.data.mixture, cfg.data.members
    if (name is None) == (members is None):
        given = "both given" if members is not None else "both null"
        raise SettingError(
            f"data.mixture and data.members are {given}; set one of them: data.members={{a: 1.0, b: 0.5}}, or the name "
            "of a published mixture: data.mixture=bridge_rt_1"
        )
    if name is not None:
        return dict(published_mixture(name))
    weights = {}
    for member, said in members.items():
        if isinstance(said, DictConfig) and WEIGHT not in said:
            raise SettingError(f"data.members.{member} has no weight; set data.members.{member}.weight=1.0")
        weights[str(member)] = said[WEIGHT] if isinstance(said, DictConfig) else said
    return weights


def members_alone(cfg: DictConfig, typed: Sequence[str] | None = None) -> dict[str, DictConfig]:
    """The whole configuration as it would be with one member as its data, for each member whose weight is not 0.

    Args:
        cfg: With data=mixture; none is returned for others.
        typed: What was typed; Hydra's record of it unless given.

    Raises:
        SettingError: nothing can be drawn with the weights, a member has a key that data sets do not have, or there is
            no such published mixture.
        DataError: a member is no data set that is there or known; all of them are named.
    """
    if not is_mixture(cfg):
        return {}
    overrides = HydraConfig.get().overrides.task if typed is None else typed
    common = [one for one in overrides if one.lstrip("+").startswith("data.") and not one.startswith(OF_THE_MIXTURE)]
    alone, problems = {}, []
    for name in check_weights(weights_of(cfg)):
        try:
            alone[name] = _alone(cfg, name, common)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(
            f"{len(problems)} of the mixture's {len(problems) + len(alone)} members cannot be had: "
            f"{'; '.join(problems)}. Put the files there (data.root); describe a set without a transform in a "
            "conf/data/NAME.yaml of your own, or beside its weight; or name the others alone, with their weights: "
            "data.members={NAME: WEIGHT, …}"
        )
    return alone


def reads_of(cfg: DictConfig, members: dict[str, DictConfig]) -> dict[str, Any]:
    """What a phase reads, see `rsd.inputs.contents`; of a mixture every member's data set."""
    reads = dict(cfg.phase.reads)
    if members:
        del reads["data"]
    return reads | {f"data {name}": one.phase.reads.data for name, one in members.items()}


def make_datamodule(cfg: DictConfig, members: dict[str, DictConfig]) -> Any:
    """The phase's datamodule; of a mixture one over those of its members."""
    if not members:
        return instantiate(cfg.phase.datamodule)
    return MixtureDataModule(
        members={name: instantiate(one.phase.datamodule) for name, one in members.items()},
        weights=weights_of(cfg),
        balance_weights=cfg.data.balance_weights,
    )


def _alone(cfg: DictConfig, name: str, common: Sequence[str]) -> DictConfig:
    """The configuration with one member as its data."""
    said = (cfg.data.members or {}).get(name)
    own = {key: value for key, value in said.items() if key != WEIGHT} if isinstance(said, DictConfig) else {}
    one = copy.deepcopy(cfg)
    with open_dict(one):
        one.data = _data_of(name, common, described=bool(own))
    try:
        one.data = OmegaConf.merge(one.data, own)
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0]
        raise SettingError(
            f"data.members.{name} does not fit: {line}; beside weight it takes {', '.join(map(str, one.data))}"
        ) from error
    for key in ("root", "name", "version"):
        require(f"data.members.{name}.{key}", one.data[key], Text)
    directory = Path(one.data.root) / one.data.name / one.data.version
    if not directory.is_dir():
        raise DataError(f"{name}: {directory} does not exist")
    return one


def _data_of(name: str, common: Sequence[str], *, described: bool) -> DictConfig:
    """The group `data` with the choice that a member's name stands for.

    Args:
        described: Whether its configuration says where things are.
    """
    loader = GlobalHydra.instance().config_loader()
    if name in loader.get_group_options("data") and name != MIXTURE:
        return _composed(loader, name, common)
    published = {member for mixture in published_mixtures().values() for member in mixture}
    is_libero = TRANSFORMS.get(name) is libero  # which a layout says as well, and with its robot's gripper
    if not is_libero and (name in TRANSFORMS or (name in published and not described)):
        if (why := why_missing(name)) is not None:
            raise DataError(f"{name}: no standardisation transform: {why}")
        views = ", ".join(f"{view}: {feature}" for view, feature in CAMERAS.get(name, {}).items())
        known = [f"data.transform={name}", f"data.views={{{views}}}", *GRIPPER]
        return _composed(loader, ANY, [f"data.name={name}", *known, *common])
    return _composed(loader, ANY, [f"data.name={name}", *common])


def _composed(loader: ConfigLoader, choice: str, overrides: Sequence[str]) -> DictConfig:
    data: DictConfig = loader.load_configuration(f"data/{choice}", list(overrides), RunMode.RUN).data
    return data
