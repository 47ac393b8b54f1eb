"""A pipeline run: the steps whose content is not there yet, each by its own command, in its own run folder.

    FOLDER/pipeline.json             the command; FOLDER/lock keeps a second process out
    FOLDER/STEP/DIGITS/              a run of the step, known by what it reads; job.json says how it ended
    FOLDER/checkpoints/              the names under which the steps find what those before them have made
    FOLDER/pipeline.csv, .html       the table

What surprises first: nothing is replaced. A step that is asked for something else gets a folder beside the old one, and
whoever goes back to the old settings finds the old run. A step that failed holds up those that read it, and no other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired

from hydra.utils import instantiate
from omegaconf import OmegaConf

from rsd.commands.chain_table import Row, print_pipeline, write_pipeline
from rsd.commands.error_lines import is_expected
from rsd.commands.error_reports import ERROR_FILE
from rsd.commands.jobs import DONE, JOB_FILE, Ended
from rsd.commands.pipeline import InterruptedStepError, run_command
from rsd.commands.publishing import names_of, publish
from rsd.commands.quoting import quoted
from rsd.commands.step_content import CHECKPOINT, Digests, digits_of, made_by, paths_read, read_by
from rsd.commands.steps import COLLECT, COMPARE, EVAL, TRAIN, Planned, check_steps, key_of, plan_steps
from rsd.commands.usage import PIPELINES, experiment_of
from rsd.errors import SettingError
from rsd.inputs import contents
from rsd.locks import LOCK_FILE, TakenError, hold
from rsd.record import read, write
from rsd.runs import CONFIG_FILE, PIPELINE_FILE

ROOT = Path(__file__).resolve().parents[2]  # where the commands are
FAILED, WAITING, THERE, UNFINISHED = "failed", "waiting", "there already", "not finished"


class StepEnded(Ended):
    """job.json of a step: its seconds over all starts that came to an end, and the digests of what it made."""

    seconds: float
    made: NotRequired[dict[str, str | None]]


@dataclass
class Outcome:
    """A row of the table.

    Attributes:
        status: done, failed, waiting (for one that failed), there already, or not finished.
        run: Its run folder; None where it has none.
        error: Why it failed, or what it waits for.
        was_there: Whether nothing had to be done this time.
    """

    step: Planned
    status: str
    run: Path | None = None
    error: str | None = None
    seconds: float = 0.0
    was_there: bool = False
    made: Digests = field(default_factory=dict)


def run_pipeline(config: Path, arguments: Sequence[str]) -> None:
    """What train.py does with an experiment that is a pipeline.

    Args:
        config: Root configuration of the command that was typed.
        arguments: What was typed.

    Raises:
        RSDError, HydraException: the pipeline cannot be begun; nothing was run.
        SystemExit: a step failed (1), or Ctrl-C (130).
    """
    name = experiment_of(arguments)
    assert name is not None
    if config.stem != PIPELINES:
        raise SettingError(f"experiment={name} is a pipeline of several commands: python train.py experiment={name}")
    if options := [one for one in arguments if one.startswith("-")]:
        raise SettingError(
            f"{options[0]} does not go with experiment={name}, which is a pipeline: its steps are commands of their "
            "own, with an own configuration each; settings are KEY=VALUE"
        )
    placed = [one.partition("=")[2].strip("'\"") for one in arguments if one.startswith("hydra.run.dir=")]
    typed = [one for one in arguments if not one.lstrip("+").startswith(("experiment=", "hydra.run.dir="))]
    print(f"pipeline {name}: looking at its steps", flush=True)
    steps = plan_steps(config, name, typed)
    folder = Path(placed[-1]) if placed and placed[-1] else _runs(steps) / "pipeline" / name
    place_checkpoints(steps, folder, typed)
    check_steps(steps)
    check_reads(steps)
    check_machine(steps, folder)
    open_pipeline(folder, ["train.py", *arguments])
    outcomes = run_steps(steps, folder)
    shown = table_rows(outcomes, steps)
    write_pipeline(shown, folder, name)
    print_pipeline(shown, folder)
    tell_failures(outcomes)


def _runs(steps: Sequence[Planned]) -> Path:
    return next(Path(step.config.paths.runs) for step in steps if step.config is not None)


def place_checkpoints(steps: Sequence[Planned], folder: Path, typed: Sequence[str]) -> None:
    """Have the steps publish what they make inside of the pipeline's folder, and read there what others have made.

    A step with if_missing does not run where its product exists elsewhere and this pipeline has never begun to make
    it; the steps that read it are pointed to that product.
    """
    for step in steps:
        if step.if_missing:
            step.is_given = step.products[0].exists() and not (folder / step.name).is_dir()
    given = {_name_key(step): step.products[0] for step in steps if step.is_given and step.command == TRAIN}
    is_typed = any(key_of(one) == "paths.checkpoints" for one in typed)
    for step in steps:
        if step.config is None or step.command == COLLECT:
            continue
        if not is_typed:
            step.set("paths.checkpoints", str(folder / "checkpoints"))
        for key, place in given.items():
            if not step.is_given:
                step.set(key, str(place))


def _name_key(step: Planned) -> str:
    """ "paths.base", of which a training's name is made."""
    held: Any = OmegaConf.to_container(step.config, resolve=False) if step.config is not None else {}
    return str(held["phase"]["checkpoint"]).strip("${}")


