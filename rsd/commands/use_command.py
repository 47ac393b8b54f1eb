"""The command that uses what a training has published, for the last line that train.py prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rsd.data.rlds_metadata import STATISTICS_FILE
from rsd.runs import config_options

SERVE = "scripts/serve_policy.py"
USED_AGAIN = ("data", "chunk", "paths", "model")  # what the command that uses an export takes over, of what was typed
OF_THE_START = ("data", "model", "model.name", "model.backbone.checkpoint", "model.backbone.hub_id")  # but not these


def use_command(cfg: DictConfig, found_at: Path) -> str:
    """The command line, for the shell, that runs what a phase with `used_by` has published.

    What was typed of data, chunk, paths and model goes on; the model's checkpoint is the new one. A policy of a suite's
    data set is evaluated there; where there is no simulator it is served. Of a mixture, statistics are chosen.
    """
    hydra_cfg = HydraConfig.get()
    keys = {one: one.lstrip("+").partition("=")[0] for one in cast("list[str]", list(hydra_cfg.overrides.task))}
    kept = [one for one, key in keys.items() if key.partition(".")[0] in USED_AGAIN and key not in OF_THE_START]
    suite = OmegaConf.select(cfg, "data.suite")
    suites = list(cfg.data.get("suites") or ([] if suite is None else [suite]))
    script = ["eval.py", *config_options(), f"env={suites[0]}"] if suites else [SERVE, *config_options()]
    place = [] if found_at == Path(cfg.phase.checkpoint) else [f"model.backbone.checkpoint={found_at}"]
    model = [f"model={cfg.phase.used_by}", f"model.name={cfg.model.name}", *place]
    if "members" in cfg.data and "data.unnorm_key" not in keys.values():
        kept.append(f"data.unnorm_key={min(json.loads((found_at / STATISTICS_FILE).read_text()))}")
    return shlex.join(["python", *script, f"data={hydra_cfg.runtime.choices['data']}", *model, *kept])
