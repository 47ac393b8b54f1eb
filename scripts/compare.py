"""Compare evaluations of the same episodes: python scripts/compare.py RUN RUN [...] [--margin 0.02] [--reference RUN]

Pairs the runs' episodes by task and init state, prints the verdicts, and writes comparison.html (one file, opens
offline), comparison.json, and success against costs as pareto_*.svg into outputs/comparison/, or into --out DIR. All
are overwritten by the next comparison. Runs that differ in their seed only count as one candidate; with --pool, so do
those of several suites in folders of the same name:

    python scripts/compare.py --pool outputs/closed_loop/libero_*/runs/* \
        --reference outputs/closed_loop/libero_spatial/runs/l1
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rsd.comparison.candidates import group_by_name, group_by_seed, read_run
from rsd.comparison.comparison import COMPARISON_JSON, build_comparison
from rsd.comparison.comparison_page import COMPARISON_HTML, render_comparison, render_plots
from rsd.comparison.published import load_published
from rsd.evaluation.page import format_number, format_percent
from rsd.files import write_atomically
from rsd.options import Options, any_path, held, new_folder, reported
from rsd.settings import Share, Text

OUT = Path("outputs") / "comparison"
TONES = {"non-inferior": "green", "inferior": "red", "undecided": "yellow"}


def compare(
    runs: Sequence[Path], *, margin: float, reference: Path | None, allow: Sequence[str], out: Path, pool: bool = False
) -> dict[str, Any]:
    """Read run folders, write comparison.json, comparison.html and its plots into `out`, return the comparison.

    Raises:
        ResultsError, ComparisonError, SettingError: see what is called.
    """
    paths = list(runs)
    if reference is not None:
        paths = [reference, *(path for path in paths if path.resolve() != reference.resolve())]
    candidates = (group_by_name if pool else group_by_seed)([read_run(path) for path in paths])
    comparison = build_comparison(candidates, margin=margin, allow=allow, published=load_published())
    page = render_comparison(comparison, candidates)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / COMPARISON_JSON, json.dumps(comparison, indent=1, allow_nan=False) + "\n")
    write_atomically(out / COMPARISON_HTML, page)
    for stale in out.glob("pareto_*.svg"):
        stale.unlink()
    for name, plot in render_plots(comparison).items():
        write_atomically(out / name, plot)
    return comparison


def success_table(comparison: dict[str, Any]) -> Table:
    """One row a candidate."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "run", "success", "rate %", "95 % interval", "crashed", "published"):
        table.add_column(column, justify="left" if column in ("", "run", "published") else "right")
    for candidate in comparison["candidates"]:
        success, published = candidate["success"], candidate["published"]
        told = ""
        if published is not None:
            told = f"{published['verdict']} ({format_percent(published['published'])} %)"
        table.add_row(
            candidate["letter"],
            candidate["name"],
            f"{success['num_success']}/{success['num_episodes'] - success['num_errors']}",
            format_percent(success["success_rate"]),
            f"{format_percent(success['success_low'])} – {format_percent(success['success_high'])}",
            str(success["num_errors"]),
            told,
        )
    return table


def paired_table(comparison: dict[str, Any]) -> Table:
    """One row a comparison with the reference; differences in points."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "pairs", "only reference", "only this", "points", "95 % interval", "p", "verdict"):
        table.add_column(column, justify="left" if column in ("", "verdict") else "right")
    for pair in comparison["comparisons"]:
        table.add_row(
            f"{pair['other']} − {pair['reference']}",
            str(pair["num_pairs"]),
            str(pair["only_reference"]),
            str(pair["only_other"]),
            "–" if pair["difference"] is None else f"{100 * pair['difference']:+.1f}",
            f"{100 * pair['low']:+.1f} … {100 * pair['high']:+.1f}",
            f"{pair['p_value']:.3f}" if pair["p_value"] >= 0.001 else "< 0.001",
            f"[{TONES[pair['verdict']]}]{pair['verdict']}[/]",
        )
    return table


def failure_table(comparison: dict[str, Any]) -> Table:
    """One row a comparison with the reference: what acceleration cost, and what it saved, on the same episodes."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "induced failures", "at most %", "base calls %", "base layers %", "steps", "goal"):
        table.add_column(column, justify="left" if column in ("", "goal") else "right")
    for pair in comparison["comparisons"]:
        failures, shares, steps = pair["induced_failures"], pair["work_shares"], pair["steps_where_both_solve"]
        table.add_row(
            f"{pair['other']} − {pair['reference']}",
            f"{failures['count']}/{failures['num_pairs']}",
            format_percent(failures["bound"]),
            format_percent(shares["base_calls"]),
            format_percent(shares["base_layers"]),
            "–" if steps is None else f"{steps[0]:.1f} → {steps[1]:.1f}",
            "–" if pair["goal"] is None else "[green]met[/]" if pair["goal"] else "missed",
        )
    return table


