"""What every entry point does around its work: one clear error instead of a traceback, and results where others look.

This package's own errors, and what Hydra says about the configuration, end in one line and exit code 1; the traceback
goes to error.log in the run folder, of a multirun in the job's. Anything else is a defect of this program and keeps its
traceback.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from rsd import requeue
from rsd.commands.alone import as_one_command
from rsd.commands.dry_run import SAME_NAME, without_dry_run
from rsd.commands.publishing import Offer, check_publishable, names_of, publish, write_offer
from rsd.commands.quoting import quoted
from rsd.commands.requeued import interrupted, is_own_run, note_job
from rsd.commands.settings import check_settings
from rsd.commands.stored import check_stored
from rsd.commands.usage import check_choices, experiment_of, is_pipeline, usage_page
from rsd.data.rlds_metadata import STATISTICS_FILE
from rsd.errors import RSDError, SettingError
from rsd.files import in_words
from rsd.interrupts import in_order, tell
from rsd.locks import TakenError, hold
from rsd.processes import is_first_process
from rsd.record import write
from rsd.runs import (
    CONFIG_FILE,
    METRICS_FILE,
    RunError,
    check_unused,
    config_options,
    is_job_of_sweep,
    open_run,
    read_yaml,
    resume_arguments,
    resumed_folder,
    unused_folder,
)
from rsd.settings import Made, Text, require, require_device

ERROR_FILE = "error.log"
# A command that makes what a message misses
HINT = re.compile(r"(python (?:train\.py phase=\w+|scripts/cache_hidden_states\.py))((?: \w+=[\w-]+)*)")
LOADER_DIED = re.compile(r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)[^.]*")
NO_MEMORY = re.compile(r"out of memory|can't allocate memory")  # torch's words
REMEDIES = {  # Hydra's words, which advise a + before the key, → ours
    "Could not override 'accept'. No match in the defaults list.": "accept= is given, and nothing here accepts tokens; "
    "choose decoding=speculative, which brings accept along, or leave it out",
    "Could not override 'text.sentences.": "text.sentences is given, and text=words knows none; add text=sentence",
}
# What such a command takes over, of what was typed
REPEATED = ("model", "text", "quantizer", "data", "chunk", "paths", "visual_tokens")


SERVE = "scripts/serve_policy.py"
USED_AGAIN = ("data", "chunk", "paths", "model")  # what the command that uses an export takes over, of what was typed
OF_THE_START = ("data", "model", "model.name", "model.backbone.checkpoint", "model.backbone.hub_id")  # but not these


OF_COMMAND = {"phase": "train", "plan": "eval"}  # key of a run's configuration → the command that made it
RUNS = ("train", "eval")  # commands whose folder is a run's


class JobError(CompactHydraException):
    """How a job of a multirun failed; of all errors, Hydra prints these without a traceback."""


class ProcessDiedError(RSDError, RuntimeError):
    """A process that a command started is gone."""


class NoMemoryError(RSDError, MemoryError):
    """What was asked for does not fit into this machine's memory, or its GPU's."""


def is_expected(error: BaseException) -> bool:
    """Whether an error speaks to the user: one of this package's, Hydra's about the configuration, or the machine's."""
    of_the_machine = isinstance(error, OSError) and error.errno is not None  # no room, no permission, no such folder …
    return of_the_machine or isinstance(error, RSDError | HydraException | OmegaConfBaseException)