def check_reads(steps: Sequence[Planned]) -> None:
    """See that what the steps read is there, or is made by one before.

    Raises:
        SettingError: it is not.
    """
    made: set[Path] = set()
    for step in steps:
        for part, path in paths_read(step).items():
            if Path(path) not in made and not Path(path).exists():
                raise SettingError(
                    f"step {step.name!r} reads its {part} at {path}, where there is nothing, and no step before makes "
                    f"it; the steps before make {', '.join(map(str, sorted(made))) or 'nothing'}"
                )
        made.update(step.products)


def check_machine(steps: Sequence[Planned], folder: Path) -> None:
    """See, before anything long, that the simulator is there, if one is needed that has not run yet.

    Raises:
        RSDError: it is not.
    """
    for step in steps:
        if step.command in (EVAL, COLLECT) and not step.is_given and step.config is not None:
            if not any(_record(path.parent)["status"] == DONE for path in (folder / step.name).glob(f"*/{JOB_FILE}")):
                instantiate(step.config.check)
                return


def open_pipeline(folder: Path, command: list[str]) -> None:
    """Hold the folder.

    Raises:
        SettingError: another process is at work there, or it holds something else.
    """
    if (folder / CONFIG_FILE).is_file() or (folder.is_dir() and any(folder.iterdir()) and not _is_own(folder)):
        raise SettingError(f"{folder} holds something else than a pipeline; choose another folder: hydra.run.dir=DIR")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        hold(folder)
    except TakenError:
        raise SettingError(
            f"a pipeline is at work in {folder}; wait for its end or stop it, or give this one a folder of its own: "
            "hydra.run.dir=DIR"
        ) from None
    write(folder / PIPELINE_FILE, {"command": command})


def _is_own(folder: Path) -> bool:
    return (folder / PIPELINE_FILE).is_file() or {path.name for path in folder.iterdir()} == {LOCK_FILE}


def run_steps(steps: Sequence[Planned], folder: Path) -> list[Outcome]:
    """Run what is not there, in order; the table is written after each step.

    Raises:
        SystemExit: Ctrl-C.
    """
    rows: list[Outcome] = []
    try:
        for step in steps:
            rows.append(_run(step, folder, {row.step.name: row for row in rows}))
            write_pipeline(table_rows(rows, steps), folder, folder.name)
    except InterruptedStepError as error:
        rows.append(Outcome(step, UNFINISHED, error="interrupted"))
        write_pipeline(table_rows(rows, steps), folder, folder.name)
        print(f"\n{error}", file=sys.stderr)
        sys.exit(130)
    return rows


