"""One run folder out of the shards of an evaluation, equal to that of the run that was not divided.

A shard is a run of its own: `shard=2 shards=4` does the third quarter of the plan's episodes. What surprises first: all
shards hold the whole plan, so that they can be held to be parts of one. Where configuration, plan and inputs are the
same but for the number of the shard, and every episode of the plan is there once, the merged folder gets the episodes
in the plan's order, their videos and traces, the starts of all shards, and a report of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rsd.differences import differences, told
from rsd.errors import RSDError
from rsd.evaluation.evaluate import ERRORS_FILE
from rsd.evaluation.plan import MAY_DIFFER as PLAN_MAY_DIFFER
from rsd.evaluation.plan import PLAN_FILE, Plan, hold_to_plan, missing_places, read_plan_file
from rsd.evaluation.report import write_report
from rsd.evaluation.results import RESULTS_FILE, episode_id, read_episodes
from rsd.files import write_atomically
from rsd.record import line_of, read_json, shown, write
from rsd.runs import (
    CONFIG_FILE,
    MAY_DIFFER,
    OVERRIDES_FILE,
    PROVENANCE_FILE,
    Provenance,
    check_unused,
    file_hash,
    read_overrides,
    read_provenance,
    read_yaml,
)
from rsd.types import EpisodeResult

INPUTS_FILE = "inputs.json"
MERGED = "merged"
PARTIAL = ".merging"  # ending of a folder that is being written; what lies there is removed
OWN_KEYS = ("shard", "shards")  # of the configuration
OWN_INPUTS = ("path", "folder")  # where a part lay, which another machine may have elsewhere


class MergeError(RSDError, ValueError):
    """Run folders are not the shards of one evaluation."""


@dataclasses.dataclass(frozen=True)
class ShardRun:
    """A shard's run folder, read."""

    folder: Path
    plan: Plan
    config: dict[str, Any]
    inputs: Mapping[str, Any]
    results: list[EpisodeResult]

    @property
    def index(self) -> int:
        """Its number, from 0."""
        assert self.plan.shard is not None
        return self.plan.shard.index

    def common(self) -> str:
        """What it shares with the other shards of its evaluation, as one text."""
        plan = dataclasses.replace(self.plan, shard=None).to_json()
        plan = {name: value for name, value in plan.items() if name not in PLAN_MAY_DIFFER}
        config = {name: value for name, value in self.config.items() if name not in (*MAY_DIFFER, "shard")}
        return json.dumps([plan, config], sort_keys=True)


