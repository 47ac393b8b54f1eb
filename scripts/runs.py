"""All runs: python scripts/runs.py [--where KEY=VALUE ...] [--content DIGITS] [--page] [--episodes FILE] [--clean]

    python scripts/runs.py                                        # a table, the latest run last
    python scripts/runs.py --where kind=eval status=finished data.name=libero_spatial_no_noops
    python scripts/runs.py --content 3fa2c1                       # runs that read or made a checkpoint or data set
    python scripts/runs.py --page                                 # ROOT/index.html: filter, sort, lineage, reports
    python scripts/runs.py --where kind=eval --episodes episodes.csv    # or .parquet: a row an episode
    python scripts/runs.py --clean                               # unfinished runs that nobody would miss; --yes removes

Nothing is removed that finished, is at work, belongs to a sweep or a pipeline, was written to in the last day
(--hours), or made what a published name leads to or another run read.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rsd.commands.episodes import episode_table, write_table
from rsd.commands.run_index import RunRow, matching, parents, read_runs, removable, remove, run_folders, told_reads
from rsd.evaluation.page import render_page
from rsd.files import write_atomically
from rsd.inputs import SHOWN
from rsd.options import Options, any_path, held, new_file, old_folder, reported
from rsd.settings import Natural

PAGE = "index.html"
MEGA = 1e6


def key_value(text: str) -> tuple[str, str]:
    """ "data.name=toy" in two parts."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected KEY=VALUE")
    return key, value


def options() -> argparse.Namespace:
    """The command line."""
    parser = Options(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=old_folder, default=Path("outputs/runs"), help="look below it (outputs/runs)")
    parser.add_argument("--checkpoints", type=any_path, default=Path("outputs/checkpoints"), help="published names")
    parser.add_argument(
        "--where",
        type=key_value,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="kind, status, or a key of the configuration",
    )
    parser.add_argument("--content", help="first hex digits of a data set or checkpoint")
    parser.add_argument("--page", action="store_true", help=f"write ROOT/{PAGE}")
    parser.add_argument("--episodes", type=new_file, metavar="FILE", help="write a row an episode: .csv or .parquet")
    parser.add_argument("--clean", action="store_true", help="list unfinished runs that nobody would miss")
    parser.add_argument("--yes", action="store_true", help="with --clean: remove them")
    parser.add_argument("--hours", type=held(Natural), default=24, help="with --clean: quiet for so long (24)")
    return parser.parse_args()


def table(rows: Sequence[RunRow], root: Path, every: Sequence[RunRow]) -> Table:
    """One line a run; damaged ones say why, and with few rows what each one read."""
    shown = Table(box=None, pad_edge=False)
    for column in ("run", "kind", "status", "started", "figures"):
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(name_of(row, root), row.kind, row.status, row.started[:16], row.error or row.figures)
        for line in told_reads(row, every) if len(rows) == 1 else ():
            shown.add_row(f"  read {line}")
    return shown


def name_of(row: RunRow, root: Path) -> str:
    """A run's name below the root."""
    return row.folder.relative_to(root).as_posix()


def page(rows: Sequence[RunRow], every: Sequence[RunRow], root: Path) -> str:
    """index.html; links are relative, so the folder can be moved as a whole."""
    shown = []
    for row in rows:
        made = parents(row, every)
        reads = [
            {
                "name": part,
                "link": name_of(made[part], root) if part in made else None,
                "path": path,
                "digest": digest[:SHOWN] if digest else "",
            }
            for part, (path, digest) in row.reads.items()
        ]
        shown.append(
            {
                "name": name_of(row, root),
                "report": None if row.report is None else os.path.relpath(row.report, root),
                "typed": " ".join(row.overrides),
                "reads": reads,
                "megabytes": row.size / MEGA,
                **{name: getattr(row, name) for name in ("kind", "status", "figures", "error")},
                "started": row.started[:16].replace("T", " "),
            }
        )
    return render_page("runs.html", rows=shown, root=str(root), now=time.strftime("%Y-%m-%d %H:%M", time.gmtime()))


@reported
def main() -> None:
    """Command line."""
    asked = options()
    console = Console()
    every = sorted(read_runs(run_folders(asked.root)), key=lambda row: row.started)
    rows = matching(every, dict(asked.where), asked.content)
    if asked.clean:
        unused = [row for row in removable(every, asked.checkpoints, asked.hours * 3600) if row in rows]
        console.print(table(unused, asked.root, every))
        size = sum(row.size for row in unused) / MEGA
        if asked.yes:
            remove(unused)
        done = "removed" if asked.yes else "would be removed; --yes removes them"
        console.print(f"{len(unused)} of {len(every)} runs, {size:.1f} MB: {done}")
        return
    console.print(table(rows, asked.root, every))
    console.print(f"{len(rows)} of {len(every)} runs below {asked.root}")
    if asked.episodes:
        made = episode_table(rows, asked.root)
        write_table(asked.episodes, made)
        console.print(f"{len(made.get('run', []))} episodes: {asked.episodes}")
    if asked.page:
        write_atomically(asked.root / PAGE, page(rows, every, asked.root))
        console.print(f"page: {asked.root / PAGE}")


if __name__ == "__main__":
    main()
