"""What a folder lacks of contestants: fitted and measured several at once, kept, and timed one by one.

What surprises first: a record whose throughput is missing, because a kill came before it, is made anew as a whole: what
was fitted is not on disk, only what it said.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from rsd.arena import ArenaError
from rsd.arena.contract import Contestant
from rsd.arena.fitting import Fitted, Fitting, fit_all
from rsd.arena.splitting import Suite
from rsd.arena.timing import throughput
from rsd.arena.writing import write_report
from rsd.record import read_json, write

BATCH = 256  # chunks that are timed together


def keep(job: Fitting, fitted: Fitted, folder: Path) -> dict[str, Any]:
    """Put on disk what a contestant says, and its record, whose throughput is still None."""
    partial = folder / f".{job.name}.npz"
    np.savez_compressed(partial, **fitted.said)  # type: ignore[arg-type]
    partial.replace(folder / f"{job.name}.npz")
    record = {"idea": fitted.contestant().idea, "steps": fitted.steps, "depths": fitted.depths, "throughput": None}
    write(folder / f"{job.name}.json", record)
    return record


def timed(contestant: Contestant, suite: Suite, rounds: int) -> dict[str, Any]:
    """Throughput of a fitted contestant, on one core while nothing else of this program runs."""
    batch, before = suite.held[:BATCH], os.getloadavg()[0]
    found = throughput(contestant, batch, rounds)
    return found | {"load_before": before, "load": os.getloadavg()[0]}


def measure_all(
    suites: Mapping[str, Suite],
    contestants: Sequence[str],
    make: Callable[[str, Suite], Contestant],
    report: dict[str, Any],
    *,
    out: Path,
    seed: int,
    steps: int | None,
    rounds: int,
    num_workers: int,
    say: Callable[[str], None],
) -> None:
    """Fit and measure what is missing, all suites at once, and then time each contestant alone.

    Args:
        suites: Name → suite, whose folder is there.
        contestants: Names, in the order of the report.
        make: Name and suite → a fresh one; an ArenaError of it leaves that contestant out.
        report: report.json, which is filled in and written after each contestant.
        out: The folder.
        seed, steps: See `Contestant.fit`.
        rounds: Timed calls of each arm.
        num_workers: Processes that fit.
        say: Takes lines for the terminal.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    jobs = []

    def leave_out(suite: str, name: str, why: str) -> None:
        report["suites"][suite]["left_out"][name] = why
        say(f"{suite} {name} is left out: {why}")

    def show() -> None:
        for suite in suites:
            own = {name: found[suite, name] for name in contestants if (suite, name) in found}
            report["suites"][suite]["contestants"] = own
        write_report(out, report)

    for name in sorted(contestants, key=lambda one: (one != "rvq", not one.startswith("rfsq"))):  # longest first
        for suite in suites.values():
            record = read_json(out / suite.name / f"{name}.json")
            if record is not None:
                found[suite.name, name] = {key: value for key, value in record.items() if key != "checksum"}
            if record is None or record["throughput"] is None:
                try:
                    jobs.append(_fitting(name, make(name, suite), suite, seed, steps))
                except ArenaError as error:
                    leave_out(suite.name, name, str(error))
    show()
    to_time = []
    with closing(fit_all(jobs, num_workers)) as lines:
        for job, fitted in lines:
            if not isinstance(fitted, Fitted):
                leave_out(job.suite, job.name, fitted)
                continue
            found[job.suite, job.name] = record = keep(job, fitted, out / job.suite)
            to_time.append((job, fitted))
            last = record["depths"][-1]
            say(f"{job.suite} {job.name}: {last['total_bits']:.0f} bits, {last['mean_mm']:.3g} mm on average")
            show()
    for job, fitted in to_time:
        record = found[job.suite, job.name]
        try:
            record["throughput"] = timed(fitted.contestant(), suites[job.suite], rounds)
        except Exception as error:  # noqa: BLE001  its other figures are there, and so are the others
            leave_out(job.suite, f"{job.name} throughput", f"{type(error).__name__}: {error}")
            continue
        write(out / job.suite / f"{job.name}.json", record)
    show()


def _fitting(name: str, contestant: Contestant, suite: Suite, seed: int, steps: int | None) -> Fitting:
    """What a worker needs to fit and measure one contestant."""
    return Fitting(
        suite.name,
        name,
        pickle.dumps(contestant),
        suite.space,
        suite.fit.numpy(),
        suite.held.numpy(),
        {str(number): suite.actions[number] for number in suite.held_episodes},
        seed,
        steps,
    )