def cause_of(error: BaseException) -> BaseException:
    """What a class raised in its constructor, out of the errors that Hydra wraps around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def in_one_line(error: BaseException) -> str:
    """The message; Hydra's, which go over several lines, in one, and the machine's with the file that it is about."""
    if isinstance(error, RSDError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:  # some of Hydra's are of this kind, and without it
        return in_words(error, _output_dir())
    if isinstance(error, OverrideParseException):  # whose words are the parser's
        remedy = "write key=value, and quotes of Hydra's own around a value that it cannot read: \"key='value'\""
        return f"{error.override!r} cannot be read; {remedy}"
    for words, remedy in REMEDIES.items():
        if words in str(error):
            return remedy
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    return " ".join(" ".join(str(one).split()) for one in (error, cause) if one is not None)


def with_typed(message: str, overrides: Sequence[str]) -> str:
    """The message, its hint of a command completed with the groups and values that were typed."""
    typed = {one.partition("=")[0].lstrip("+"): one for one in overrides}
    data = {"data": f"data={typed['env'].partition('=')[2]}"} if "env" in typed else {}  # as conf/eval.yaml has it
    repeats = data | {key: one for key, one in typed.items() if key.partition(".")[0] in REPEATED}

    def completed(hint: re.Match[str]) -> str:
        own = {word.partition("=")[0]: word for word in hint[2].split()}
        known = {key: one for key, one in repeats.items() if "train.py" in hint[1] or not key.startswith("quantizer")}
        return " ".join([hint[1], *(shlex.quote(one) for one in (own | known).values())])

    return HINT.sub(completed, message)


def report_errors(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorator for a Hydra main, below `hydra.main`: print expected errors as one line and exit with 1.

    All settings are looked at before the main is called. In a multirun a JobError is raised instead of exiting: Hydra
    decides how it goes on, and the table has the job.
    """

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        tell(_how_to_go_on)
        logging.raiseExceptions = False  # a log for which there is no room prints no traceback of its own
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on intervals, workers, other products
        for chatter in ("absl", "OpenGL", "pytorch_lightning.utilities.rank_zero"):
            logging.getLogger(chatter).setLevel(logging.WARNING)
        try:
            with requeue.heeding() if "resume" in cfg else nullcontext():
                try:
                    check_chunk(cfg)
                    check_settings(cfg)
                    _go_on_after_requeue(cfg)
                    with as_one_command():
                        return main(cfg)
                except KeyboardInterrupt:  # before the first step or episode, or after the last
                    if requeue.asked() is None:
                        print(f"\ninterrupted{_how_to_go_on()}", file=sys.stderr)
                        sys.exit(130)
                    interrupted(Path(_output_dir()), what="step" if "phase" in cfg else "episode", done=0, before=0)
        except Exception as raised:  # noqa: BLE001  passed on, unless it speaks to the user
            error = _told(cause_of(raised))
            hydra_cfg = HydraConfig.get()
            if not is_expected(error):
                if hydra_cfg.mode == RunMode.MULTIRUN:
                    print(f"error: {type(error).__name__}: {error}{_keep_traceback(raised)}", file=sys.stderr)
                raise error  # noqa: B904  of an InstantiationException Hydra would show the message alone
            typed = OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)
            line = with_typed(in_one_line(error), cast("list[str]", typed))
            if isinstance(error, OSError | ProcessDiedError | NoMemoryError) and "resume=" not in line:
                line += _how_to_go_on()
            kept = "" if isinstance(error, TakenError) else _keep_traceback(raised)  # the folder is another process's
            print(f"error: {line}{kept}", file=sys.stderr)
            if hydra_cfg.mode == RunMode.MULTIRUN:
                raise JobError(f"{type(error).__name__}: {line}") from None
            sys.exit(1)

    return wrapped


def _go_on_after_requeue(cfg: DictConfig) -> None:
    """Let a job that a scheduler has started again go on with the run that it began."""
    run_dir = Path(_output_dir())
    if "resume" in cfg and cfg.resume is None and is_own_run(run_dir):
        cfg.resume = str(run_dir)


