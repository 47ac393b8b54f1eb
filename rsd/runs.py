"""Run folders: what is written once at a first start, and how a run is continued.

A run folder holds config.yaml (resolved), overrides.yaml (what the user typed) and provenance.json (the folder's
layout, the SHA-256 of the other two, the choice in each config group that the run used, and one record a start). The
process that writes there holds a lock on the file `lock`, which ends with it, however it ends.
Hydra keeps copies of its own in .hydra, but writes them anew at every start; these here are what a resume is held to.

An entry point puts `resume_arguments(sys.argv[1:])` in place of its arguments before Hydra sees them, and begins with
`run_dir = open_run(cfg, HydraConfig.get())`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import itertools
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsd.differences import Difference, differences, told
from rsd.errors import RSDError
from rsd.files import stranger, write_atomically
from rsd.locks import hold, let_go, opened
from rsd.provenance import provenance
from rsd.record import EntryError, conform, read, shown, write

CONFIG_FILE = "config.yaml"
OVERRIDES_FILE = "overrides.yaml"
PROVENANCE_FILE = "provenance.json"
METRICS_FILE = "metrics.json"  # flat figures of a finished run
MULTIRUN_FILE = "multirun.yaml"  # Hydra's, in a sweep's folder
PIPELINE_FILE = "pipeline.json"  # in a pipeline's folder, whose runs are <step>/<digits>
MAX_LINE = 300  # letters of what a parser says
MAX_YAML_BYTES = 2**17  # of a run's YAML file; the largest that is written has a tenth of it, and parsing is slow
MAX_YAML_DEPTH = 100  # of lists and mappings in it; the parser's time grows with its square
LAYOUT = 2  # of run folders; 1 had no "layout" in provenance.json, and evaluations had no plan.json
CONFIG_OPTIONS = (("--config-dir", "-cd"), ("--config-path", "-cp"), ("--config-name", "-cn"))  # of Hydra
MAY_DIFFER = (  # what may change between the starts of one run
    *("resume", "logger", "num_workers", "render_devices", "simulator_timeout_s"),
    "plan",  # it is made of the other keys, and compared by itself
)

# keys that older runs lack, and the values that mean what those did
ADDED_LATER = {"shard": 0, "shards": 1, "open_loop": None}
PLACES = (  # where things lie; what lies there is held to by content, see rsd.inputs
    *("paths", "data.root", "policy", "model.backbone.checkpoint", "target.checkpoint", "composed.checkpoints"),
    *("phase.checkpoint", "phase.module.checkpoint", "phase.module.tokenizer_checkpoint", "phase.module.start_from"),
    *("phase.datamodule.root", "phase.datamodule.cache.root", "phase.datamodule.cache.directory"),
    "text.sentences.source",  # from which others are interpolated
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
    files: NotRequired[dict[str, str]]
    choices: NotRequired[dict[str, Any]]
    starts: list[Start]


class RunError(RSDError, RuntimeError):
    """A run folder is not what the command needs."""


def read_yaml(path: Path, kind: Any = dict[str, Any]) -> Any:
    """The content of a run's YAML file, as JSON types; nothing that it refers to is looked up.

    Args:
        kind: What it must be; see `rsd.record.conform`. A list is one of overrides, which may refer to keys; a mapping
            is a configuration, which was resolved before it was written.

    Raises:
        RunError: it is not YAML, too long, of another kind, refers to parts of itself, is a configuration with an
            interpolation, or is not what the provenance.json beside it says.
    """
    try:
        if (size := path.stat().st_size) > MAX_YAML_BYTES:
            raise EntryError(f"{path} has {size} bytes, expected at most {MAX_YAML_BYTES}")
        if other := stranger(path, "restore it as it was written"):
            raise RunError(other)
        text = path.read_text(encoding="utf-8")
        _check_shape(text, path)
        held = conform(json_types(OmegaConf.to_container(OmegaConf.create(text))), kind, str(path))
        if isinstance(held, dict):
            _check_resolved(held, str(path))
        _check_unchanged(path, text)  # last: the others name the entry
        return held
    except EntryError as error:
        raise RunError(f"{error}; restore it as it was written") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; restore it as it was written") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError, AssertionError) as error:
        line = " ".join(str(error).split())[:MAX_LINE] or "it is neither a list nor keys with values"
        raise RunError(f"{path} cannot be read: {line}; restore it as it was written") from error


def _check_resolved(value: Any, where: str, entry: str = "") -> None:
    """See that no text of a configuration is an interpolation: whoever resolved it would ask the environment.

    Raises:
        EntryError: one is.
    """
    if isinstance(value, str) and "${" in value:
        raise EntryError(f"{where}: entry {shown(entry)} is {shown(value)}, expected a value, which has no ${{ in it")
    named = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in named:
        _check_resolved(one, where, f"{entry}.{name}" if entry else str(name))


def _check_unchanged(path: Path, text: str) -> None:
    """Compare a run's file with what its provenance.json, where there is one, says of it."""
    record: Provenance = read_provenance(path.with_name(PROVENANCE_FILE)) or {"starts": []}
    if record.get("files", {}).get(path.name, sha256 := file_hash(text)) != sha256:
        raise EntryError(f"{path} is damaged or was edited: its SHA-256 is not the one in {PROVENANCE_FILE}")


