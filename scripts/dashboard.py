"""Make the project's workspace at Weights & Biases: python scripts/dashboard.py --entity NAME [--dry-run]

    python scripts/dashboard.py --entity me --dry-run   # print the specification as JSON; no account, no network
    python scripts/dashboard.py --entity me             # save it; prints where it is

Runs are shown under their group. Panels: success against model time and latency (the Pareto front is their upper left
edge), a tokenizer's error against its bits (lower left), acceptance and passes, the tokenizer's plot and the report.
Needs the extra dashboards.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rsd.options import Options

FRONTS = ("model_ms_per_solved_episode", "latency_ms_p50", "base_layers_per_solved_episode")
RATE, DISTORTION = "val/bits", "val/mse"  # of a tokenizer's run; bits of a chunk, error on held-out chunks
MEDIA = ("plots/codec", "reports/report")  # as rsd/training/loggers.py names them; videos are shown below
FIGURES = ("success_rate", "acceptance_rate", "target_passes_per_chunk")


def workspace(entity: str, project: str) -> Any:
    """The workspace; nothing is sent before it is saved."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    fronts = [
        wr.ScatterPlot(title=f"success_rate by {x}", x=wr.SummaryMetric(x), y=wr.SummaryMetric("success_rate"))
        for x in FRONTS
    ]
    curve = wr.ScatterPlot(
        title=f"{DISTORTION} by {RATE}", x=wr.SummaryMetric(RATE), y=wr.SummaryMetric(DISTORTION), log_y=True
    )
    bars = [wr.BarPlot(title=name, metrics=[name]) for name in FIGURES]
    sections = [
        ws.Section(name="Pareto", panels=fronts, is_open=True),
        ws.Section(name="Rate and distortion", panels=[curve], is_open=True),
        ws.Section(name="Evaluation", panels=bars, is_open=True),
        ws.Section(name="Media", panels=[wr.MediaBrowser(media_keys=[key]) for key in MEDIA], is_open=True),
    ]
    return ws.Workspace(entity=entity, project=project, name="rsd", sections=sections)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", required=True, help="user or team at Weights & Biases")
    parser.add_argument("--project", default="rsd")
    parser.add_argument("--dry-run", action="store_true", help="print the specification as JSON")
    options = parser.parse_args(arguments)
    try:
        made = workspace(options.entity, options.project)
    except ImportError as error:
        print(f"dashboards need wandb-workspaces ({error}); pip install 'rsd[dashboards]'", file=sys.stderr)
        return 1
    if options.dry_run:
        print(made._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2))
        return 0
    import wandb

    if not wandb.login(prompt=False):  # else the library would ask for a key
        print("no account: run `wandb login` or set WANDB_API_KEY, or use --dry-run", file=sys.stderr)
        return 1
    made.save()
    print(made.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
