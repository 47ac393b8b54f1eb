"""A factorial study: study.json, study.csv and study.html of the folder in which its cells lie.

design.json says which cells there are and in which folders; everything else is read from their plan.json, results.jsonl
and open_loop.npz, so that a study can be looked at before all of its cells are done, and made again afterwards:

    python -m rsd.commands.study STUDY_DIR

What surprises first: effects need every cell, and an episode counts only if no cell crashed in it. While one is missing
there are no effects, and what there is stands beside the reference, pair by pair.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from rsd.comparison.candidates import Candidate, ComparisonError, read_run
from rsd.comparison.comparison import build_comparison
from rsd.comparison.comparison_page import pareto_plots
from rsd.comparison.costs import common_episodes
from rsd.comparison.factorial import LETTERS, Correlation, alias, design, estimate, predicts
from rsd.comparison.published import load_published
from rsd.errors import SettingError
from rsd.evaluation.open_loop import MEASURES, OPEN_LOOP_FILE, apart, read_executed
from rsd.evaluation.page import render_page
from rsd.evaluation.results import RESULTS_FILE
from rsd.files import write_atomically
from rsd.record import read, read_json, write
from rsd.types import EpisodeResult

DESIGN_FILE, LATENCY_FILE = "design.json", "latency.json"
STUDY_JSON, STUDY_CSV, STUDY_HTML = "study.json", "study.csv", "study.html"
SCHEMA = 1
HERE = Path(__file__).parent
LOSSES = {  # what a loss is called: in words
    "success": "success lost, points",
    "induced": "episodes that the reference solves and the cell does not",
    "steps": "control steps more, where both solve",
}
METHOD = (
    "Effects are differences of success rates, the mean of the changed cells minus the mean of the others; of two "
    "factors, half the difference of one's effect with the other changed and not. Intervals: percentile bootstrap over "
    "episodes within their tasks, 95 %; the wider one holds for all effects at once (Bonferroni). Bounds of "
    "acceleration-induced failures: Clopper and Pearson, one-sided 95 %. Paired differences: Tango, 95 %."
)


class FactorRecord(TypedDict):
    """A factor of design.json: its name, and its two levels, the reference's first."""

    name: str
    levels: list[str]


class CellRecord(TypedDict):
    """A cell, or a control: its name, the folder in the study's, and -1 or 1 for each factor; none of a control."""

    name: str
    folder: str
    signs: list[int]
    typed: list[str]


class Design(TypedDict):
    """design.json."""

    fraction: str
    margin: float
    factors: list[FactorRecord]
    cells: list[CellRecord]


@dataclass(frozen=True)
class Cell:
    """A cell with its run."""

    record: CellRecord
    candidate: Candidate
    path: Path

    @property
    def is_control(self) -> bool:
        return not self.record["signs"]


def read_design(study_dir: Path) -> Design | None:
    """The study's design; None where the folder holds none."""
    path = study_dir / DESIGN_FILE
    if not path.is_file():
        return None
    found: Design = read(path, Design, error=SettingError, remedy=f"remove {path}, or give another folder")
    return found


def read_cells(study_dir: Path, records: Sequence[CellRecord]) -> tuple[list[Cell], list[str]]:
    """The cells that have an episode, and the names of the others."""
    found, missing = [], []
    for record in records:
        path = study_dir / record["folder"]
        results = path / RESULTS_FILE
        if results.is_file() and results.stat().st_size:
            found.append(Cell(record, Candidate(record["name"], [read_run(path)]), path))
        else:
            missing.append(record["name"])
    return found, missing


def build_study(study_dir: Path, written: Design) -> dict[str, Any]:
    """The content of study.json.

    Raises:
        ComparisonError: the reference has no episode, or a cell was run in other circumstances.
        ResultsError, PlanError: see what is called.
    """
    cells, missing = read_cells(study_dir, written["cells"])
    if not cells or cells[0].record is not written["cells"][0]:
        raise ComparisonError(
            f"{study_dir}: the reference, {written['cells'][0]['name']}, has no episode yet, and everything is held "
            "against it; run it first"
        )
    short = [cell.record["name"] for cell in cells if cell.candidate.runs[0].num_missing]
    factorial = [cell for cell in cells if not cell.is_control]
    controls = [cells[0], *(cell for cell in cells if cell.is_control)]
    letters = [f"{LETTERS[number]}: {one['name']}" for number, one in enumerate(written["factors"])]
    tables = [_compared(some, written["margin"]) for some in (factorial, controls)]
    num_planned = sum(bool(one["signs"]) for one in written["cells"])
    whole = len(factorial) == num_planned
    opened = _open_loop(cells)
    effects = _effects(factorial, written) if whole else None
    return {
        "schema": SCHEMA,
        "method": METHOD,
        "fraction": written["fraction"],
        "margin": written["margin"],
        "factors": written["factors"],
        "letters": letters,
        "missing": missing,
        "incomplete": short,
        "rows": [_row(cell, tables, opened) for cell in cells],
        "effects": effects,
        "predictors": _predictors(_groups(factorial, written, effects)),
        "cells": tables[0],
        "controls": tables[1],
        "latency": read_json(study_dir / LATENCY_FILE),
    }