def file_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_shape(text: str, path: Path) -> None:
    """See, part by part as the parser finds them, that a YAML text is a shallow tree.

    Raises:
        EntryError: it is nested deeply, or refers to parts of itself.
        YAMLError: it is not YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise EntryError(f"{path} is nested more than {MAX_YAML_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            raise EntryError(f"{path} refers to parts of itself, which no file of a run does")


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
        raise RunError(
            "resume continues one run, not a multirun; the sweep's own command, given again, goes on with it"
        )
    stored = [one for one in read_overrides(run_dir) if not (one in argv and _is_once(one))]
    check_layout(run_dir)
    quoted = "'" + str(run_dir).replace("'", "\\'") + "'"  # Hydra's grammar would stumble over = or a space
    expanded: list[str] = []
    options = {name for names in CONFIG_OPTIONS for name in names}
    for before, argument in zip(["", *argv], argv, strict=False):
        if _is_override(argument) and before not in options and stored:
            expanded += stored  # before the first one: overrides have to stay together for argparse
            stored = []
        is_resume = argument.startswith("resume=")
        expanded += [f"resume={quoted}", f"hydra.run.dir={quoted}"] if is_resume else [argument]
    return expanded


def resume_command(run_dir: Path) -> str:
    """The command line that continues a run, for the shell: this process's own script and configuration folders."""
    return shlex.join(["python", sys.argv[0], *config_options(), f"resume={run_dir}"])


def config_options() -> list[str]:
    """What was typed of where configurations lie."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in CONFIG_OPTIONS:
        parser.add_argument(*names)
    given, others = parser.parse_known_args(sys.argv[1:])
    options = [word for name, value in vars(given).items() if value for word in (f"--{name.replace('_', '-')}", value)]
    return options + [one for one in others if one.lstrip("+").startswith("hydra.searchpath=")]


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
        RunError: the folder already holds a run and resume is not set, the stored config differs, or another process
            is at work there.
    """
    run_dir = Path(hydra_cfg.runtime.output_dir)
    hold(run_dir)
    try:
        _open(run_dir, cfg, hydra_cfg, found or {}, may_differ)
    except BaseException:  # whatever it is, Ctrl-C too: this process has no run there
        let_go(run_dir)
        raise
    opened(run_dir)
    return run_dir


