"""What a step of a pipeline reads and makes, by content, and the digits by which it is known for that.

    digits = SHA-256 of (its command, the settings that it reads, the content of what it reads)

What surprises first: places are no part of the digits, and neither are settings that do not reach the step: another
quantizer leaves the base model what it is. A step whose digits are those of a run that ended is not run again.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from rsd.checkpoint import file_sha256
from rsd.commands.configured import policy_fields
from rsd.commands.mixtures import require_one
from rsd.commands.steps import CACHE, COLLECT, COMPARE, EVAL, SHARED, TRAIN, Planned, dataset_dir
from rsd.inputs import MADE_FILE, contents
from rsd.record import read_json
from rsd.runs import COMPOSED_OF, MAY_DIFFER, METRICS_FILE, PLACES, json_types

REPORT, COMPARISON, CHECKPOINT = "report.json", "comparison.json", "checkpoint"
DIGITS = 12  # of a step's folder
UNREAD = ("logger", "job_type", "check", "composed")  # that change nothing of what a step makes, or are told otherwise

Digests = dict[str, str | None]


def read_by(step: Planned, runs: Mapping[str, Path]) -> Digests:
    """Part to digest of what a step reads; None of what is not there.

    Args:
        runs: Run folders of the steps before.

    Raises:
        RSDError: a data set or a checkpoint cannot be read.
    """
    if step.config is None:
        return {name: _file_digest(runs[name] / REPORT) for name in step.reads}
    return {part: content["digest"] for part, content in contents(paths_read(step)).items()}


def paths_read(step: Planned) -> dict[str, str]:
    """Part to path of what a step reads, as its configuration says it; of compare.py nothing.

    Raises:
        SettingError: its data are several data sets.
    """
    config = step.config
    if config is None:
        return {}
    if step.command == EVAL:
        fields = policy_fields(config, step.arguments)
        return {part: str(path) for part, path in fields["checkpoints"].items() if path is not None}
    require_one(config)
    if step.command == COLLECT:
        return {}
    if step.command == CACHE:
        scorer = OmegaConf.select(config, "visual_tokens.checkpoint")
        reads = {"data": dataset_dir(config), "base": config.model.backbone.checkpoint, "visual_tokens": scorer}
    else:
        reads = dict(config.phase.reads)
    return {part: str(path) for part, path in reads.items() if path is not None}


def digits_of(step: Planned, reads: Digests) -> str:
    """By which a step is known."""
    known = {"command": step.command, "settings": settings_of(step), "reads": reads}
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]


def settings_of(step: Planned) -> Any:
    """What decides on a step's result, wherever things lie."""
    if step.config is None:
        return step.arguments
    config = copy.deepcopy(step.config)
    OmegaConf.set_struct(config, False)
    for key in config.paths:
        OmegaConf.update(config, f"paths.{key}", str(key))
    for key in PLACES:
        if key not in ("paths", "policy") and OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, key, merge=False)
    extra: dict[str, Any] = {}
    left_out = {*SHARED, *MAY_DIFFER, *UNREAD}
    if step.command == EVAL:
        fields = policy_fields(step.config, step.arguments)
        del fields["checkpoints"], fields["base"]["checkpoint"]
        extra = {"policy": fields}
        left_out |= {*COMPOSED_OF}
    held = cast("dict[str, Any]", json_types(OmegaConf.to_container(config, resolve=True)))
    return {name: value for name, value in held.items() if name not in left_out} | extra


def made_by(step: Planned, run: Path) -> Digests:
    """What a step has made, part to digest; None of what is not there, or of an evaluation without all its episodes.

    Raises:
        RSDError: it cannot be read.
    """
    if step.command == TRAIN:
        if not (run / METRICS_FILE).is_file():
            return {CHECKPOINT: None}
        found = contents({part or CHECKPOINT: run / part / CHECKPOINT for part in _parts(step.config)})
        return {part: content["digest"] for part, content in found.items()}
    if step.command == COLLECT:
        return {part: one["digest"] for part, one in contents({"data": dataset_dir(step.config)}).items()}
    if step.command == CACHE:
        points: dict[str, Any] = read_json(run / MADE_FILE) or {"cache": {"digest": None, "folder": run}}
        return {point: one["digest"] if Path(one["folder"]).is_dir() else None for point, one in points.items()}
    if step.command == COMPARE:
        return {COMPARISON: _file_digest(run / COMPARISON)}
    report = read_json(run / REPORT)
    is_whole = report is not None and report["complete"] and report["success"]["num_errors"] == 0
    return {REPORT: _file_digest(run / REPORT) if is_whole else None}


def _parts(config: DictConfig | None) -> list[str]:
    from rsd.commands.publishing import names_of

    return [] if config is None else list(names_of(config.phase))


def _file_digest(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None
