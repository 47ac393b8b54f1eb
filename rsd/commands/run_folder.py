"""The run folder of a command: the one that is typed, goes on, or is begun."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rsd.commands.requeued import is_own_run, note_job
from rsd.errors import SettingError
from rsd.processes import is_first_process
from rsd.runs import CONFIG_FILE, RunError, open_run, read_yaml

OF_COMMAND = {"phase": "train", "plan": "eval"}  # key of a run's configuration → the command that made it
RUNS = ("train", "eval")  # commands whose folder is a run's


def output_dir() -> str:
    """Where the command writes, as far as that is known yet."""
    return HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else "the folder of the run"


def typed_folder(arguments: Sequence[str]) -> list[Path]:
    """The folder that hydra.run.dir= names as it stands; none where it is not typed, or made of other keys.

    Raises:
        SettingError: it names none, which Hydra takes for the present folder.
    """
    typed = [one.partition("=")[2].strip("'\" ") for one in arguments if one.lstrip("+").startswith("hydra.run.dir=")]
    if typed and typed[-1] in ("", "null"):
        raise SettingError("hydra.run.dir is empty; name the run folder, or leave it out")
    return [Path(one) for one in typed[-1:] if "${" not in one]


def check_command(arguments: Sequence[str], config: Path) -> None:
    """See that resume= names a run of this command.

    Args:
        config: The command's root configuration.

    Raises:
        SettingError: another command made that run, or this one cannot go on with any.
        RunError: its configuration is damaged.
    """
    given = [one.removeprefix("resume=") for one in arguments if one.startswith("resume=")]
    stored = Path(given[-1]) / CONFIG_FILE if given else None
    if stored is None or not stored.is_file():
        return
    record = read_yaml(stored)
    made_by = next((command for key, command in OF_COMMAND.items() if key in record), None)
    if made_by is None:
        raise RunError(f"{stored} has none of {list(OF_COMMAND)}, so it is no run's; restore it as it was written")
    if config.stem != made_by:
        raise SettingError(
            f"{stored.parent} is a run of {made_by}.py; continue it with python {made_by}.py "
            + shlex.quote(f"resume={given[-1]}")
        )


def go_on_after_requeue(cfg: DictConfig) -> None:
    """Let a job that a scheduler has started again go on with the run that it began."""
    run_dir = Path(output_dir())
    if "resume" in cfg and cfg.resume is None and is_own_run(run_dir):
        cfg.resume = str(run_dir)


def begin_run(cfg: DictConfig, reads: Mapping[str, Any], found: dict[str, Any] | None = None) -> Path:
    """Open the run folder; processes that train along take the one that the first of them has opened.

    Args:
        reads: Part that the run reads to its path, see `rsd.inputs.contents`.
        found: See `open_run`.

    Raises:
        RunError: see `open_run`.
        InputsError: see `rsd.inputs.keep_inputs`.
    """
    from rsd.inputs import contents, keep_inputs  # needs torch, which --help does not wait for

    hydra_cfg = cast(DictConfig, HydraConfig.get())  # Hydra names the schema, and gives the config
    if not is_first_process():
        return Path(hydra_cfg.runtime.output_dir)
    read = contents(reads)
    run_dir = open_run(cfg, hydra_cfg, found=found)
    note_job(run_dir)
    keep_inputs(run_dir, read, resumed=cfg.resume is not None)
    return run_dir