def write_study(study_dir: Path) -> dict[str, Any]:
    """Write study.json, study.csv and study.html, and return the first.

    Raises:
        SettingError: the folder holds no study.
        ComparisonError: see `build_study`.
    """
    written = read_design(study_dir)
    if written is None:
        raise SettingError(f"{study_dir} holds no {DESIGN_FILE}; give the folder that python eval.py -m has named")
    study = build_study(study_dir, written)
    write(study_dir / STUDY_JSON, study)
    write_atomically(study_dir / STUDY_CSV, study_csv(study))
    plots = [] if study["cells"] is None else pareto_plots(study["cells"])
    span = max([0.02, *(abs(one[name]) for one in study["effects"] or [] for name in ("all_low", "all_high"))])
    page = render_page(
        "study.html", folder=HERE, study=study, plots=plots, legend=[], span=span, measures=MEASURES, losses=LOSSES
    )
    write_atomically(study_dir / STUDY_HTML, page)
    return study


def study_csv(study: dict[str, Any]) -> str:
    """A row a cell, the reference first, then controls."""
    text = io.StringIO()
    columns = list(study["rows"][0])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *([_plain(row.get(name)) for name in columns] for row in study["rows"])])
    return text.getvalue()


def _plain(value: Any) -> Any:
    return "" if value is None else value


def _compared(cells: Sequence[Cell], margin: float) -> dict[str, Any] | None:
    """`build_comparison` with the reference first; None where nothing is there beside it."""
    if len(cells) < 2:
        return None
    return build_comparison([cell.candidate for cell in cells], margin=margin, allow=(), published=load_published())


