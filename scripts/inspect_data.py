"""What does a data set hold? python scripts/inspect_data.py data=NAME [model=oft_tiny] [max_episodes=200] [chunk=8]

Shows features, pictures, ranges, gripper, rest, jumps, words and duplicates of an RLDS data set, what a training would
refuse and with which key that is repaired, and what else is odd: in a table here, and on a page with pictures and plots
(outputs/inspect/NAME/index.html; data.json beside it). What is refused is shown as far as it can be read. The exit code
is 1 when something is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rsd.commands.entry_point import run
from rsd.commands.error_lines import cause_of, is_expected
from rsd.commands.error_reports import report_errors
from rsd.files import write_atomically
from rsd.finding import FAILED, OK, WARNING, Finding
from rsd.progress import Progress

CONFIG = Path(__file__).parents[1] / "conf" / "inspect.yaml"
RESAMPLING = ("every", "target_rate", "idle")  # keys of a layout without which it can still be looked at
STYLES = {OK: "green", WARNING: "yellow", FAILED: "bold red"}


def layout_of(cfg: DictConfig) -> tuple[Any, list[Finding]]:
    """What data= declares; where that is refused, as much of it as is not, and the refusal."""
    from rsd.data.layout import Layout

    try:
        return instantiate(cfg), []
    except InstantiationException as raised:
        error = cause_of(raised)
        if not is_expected(error):
            raise
    wrong = [Finding("refused", FAILED, str(error))]
    try:
        return instantiate(cfg, **{name: None for name in RESAMPLING if name in cfg}), wrong
    except InstantiationException:
        return Layout(), wrong


def look(cfg: DictConfig) -> tuple[Any, dict[str, Any], list[Finding]]:
    """The data set as far as it can be read, its figures, and what was found."""
    from rsd.commands.mixtures import require_one
    from rsd.data.survey import look_into
    from rsd.data.survey_figures import figures
    from rsd.data.survey_findings import refusals, trainings_say, warnings

    require_one(cfg)
    model = None if cfg.get("model") is None else cfg.model.backbone
    asked = {} if model is None else {"proprio": bool(model.get("use_proprio", True))}
    (layout, wrong), views = layout_of(cfg.data.layout), None if model is None else list(model.views)
    directory = Path(cfg.data.root) / cfg.data.name / cfg.data.version
    with ExitStack() as stack:

        def progress(total: int) -> Any:
            return stack.enter_context(Progress("episodes", total=total)).advance

        content = look_into(directory, layout, views, **asked, max_episodes=cfg.max_episodes, progress=progress)
    shown = figures(content, layout, bounds=cfg.data.bounds, chunk_length=cfg.chunk)
    said = None if content.is_sample else trainings_say(directory, layout, content.asked, cfg.chunk, **asked)
    odd = warnings(content, shown, has_model=model is not None)
    return content, shown, [*wrong, *refusals(content, layout, cfg.chunk, said), *odd]


def rows(shown: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The short table of the terminal."""
    from rsd.data.survey_page import number, size

    lengths, idle, words = shown["lengths"], shown["idle"], shown["languages"]
    read = "" if shown["num_read"] == shown["num_episodes"] else f", {shown['num_read']} of them read"
    yield (
        "episodes",
        f"{shown['num_episodes']}{read}; {size(sum(shown['files'].values()))} in {len(shown['files'])} files",
    )
    if "median" in lengths:
        seconds = f" ({number(lengths['median_s'])} s)" if "median_s" in lengths else ""
        steps = f"{lengths['min']}..{lengths['max']}, median {number(lengths['median'])}{seconds}"
        yield (
            "steps",
            f"{lengths['steps']}; an episode {steps}; {lengths['chunks']} chunks of {lengths['chunk_length']}",
        )
    for what in ("action", "proprio"):
        dims = [one for one in shown[what]["dims"] if "min" in one]
        spans = ", ".join(f"{number(one['q01'])}..{number(one['q99'])} {one['unit']}".strip() for one in dims)
        if dims:
            yield what, f"{len(dims)} dims, q01..q99: {spans}"
    for view, one in shown["pictures"].items():
        yield view, f"{', '.join(one['sizes'])}, {size(one['num_bytes'])}"
    if words["instructions"]:
        yield "language", f"{len(words['instructions'])} instructions, most often {words['instructions'][0]['text']!r}"
    for one in shown["gripper"]:
        turns = [len(row["closings"]) for row in one["episodes"]]
        closes = f"{sum(turns) / max(len(turns), 1):.3g} times an episode, never in {len(one['never_closes'])}"
        yield "gripper", f"action dim {one['dim']} closes {closes}"
    if idle is not None:
        yield "idle", f"{100 * idle['share']:.1f} % of the steps"


@hydra.main(version_base="1.3", config_path="../conf", config_name="inspect")
@report_errors
def main(cfg: DictConfig) -> None:
    from rsd.data.survey_page import FOLDER, TEMPLATE, page_values
    from rsd.evaluation.page import render_page

    content, shown, findings = look(cfg)
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    record = shown | {"findings": [{"status": one.status, "name": one.name, "text": one.text} for one in findings]}
    write_atomically(out / "data.json", json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False))
    page = render_page(TEMPLATE, folder=FOLDER, **page_values(content, shown, findings))
    write_atomically(out / "index.html", page)
    table = Table("status", "what", Column("found", overflow="fold"), box=None, pad_edge=False, show_header=False)
    for name, text in rows(shown):
        table.add_row("", Text(name), Text(text))
    for one in findings:
        table.add_row(Text(one.status, style=STYLES[one.status]), Text(one.name), Text(one.text))
    console = Console(highlight=False, soft_wrap=False)
    console.print(table)
    console.print(f"{out / 'index.html'}", soft_wrap=True)
    if any(one.status == FAILED for one in findings):
        sys.exit(1)


if __name__ == "__main__":
    run(main, CONFIG)
