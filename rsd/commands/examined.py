"""The policy that a diagnosis is about: a policy's folder, a composed one, or what a run has made or evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from rsd.checkpoint import JSON_FILE, CheckpointError
from rsd.commands.configured import configured_policy, text_source
from rsd.decoding import L1, DepthAR
from rsd.errors import SettingError
from rsd.policy import Checkpoints, VLAPolicy, assemble, load_folder
from rsd.policy.folder import POLICY_FILE, parts_in
from rsd.runs import CONFIG_FILE, read_overrides, read_yaml

MADE = "checkpoint"  # folder in a run where a training exports to
OTHER_DATA = "choose the demonstrations of its robot: data=libero_spatial, or data=rlds data.root=… data.name=…"


def run_of(policy: object) -> dict[str, Any] | None:
    """The configuration of the run whose folder `policy` is; None where it is no run's.

    Raises:
        RunError: the run's configuration is damaged.
    """
    if not isinstance(policy, str) or (Path(policy) / POLICY_FILE).is_file():
        return None
    config = Path(policy) / CONFIG_FILE
    return cast("dict[str, Any]", read_yaml(config)) if config.is_file() else None


def with_data_of_run(cfg: DictConfig, run: dict[str, Any] | None) -> DictConfig:
    """The configuration with the run's data set where none was chosen.

    Raises:
        SettingError: there is no data set.
    """
    if cfg.get("data") is not None:
        return cfg
    if run is None or not run.get("data"):
        raise SettingError(f"data is not chosen; {OTHER_DATA}")
    with open_dict(cfg):
        return cast("DictConfig", OmegaConf.merge(cfg, {"data": run["data"]}))


def examined_policy(cfg: DictConfig, overrides: Sequence[str], run: dict[str, Any] | None) -> VLAPolicy:
    """Load it.

    Args:
        cfg: See conf/diagnose.yaml.
        overrides: What was typed.
        run: What `run_of` says of cfg.policy.

    Raises:
        SettingError: neither policy= nor model= is given, a run that made no policy, or a policy of another kind.
        CheckpointError: a part is missing, or does not fit.
    """
    if run is not None:
        policy = _of_run(cfg, run)
    elif cfg.policy is None and cfg.get("model") is None:
        raise SettingError("neither policy= nor model= is given; say whose verdict it is to be: policy=released")
    elif cfg.policy is not None and not (Path(cfg.policy) / POLICY_FILE).is_file():
        raise CheckpointError(
            f"policy={cfg.policy} is neither a policy's folder ({POLICY_FILE}) nor a run's ({CONFIG_FILE}); give "
            "released, or the folder that a training or an evaluation has printed"
        )
    else:
        policy = configured_policy(cfg, overrides)
    if not isinstance(policy, VLAPolicy):
        raise SettingError(f"the policy is a {type(policy).__name__}, and only a VLAPolicy can be looked into")
    return policy


def speaking(cfg: DictConfig, policy: VLAPolicy) -> VLAPolicy | None:
    """The same policy by its tokens, where it acts without and its folder has a tokenizer and a target head; else None.

    Raises:
        CheckpointError: a part is damaged, or does not fit.
    """
    if policy.tokens is not None or cfg.policy is None or not (Path(cfg.policy) / POLICY_FILE).is_file():
        return None
    if not {"tokenizer", "head"} <= {*parts_in(Path(cfg.policy))}:
        return None
    source = text_source(cfg)
    return load_folder(cfg.policy, decoding=DepthAR(), target="head", device=cfg.device, text_source=source)


def _of_run(cfg: DictConfig, run: dict[str, Any]) -> Any:
    """What a training exported, acting with its own head; or what an evaluation evaluated."""
    folder, phase = Path(cfg.policy), run.get("phase")
    if phase is None:
        return configured_policy(OmegaConf.create(run), read_overrides(folder), device=cfg.device)
    made = folder / MADE
    if not (made / JSON_FILE).is_file():
        raise CheckpointError(f"{made} has no {JSON_FILE}: the training has not ended; go on with resume={folder}")
    if not phase.get("name", "").startswith(("oft", "openvla")):
        raise SettingError(
            f"{folder} is a run of phase={phase.get('name')}, which makes a part and no policy; give the folder of an "
            "evaluation with it, or of a base model's training (phase=oft)"
        )
    backbone = {name: one for name, one in run["model"]["backbone"].items() if name != "hub_id"}
    backbone |= {"checkpoint": str(made), "device": cfg.device}
    return assemble(
        base=instantiate(backbone),
        decoding=L1(),
        checkpoints=Checkpoints(),
        num_open_loop_steps=run["chunk"],
        device=cfg.device,
    )