def _told(error: BaseException) -> BaseException:
    """The same error; where a data loader's process died, or there is no memory left, one that says what to do.

    torch raises both as RuntimeError, and anywhere.
    """
    if isinstance(error, RuntimeError) and (died := LOADER_DIED.search(str(error))):
        return ProcessDiedError(
            f"a process that loads data died ({died[0]}); memory may have run out: fewer num_workers"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        said = " ".join(str(error).split())[:300]
        return NoMemoryError(
            f"no memory is left ({said or 'MemoryError'}); a smaller batch, shorter chunk or smaller model needs less"
        )
    return error


def _output_dir() -> str:
    """Where the command writes, as far as that is known yet."""
    return HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else "the folder of the run"


def _how_to_go_on() -> str:
    """End of a line about a run that was broken off; empty where there is nothing to resume."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    return f"; continue with {shlex.quote(f'resume={run_dir}')}" if (run_dir / CONFIG_FILE).is_file() else ""


def _keep_traceback(raised: Exception) -> str:
    """Write the traceback to error.log and say where that is; nothing is said where it cannot be written."""
    log = Path(HydraConfig.get().runtime.output_dir) / ERROR_FILE
    try:
        log.write_text("".join(traceback.format_exception(raised)))
    except OSError:
        return ""  # the disk is full or the folder gone, which is what the line is about
    return f"\n(traceback in {log})"


def check_chunk(cfg: DictConfig) -> None:
    """See that a configuration's `chunk`, where it has one, is a number of control steps.

    Raises:
        SettingError: it is not a whole number, or below 1.
    """
    chunk = cfg.get("chunk", 1)
    if type(chunk) is not int or chunk < 1:
        raise SettingError(f"chunk is {chunk!r}, expected a whole number of control steps, 1 or more: chunk=8")


def require_simulator(cfg: DictConfig) -> None:
    """See that the env of a command that simulates is a simulator's.

    Raises:
        SettingError: it is recorded frames.
    """
    if "replay" in cfg.env:
        raise SettingError(
            "env=replay is recorded frames and no simulator, which this command needs; choose a suite: "
            "env=libero_spatial (python eval.py env=replay takes a policy through recorded frames)"
        )


def check_options(arguments: Sequence[str]) -> None:
    """See that the options, what begins with a dash, are Hydra's; it would answer with its usage.

    Raises:
        SettingError: one is not, or they do not go together.
    """

    def refuse(message: str) -> NoReturn:
        raise SettingError(f"{message}; settings are KEY=VALUE, and --help names them, --hydra-help Hydra's options")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args(list(arguments))
    commands = {"--run": given.run, "--multirun": given.multirun, "--cfg": given.cfg, "--info": given.info}
    typed = [name for name, value in (commands | {"--shell-completion": given.shell_completion}).items() if value]
    if len(typed) > 1:
        refuse(f"{' and '.join(typed)} do not go together")
    if given.resolve and not given.cfg:
        refuse("--resolve goes with --cfg alone")


def check_sweep(arguments: Sequence[str]) -> None:
    """See that no multirun sweeps the phase: what one phase makes is only published when all jobs have ended.

    Raises:
        SettingError: it does.
        HydraException: the phase cannot be read.
    """
    for argument in arguments:
        is_phase = argument.partition("=")[0].lstrip("+") == "phase"
        if is_phase and OverridesParser.create().parse_overrides([argument])[0].is_sweep_override():
            raise SettingError(f"{argument}: a sweep varies settings of one phase; run the phases one after another")


def run(main: Callable[[], Any], config: Path) -> None:
    """Call a Hydra main with the command line made ready: --help answered, resume=DIR expanded.

    Processes that train together with the first one are started with a command line that is ready.

    Args:
        main: What `hydra.main` has made.
        config: Its root configuration, which --help reads.
    """
    warnings.filterwarnings("ignore", SAME_NAME)
    OmegaConf.register_new_resolver("unused", unused_folder, replace=True)
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage_page(config))
        return
    if is_first_process():
        if (experiment := experiment_of(sys.argv[1:])) is not None and is_pipeline(config, experiment):
            _run_pipeline(config)
            return
        try:
            sys.argv[1:] = without_dry_run(sys.argv[1:])
            check_options(sys.argv[1:])
            if (stored := resumed_folder(sys.argv[1:])) is not None:
                check_stored(stored, config, sys.argv[1:])
            expanded = resume_arguments(sys.argv[1:])
            check_command(sys.argv[1:], config)
            if stored is not None:
                hold(stored)  # before Hydra writes there
            if stored is None and config.stem in RUNS:
                for folder in typed_folder(sys.argv[1:]):
                    if not is_own_run(folder):
                        check_unused(folder)
            if is_sweep := bool({"-m", "--multirun"} & set(expanded)):
                in_order()  # jobs to tell of
            sys.argv[1:] = [quoted(one, is_sweep) for one in expanded]
            check_sweep(sys.argv[1:])
            check_choices(config, sys.argv[1:])
        except (RSDError, HydraException, OmegaConfBaseException, OSError) as error:
            if not is_expected(error):
                raise
            sys.exit(f"error: {in_one_line(error)}")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes on what is raised outside of the job, its folder for example
    try:
        main()
    except JobError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  a defect, shown as Hydra would show it
        if is_expected(error):
            sys.exit(f"error: {in_one_line(cause_of(error))}")
        traceback.print_exc()
        sys.exit(1)


def _run_pipeline(config: Path) -> None:
    """Run the pipeline that an experiment is."""
    from rsd.commands.chain import run_pipeline  # needs torch, which --help does not wait for

    in_order()  # steps to end
    try:
        run_pipeline(config, [quoted(one) for one in sys.argv[1:]])
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # what a user can expect is of many classes; anything else is raised again
        if not is_expected(error):
            raise
        sys.exit(f"error: {in_one_line(cause_of(error))}")


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


def require_parts(phase: DictConfig) -> None:
    """See that a phase has what it trains and what on, once its own check has passed: null stands there otherwise.

    Raises:
        SettingError: it has not, or what it reads is no path.
    """
    for name in ("module", "datamodule"):
        require(f"phase.{name}", phase[name], Made)
    require("phase.reads", phase.reads, Mapping[str, Any])
    for part, path in phase.reads.items():
        require(f"phase.reads.{part}", path, Text | None)


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


def flatten(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested metrics → ("name/1", number) pairs; list entries count from 1 as stages do, only numbers are kept."""
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{name}/")
        elif isinstance(value, list):
            yield from flatten({str(index): entry for index, entry in enumerate(value, start=1)}, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def shown_values(flat: dict[str, float], name: str) -> list[float]:
    """The values of one metric out of flat ones: one, or one a stage in the stages' order; none where it is missing."""
    return [value for key, value in flat.items() if key == name or key.rpartition("/")[0] == name]


def finish_run(run_dir: Path, title: str, metrics: dict[str, Any], shown: Sequence[str]) -> float | None:
    """Write metrics.json (flat) and print those named in `shown`, a row each: one value, or below them one a stage.

    Returns:
        What a sweeper optimises: the first of them that is there, of the last stage where it has one value a stage.
    """
    flat = dict(flatten(metrics))
    write(run_dir / METRICS_FILE, flat)
    rows = {name: shown_values(flat, name) for name in shown}
    table = Table(box=None, pad_edge=False, show_header=False)
    single = {name: values for name, values in rows.items() if len(values) < 2}
    staged = {name: values for name, values in rows.items() if len(values) > 1}
    for name, values in single.items():
        table.add_row(name, *(f"{value:.3g}" for value in values))
    if staged:
        table.add_row("stage", *(str(stage) for stage in range(1, 1 + max(map(len, staged.values())))))
    for name, values in staged.items():
        table.add_row(name, *(f"{value:.3g}" for value in values))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(title, soft_wrap=True, markup=False)
    console.print(table)
    console.print(f"run folder: {run_dir}", soft_wrap=True, markup=False)
    return next((values[-1] for values in rows.values() if values), None)
