"""Lightning's trainer as configured, on devices that this machine has."""

from __future__ import annotations

import os
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from rsd.errors import SettingError
from rsd.settings import require_device


def require_devices(cfg: DictConfig) -> None:
    """See that this machine has what a training asks for.

    Raises:
        SettingError: it has not.
    """
    import torch

    require_device(cfg.device)
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise SettingError(
            f"trainer.accelerator is {cfg.trainer.accelerator!r}, but torch sees no GPU here; set trainer=cpu, or "
            "install its CUDA build and a driver"
        )
    devices, cores = cfg.trainer.devices, os.cpu_count() or 1
    num_processes = devices if isinstance(devices, int) else len(devices) if isinstance(devices, ListConfig) else 1
    if cfg.trainer.accelerator == "cpu" and num_processes > cores:
        raise SettingError(f"trainer.devices is {devices}, but this machine has {cores} cores; set as many at most")
    if num_processes > 1 and cfg.trainer.strategy == "auto":
        raise SettingError(
            f"trainer.devices is {devices} with trainer.strategy auto, which is for one; trainer=ddp is for several"
        )


def make_trainer(cfg: DictConfig, **parts: Any) -> Any:
    """Lightning's trainer as configured.

    Raises:
        SettingError: Lightning does not take these settings together, or this machine lacks what they need.
    """
    try:
        return instantiate(cfg.trainer, **parts)
    except InstantiationException as error:
        line = " ".join(str(error.__cause__ or error).split())
        raise SettingError(
            f"trainer cannot be made: {line}; set trainer.accelerator, devices, strategy and precision to what fits "
            "together, or leave them as trainer=cpu, gpu or ddp has them"
        ) from error