def _run(step: Planned, folder: Path, before: Mapping[str, Outcome]) -> Outcome:
    if step.is_given:
        print(f"step {step.name!r}: there already, {step.products[0]}", flush=True)
        found = contents({"given": step.products[0]})
        return Outcome(step, THERE, was_there=True, made={part: one["digest"] for part, one in found.items()})
    if missing := [name for name in step.reads if before[name].status not in (DONE, THERE)]:
        print(f"step {step.name!r}: waits for {', '.join(missing)}", flush=True)
        return Outcome(step, WAITING, error=f"waits for {', '.join(missing)}")
    runs = {name: row.run for name, row in before.items() if row.run is not None}
    try:
        digits = digits_of(step, read_by(step, runs))
        run = folder / step.name / digits
        record = _record(run)
        if record["status"] == DONE and _is_whole(made := made_by(step, run)) and made == record.get("made"):
            _publish(step, run)
            print(f"step {step.name!r}: done already, {run}", flush=True)
            return Outcome(step, DONE, run, seconds=record["seconds"], was_there=True, made=made)
        run.mkdir(parents=True, exist_ok=True)
        write(run / JOB_FILE, StepEnded(status=UNFINISHED, error=None, seconds=record["seconds"]))
        started = time.monotonic()
        code = run_command(step.name, _command(step, run, runs))
        seconds = record["seconds"] + time.monotonic() - started
        made = made_by(step, run) if code == 0 else {}
        error = None if _is_whole(made) else _why(run, code, started_at=time.time() - (time.monotonic() - started))
    except Exception as wrong:  # whatever a user can expect, of many classes, is one step's and holds up no other
        if isinstance(wrong, InterruptedStepError) or not is_expected(wrong):
            raise
        print(f"error: step {step.name!r}: {wrong}", file=sys.stderr)
        return Outcome(step, FAILED, error=str(wrong))
    status = DONE if error is None else FAILED
    write(run / JOB_FILE, StepEnded(status=status, error=error, seconds=seconds, made=made))
    if error is not None:
        print(f"error: step {step.name!r} failed, and holds up those alone that read it", file=sys.stderr)
    return Outcome(step, status, run, error, seconds, made=made)


def _record(run: Path) -> StepEnded:
    path = run / JOB_FILE
    if not path.is_file():
        return StepEnded(status=UNFINISHED, error=None, seconds=0.0)
    found: StepEnded = read(path, StepEnded, error=SettingError, remedy=f"remove {run}")
    return found


def _is_whole(made: Digests) -> bool:
    return bool(made) and None not in made.values()


def _publish(step: Planned, run: Path) -> None:
    """See that the names lead to this run again, after one with other settings."""
    if step.command == TRAIN and step.config is not None:
        for part, name in names_of(step.config.phase).items():
            publish(run / part / CHECKPOINT, name)


def _command(step: Planned, run: Path, runs: Mapping[str, Path]) -> list[str]:
    own = ROOT / step.command
    command = [sys.executable, step.command if Path(step.command).resolve() == own else str(own)]
    if step.command == COMPARE:
        return [*command, *(str(runs[name]) for name in step.reads), *step.arguments, "--out", str(run)]
    if step.command in (TRAIN, EVAL) and (run / CONFIG_FILE).is_file():
        return [*command, f"resume={run}"]
    return [*command, *step.arguments, quoted(f"hydra.run.dir={run}")]


def _why(run: Path, code: int, started_at: float) -> str:
    """Why a step failed, in a line."""
    log = run / ERROR_FILE
    if log.is_file() and log.stat().st_mtime >= started_at - 1:
        lines = [line for line in log.read_text().splitlines() if line and not line.startswith(" ")]
        if lines:
            return lines[-1].partition(": ")[2] or lines[-1]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}" if code else "its result is not whole"
    return f"{how}; what it said stands above, and {run} is its folder"


def table_rows(outcomes: Sequence[Outcome], steps: Sequence[Planned]) -> list[Row]:
    """The rows of the table; steps whose turn has not come have no status."""
    ended = {one.step.name: one for one in outcomes}
    rows = []
    for step in steps:
        one = ended.get(step.name, Outcome(step, ""))
        made = [digest for digest in one.made.values() if digest is not None]
        note = "already" if one.was_there and one.status == DONE else ""
        rows.append(
            Row(
                step.name,
                [step.command, *step.arguments],
                one.status,
                one.run,
                one.seconds,
                one.error,
                note,
                made,
                step.reads,
            )
        )
    return rows


def tell_failures(outcomes: Sequence[Outcome]) -> None:
    """Print which steps failed, and end the process where one did.

    Raises:
        SystemExit: a step failed.
    """
    failed = [one for one in outcomes if one.status == FAILED]
    if not failed:
        return
    waiting = [one.step.name for one in outcomes if one.status == WAITING]
    then = f"and then {', '.join(waiting)}" if waiting else "and no other"
    print(
        f"error: {len(failed)} of {len(outcomes)} steps failed; the same command runs that again, {then}:",
        file=sys.stderr,
    )
    for one in failed:
        print(f"  {one.step.name}: {one.error}", file=sys.stderr)
    sys.exit(1)