def _open(
    run_dir: Path, cfg: DictConfig, hydra_cfg: DictConfig, found: dict[str, Any], may_differ: Sequence[str]
) -> None:
    config = cast("dict[str, Any]", json_types(OmegaConf.to_container(cfg, resolve=True)))
    try:
        _check_resolved(config, "the configuration")  # of an escaped \${…}; it could not be read back
    except EntryError as error:
        raise RunError(f"{error}; give it another value") from error
    start = {**provenance(), **found}
    if cfg.resume is None:
        check_unused(run_dir)
        texts = {
            OVERRIDES_FILE: OmegaConf.to_yaml(OmegaConf.create(list(hydra_cfg.overrides.task))),
            CONFIG_FILE: OmegaConf.to_yaml(OmegaConf.create(config)),
        }
        write_atomically(run_dir / OVERRIDES_FILE, texts[OVERRIDES_FILE])
        chosen = {
            group: choice for group, choice in hydra_cfg.runtime.choices.items() if not group.startswith("hydra/")
        }
        groups = used_choices(chosen, config)
        files = {name: file_hash(text) for name, text in texts.items()}
        write(run_dir / PROVENANCE_FILE, {"layout": LAYOUT, "files": files, "choices": groups, "starts": [start]})
        write_atomically(run_dir / CONFIG_FILE, texts[CONFIG_FILE])  # last: now it is a run
        return
    if not (run_dir / CONFIG_FILE).is_file():
        raise RunError(f"cannot resume: {run_dir / CONFIG_FILE} does not exist; the run never started, start it afresh")
    different = changed_since(run_dir, cfg, may_differ)
    if different:
        raise RunError(
            f"cannot resume {run_dir}: the configuration differs from the stored one in {told(different)}. "
            "Leave these out to continue that run, or start a new one without resume"
        )
    begun = read_provenance(run_dir / PROVENANCE_FILE)
    if begun is None:
        raise RunError(f"cannot resume: {run_dir / PROVENANCE_FILE} does not exist; start anew without resume")
    write(run_dir / PROVENANCE_FILE, {**begun, "starts": [*begun["starts"], start]})


def changed_since(run_dir: Path, cfg: DictConfig, may_differ: Sequence[str] = MAY_DIFFER) -> list[Difference]:
    """Where a configuration differs from the one that a run was begun with; things may lie elsewhere.

    Raises:
        RunError: the stored one is damaged.
    """
    stored = read_yaml(run_dir / CONFIG_FILE)
    now = _at_places_of(stored, cfg)
    added = {key: value for key, value in ADDED_LATER.items() if key in now and key not in stored}
    return differences({**added, **stored}, now, may_differ)


@functools.cache
def unused_folder(wanted: str) -> str:
    """Make a folder of this name, or, where others were faster, of this name with _2, _3, …; `${unused:…}` in conf/.

    Once a process: whoever asks again for the same name gets the same folder.
    """
    for number in itertools.count(1):
        folder = wanted if number == 1 else f"{wanted}_{number}"
        try:
            os.makedirs(os.path.dirname(folder) or ".", exist_ok=True)
            os.mkdir(folder)
        except FileExistsError:
            if not os.path.lexists(folder):
                break
            continue
        except OSError:
            break
        return folder
    return wanted  # it cannot be made; said where the run begins, as for a folder that was typed


def is_job_of_sweep(run_dir: Path) -> bool:
    """Whether a run folder is one of a multirun's."""
    return (run_dir.parent / MULTIRUN_FILE).is_file()


def pipeline_of(run_dir: Path) -> Path | None:
    """The folder of the pipeline that a run is a step of."""
    folder = run_dir.resolve().parent.parent
    return folder if (folder / PIPELINE_FILE).is_file() else None


def check_unused(run_dir: Path) -> None:
    """See that a folder that is to hold a new run holds none.

    Raises:
        RunError: it does.
    """
    if (run_dir / CONFIG_FILE).exists():
        raise RunError(
            f"{run_dir} already holds a run; continue it with {shlex.quote(f'resume={run_dir}')}, "
            "or choose another folder"
        )


def _at_places_of(stored: Mapping[str, Any], cfg: DictConfig) -> Any:
    """The config, resolved, with things in the places where a stored one had them: another machine's may be others."""
    moved = copy.deepcopy(cfg)
    OmegaConf.set_struct(moved, False)
    before = OmegaConf.create(cast("dict[str, Any]", stored))
    for key in PLACES:
        place = OmegaConf.select(before, key)
        if place is not None and OmegaConf.select(moved, key) is not None:
            OmegaConf.update(moved, key, place, merge=False)
    return json_types(OmegaConf.to_container(moved, resolve=True))


def used_choices(choices: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Choices of config groups, without those of a composed policy where the config names a policy that is made."""
    made = "composed" in choices and config.get("policy") is not None
    return {group: choice for group, choice in choices.items() if not (made and group in COMPOSED_OF)}


def _is_once(override: str) -> bool:
    """Whether Hydra takes an override but once: there is nothing left to delete, or nothing left to add."""
    return override.startswith("~") or (override.startswith("+") and not override.startswith("++"))


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))