def cost_table(comparison: dict[str, Any]) -> Table:
    """One row a candidate: costs of a solved episode; a star marks its Pareto front, with success."""
    table = Table(box=None, pad_edge=False)
    for column in (
        "",
        "success %",
        "steps to success",
        "calls",
        "early %",
        "base calls",
        "base layers",
        "model ms",
        "jerk",
    ):
        table.add_column(column, justify="left" if column == "" else "right")
    fronts = comparison["costs"]["fronts"]
    for row in comparison["costs"]["candidates"]:
        star = {cost: " *" if row["letter"] in front else "" for cost, front in fronts.items()}
        table.add_row(
            row["letter"],
            format_percent(row["success_rate"]),
            format_number(row["steps_to_success"]),
            format_number(row["calls"]),
            format_percent(row["early_exit_share"]),
            *(f"{format_number(row[cost])}{star[cost]}" for cost in ("base_calls", "base_layers", "model_ms")),
            format_number(row["jerk"], 4),
        )
    return table


def show(comparison: dict[str, Any], out: Path, console: Console) -> None:
    """Print the tables, what was left out, and where the files are."""
    console.print(success_table(comparison))
    console.print()
    console.print(paired_table(comparison))
    console.print()
    console.print(failure_table(comparison))
    console.print()
    console.print(cost_table(comparison))
    lines = [
        f"costs: a solved episode, over {comparison['costs']['num_episodes']} episodes that all have; *: Pareto front",
        *comparison["notes"],
    ]
    for pair in comparison["comparisons"]:
        if pair["num_crashed"]:
            lines.append(f"{pair['other']} − {pair['reference']}: {pair['num_crashed']} pairs with a crashed episode")
        if any(pair["num_unpaired"]):
            first, second = pair["num_unpaired"]
            lines.append(f"without a partner: {first} episodes of {pair['reference']}, {second} of {pair['other']}")
    for candidate in comparison["candidates"]:
        published = candidate["published"]
        if published is not None and published["verdict"] != "inside":
            lines.append(f"{candidate['letter']} is {published['verdict']} the published rate. Look at:")
            lines += [
                f"  {check['setting']}: {check['found']}, published {check['expected']}: {check['why']}"
                for check in published["checks"]
                if check["status"] == "differs"
            ]
            lines += [f"  by hand: {line}" for line in published["by_hand"]]
    margin = f"margin {100 * comparison['margin']:g} points. {comparison['rule']}"
    for line in ["", *lines, margin, f"Page: {out / COMPARISON_HTML}", f"Data: {out / COMPARISON_JSON}"]:
        console.print(line, soft_wrap=True, markup=False)


@reported
def main() -> None:
    """Command line."""
    parser = Options(description="Compare evaluations of the same episodes.")
    parser.add_argument("runs", type=any_path, nargs="+", metavar="RUN", help="folder of an evaluation")
    parser.add_argument(
        "--margin", type=held(Share), default=0.02, help="largest acceptable loss of success rate, a share (0.02)"
    )
    parser.add_argument(
        "--pool", action="store_true", help="runs of several suites in folders of the same name are one candidate"
    )
    parser.add_argument(
        "--reference", type=any_path, metavar="RUN", help="what the others are held against; the first run"
    )
    parser.add_argument("--out", type=new_folder, default=OUT, metavar="DIR", help=f"where the two files go ({OUT})")
    parser.add_argument(
        "--allow-version",
        action="append",
        type=held(Text),
        default=[],
        metavar="PACKAGE",
        help="compare although this package's version differs, mujoco for example",
    )
    options = parser.parse_args()
    comparison = compare(
        options.runs,
        margin=options.margin,
        reference=options.reference,
        allow=options.allow_version,
        out=options.out,
        pool=options.pool,
    )
    show(comparison, options.out, Console(highlight=False, width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    main()