def read_shard(folder: Path) -> ShardRun | None:
    """A shard's run; None where the folder is no run of an evaluation, or of an undivided one.

    Raises:
        RSDError: something in it is damaged.
    """
    if not (folder / PLAN_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        return None
    if not isinstance(record := read_json(folder / PLAN_FILE), dict) or record.get("shard") is None:
        return None
    plan = read_plan_file(folder / PLAN_FILE)
    results = read_episodes(folder / RESULTS_FILE) if (folder / RESULTS_FILE).is_file() else []
    hold_to_plan(results, plan.part, plan.tasks, folder / RESULTS_FILE)
    return ShardRun(folder, plan, read_yaml(folder / CONFIG_FILE), read_json(folder / INPUTS_FILE) or {}, results)


def families(folders: Sequence[Path]) -> list[list[ShardRun]]:
    """The shards among run folders, those of one evaluation together, in the order of their numbers.

    Raises:
        RSDError: a folder is damaged.
    """
    found: dict[str, list[ShardRun]] = {}
    for folder in folders:
        if (shard := read_shard(folder)) is not None:
            found.setdefault(shard.common(), []).append(shard)
    return [sorted(family, key=lambda one: one.index) for family in found.values()]


def merge_below(folder: Path, out: Path | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """Merge all shards among the folders in one, a sweep's say; what was merged before stays as it is.

    Args:
        out: Where to, `folder`/merged by default. Several evaluations get a number each: merged_0, merged_4, that of
            the job of their first shard.

    Returns:
        Each merged folder, with its report.

    Raises:
        MergeError: see `merge_shards`; some may have been merged by then.
        RSDError: a folder is damaged.
    """
    wanted = folder / MERGED if out is None else out
    found = families([path for path in sorted(folder.iterdir()) if path.is_dir()])
    places = [wanted if len(found) == 1 else wanted.with_name(f"{wanted.name}_{one[0].folder.name}") for one in found]
    return [
        (place, merge_shards([shard.folder for shard in family], place))
        for place, family in zip(places, found, strict=True)
        if not (place / CONFIG_FILE).exists()
    ]


def merge_shards(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the run folder of all shards, and its report.

    Args:
        folders: One run folder a shard, in any order.
        out: A folder that is not there or is empty; it appears with its report, or not at all.

    Returns:
        The report, see `rsd.evaluation.report`.

    Raises:
        MergeError: a folder is no shard, they are of several evaluations, one is missing or there twice, or episodes
            are missing or have crashed.
        RSDError: a folder is damaged, or `out` holds something.
    """
    shards = []
    for folder in folders:
        if (shard := read_shard(folder)) is None:
            raise MergeError(f"{folder} is no shard of an evaluation; give run folders of eval.py shards=N shard=I")
        shards.append(shard)
    shards.sort(key=lambda one: one.index)
    _check_family(shards)
    out = out.resolve()
    check_unused(out)
    if out.is_dir() and any(out.iterdir()):
        raise MergeError(f"{out} is not empty; choose a folder that is not there: --out DIR")
    partial = out.with_name(out.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_merged(shards, partial)
    report = write_report(partial)
    os.replace(partial, out)
    return report


def _write_merged(shards: Sequence[ShardRun], out: Path) -> None:
    """The merged run, without its report."""
    first = shards[0]
    plan = dataclasses.replace(first.plan, shard=None)
    results = {episode_id(one): one for shard in shards for one in shard.results}
    ordered = [results[one.task_id, one.init_state_id] for one in plan.episodes]
    for shard in shards:
        for kind in ("videos", "traces"):
            if (shard.folder / kind).is_dir():
                shutil.copytree(shard.folder / kind, out / kind, dirs_exist_ok=True)
    log = "".join(
        (shard.folder / ERRORS_FILE).read_text() for shard in shards if (shard.folder / ERRORS_FILE).is_file()
    )
    if log:  # of earlier starts
        write_atomically(out / ERRORS_FILE, log)
    write_atomically(out / RESULTS_FILE, b"".join(line_of(dataclasses.asdict(one)) for one in ordered))
    write(out / PLAN_FILE, plan.to_json())
    if first.inputs:
        write(out / INPUTS_FILE, first.inputs)
    _write_run(shards, out)


def _check_family(shards: Sequence[ShardRun]) -> None:
    if not shards:
        raise MergeError("no shard is given; name a sweep's folder, or one run folder a shard")
    first = shards[0]
    assert first.plan.shard is not None
    for other in shards[1:]:
        if different := _different(first, other):
            raise MergeError(f"{first.folder} and {other.folder} are not of one evaluation: {told(different)}")
    indices, count = [one.index for one in shards], first.plan.shard.of
    if twice := sorted({index for index in indices if indices.count(index) > 1}):
        raise MergeError(f"shard {twice[0]} is there twice; give one run folder for each of the {count} shards")
    if missing := sorted(set(range(count)) - set(indices)):
        raise MergeError(f"shard {shown(missing)} of {count} is missing; run it with shard={missing[0]} shards={count}")
    for shard in shards:
        lacking = missing_places(shard.plan.part, shard.results)
        crashed = [episode_id(one) for one in shard.results if one.error is not None]
        if lacking or crashed:
            raise MergeError(
                f"{shard.folder} lacks {len(lacking)} of its {len(shard.plan.part)} episodes and {len(crashed)} "
                f"crashed; finish it with python eval.py resume={shard.folder}"
            )


def _different(first: ShardRun, other: ShardRun) -> list[Any]:
    """Where two shards are not of one evaluation."""
    plans = [dataclasses.replace(one.plan, shard=None).to_json() for one in (first, other)]
    counts = [one.plan.shard.of for one in (first, other) if one.plan.shard is not None]
    read = [
        {
            part: {name: value for name, value in own.items() if name not in OWN_INPUTS}
            for part, own in one.inputs.items()
        }
        for one in (first, other)
    ]
    return [
        *differences({"shards": counts[0]}, {"shards": counts[-1]}),
        *differences(first.config, other.config, (*MAY_DIFFER, *OWN_KEYS)),
        *differences(plans[0], plans[1], PLAN_MAY_DIFFER),
        *differences(read[0], read[1]),
    ]


def _write_run(shards: Sequence[ShardRun], out: Path) -> None:
    """config.yaml and overrides.yaml as if the run had not been divided, and provenance.json with the starts of all."""
    first = shards[0]
    config = {**first.config, "shard": 0, "shards": 1}
    config["plan"] = {**config["plan"], "shard": 0, "shards": 1}
    overrides = [one for one in read_overrides(first.folder) if one.lstrip("+").partition("=")[0] not in OWN_KEYS]
    texts = {
        OVERRIDES_FILE: OmegaConf.to_yaml(OmegaConf.create(overrides)),
        CONFIG_FILE: OmegaConf.to_yaml(OmegaConf.create(config)),
    }
    found = (read_provenance(shard.folder / PROVENANCE_FILE) for shard in shards)
    records: list[Provenance] = [one for one in found if one is not None]
    provenance = {
        **(dict(records[0]) if records else {}),
        "files": {name: file_hash(text) for name, text in texts.items()},
        "starts": [start for record in records for start in record["starts"]],
    }
    write_atomically(out / OVERRIDES_FILE, texts[OVERRIDES_FILE])
    write(out / PROVENANCE_FILE, provenance)
    write_atomically(out / CONFIG_FILE, texts[CONFIG_FILE])