def _row(cell: Cell, tables: Sequence[dict[str, Any] | None], opened: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Of a cell: what it solved, what it lost against the reference, what it cost, and its open-loop errors."""
    name = cell.record["name"]
    levels = {LETTERS[number]: sign for number, sign in enumerate(cell.record["signs"])}
    table = next((one for one in tables if one and any(own["letter"] == name for own in one["candidates"])), None)
    success = cost = pair = None
    if table is not None:
        success = next(one["success"] for one in table["candidates"] if one["letter"] == name)
        cost = next(one for one in table["costs"]["candidates"] if one["letter"] == name)
        pair = next((one for one in table["comparisons"] if one["other"] == name), None)
    success = success or {}
    row = {
        "cell": name,
        "kind": "control" if cell.is_control else "cell",
        "folder": cell.record["folder"],
        **{letter: levels.get(letter) for letter in LETTERS[: len(levels)]},
        **{key: success.get(key) for key in ("num_episodes", "num_errors", "num_success", "success_rate")},
        **{key: success.get(key) for key in ("success_low", "success_high")},
        "num_pairs": pair and pair["num_pairs"],
        "difference": pair and pair["difference"],
        "difference_low": pair and pair["low"],
        "difference_high": pair and pair["high"],
        "verdict": pair and pair["verdict"],
        "induced_failures": pair and pair["induced_failures"]["count"],
        "induced_bound": pair and pair["induced_failures"]["bound"],
        **{key: cost and cost[key] for key in ("steps_to_success", "calls", "base_calls", "base_layers", "model_ms")},
        **{f"open_{name}": opened.get(cell.record["name"], {}).get(name) for name in MEASURES},
        "typed": " ".join(cell.record["typed"]),
    }
    return row


def _effects(cells: Sequence[Cell], written: Design) -> list[dict[str, Any]] | None:
    """Effects over the episodes that all cells have; None where there are none."""
    half = written["fraction"] == "half"
    signs = np.array([cell.record["signs"] for cell in cells])
    if not np.array_equal(signs, design(len(written["factors"]), half=half)):
        raise ComparisonError(
            "design.json lists other cells than its fraction has; remove it, and start the study anew"
        )
    shared = common_episodes([cell.candidate for cell in cells])
    if not shared[0]:
        return None
    outcomes = np.array([[one.success for one in own] for own in shared]).T  # [E, N]
    found = estimate(outcomes, signs, np.array([one.task_id for one in shared[0]]))
    names = [one["name"] for one in written["factors"]]
    return [
        {
            "name": " × ".join(names[number] for number in one.factors),
            "letters": "".join(LETTERS[number] for number in one.factors),
            "alias": alias(one.factors, len(names)) if half else None,
            **{key: value for key, value in asdict(one).items() if key != "factors"},
            "num_episodes": len(outcomes),
        }
        for one in found
    ]


def _errors(cells: Sequence[Cell]) -> tuple[list[int], list[dict[int, dict[str, tuple[float, float]]]]]:
    """Numbers of the recorded episodes that all cells have, and of each cell its distance to the first one's there."""
    actions = [read_executed(cell.path / OPEN_LOOP_FILE) for cell in cells]
    shared = sorted(set.intersection(*(set(one) for one in actions)))
    return shared, [{number: apart(own[number], actions[0][number]) for number in shared} for own in actions]


def _with_actions(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that were shown recorded episodes; none where the reference was not."""
    found = [cell for cell in cells if (cell.path / OPEN_LOOP_FILE).is_file()]
    return found if found and found[0] is cells[0] else []


def _open_loop(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Cell → each measure, over all recorded episodes."""
    shown = _with_actions(cells)
    if not shown:
        return {}
    numbers, found = _errors(shown)
    means = {}
    for cell, errors in zip(shown, found, strict=True):
        sums = {name: np.sum([errors[number][name] for number in numbers], axis=0) for name in MEASURES}
        means[cell.record["name"]] = {name: float(a / b) for name, (a, b) in sums.items() if b}
    return means


def _groups(
    cells: Sequence[Cell], written: Design, effects: Sequence[dict[str, Any]] | None
) -> dict[str, Sequence[Cell]]:
    """Cells to correlate over, each group with the reference at its head: all of them, and those at each level of the
    factor with the largest effect, since an error that tells these levels apart may tell nothing else.
    """
    groups: dict[str, Sequence[Cell]] = {"all": cells}
    mains = [one for one in effects or [] if len(one["letters"]) == 1]
    if mains:
        strongest = max(mains, key=lambda one: abs(one["value"]))["letters"]
        number = LETTERS.index(strongest)
        factor = written["factors"][number]
        for sign, level in zip((-1, 1), factor["levels"], strict=True):
            own = [cell for cell in cells[1:] if cell.record["signs"][number] == sign]
            groups[f"{factor['name']} {level}"] = [cells[0], *own]
    return groups


def _predictors(groups: dict[str, Sequence[Cell]]) -> list[dict[str, Any]] | None:
    """Rank correlation over the cells beside the reference of each open-loop error and each loss; None without."""
    records = []
    for name, cells in groups.items():
        shown = _with_actions(cells)
        shared = common_episodes([cell.candidate for cell in shown]) if len(shown) > 3 else []
        if not shared or not shared[0]:
            continue
        numbers, found = _errors(shown)
        tasks = np.array([one.task_id for one in shared[0]])
        for measure in MEASURES:
            pairs = np.array([[errors[number][measure] for errors in found[1:]] for number in numbers])  # [R, n, 2]
            for loss in LOSSES:
                losses, counts = _losses(shared[0], shared[1:], loss)
                drawn_in = np.zeros(len(numbers)), tasks
                one: Correlation = predicts(pairs[..., 0], pairs[..., 1], losses, counts, drawn_in)
                records.append({"cells": name, "error": measure, "loss": loss, **asdict(one)})
    return records or None


def _losses(
    reference: Sequence[EpisodeResult], cells: Sequence[Sequence[EpisodeResult]], loss: str
) -> tuple[np.ndarray, np.ndarray]:
    """A loss of each episode and cell, and what its sum is divided by, [E, n] each."""
    solved = np.array([one.success for one in reference], dtype=float)[:, None]  # [E, 1]
    own = np.array([[one.success for one in cell] for cell in cells], dtype=float).T  # [E, n]
    if loss == "steps":
        steps = np.array([[one.num_steps for one in cell] for cell in cells], dtype=float).T
        both = solved * own
        return both * (steps - np.array([one.num_steps for one in reference], dtype=float)[:, None]), both
    return (solved - own if loss == "success" else solved * (1 - own)), np.ones_like(own)
