"""What does a policy use, and what does it ignore? python scripts/diagnose.py policy=released data=libero_spatial

Its inputs are taken away and exchanged on held-out frames, episodes are seen through, and a verdict in words comes
first: on the terminal, in outputs/diagnosis/NAME/diagnosis.html and in diagnosis.json beside it. The exit code is 1
where something FAILED. docs/diagnosis.md says how to read it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from rsd.commands.entry_point import run
from rsd.commands.error_reports import report_errors
from rsd.finding import FAILED, OK, WARNING
from rsd.progress import Progress

if TYPE_CHECKING:  # what needs torch is imported where it is used, so that --help comes at once
    from rsd.diagnosis.measure import Tell
    from rsd.diagnosis.verdict import Statement

CONFIG = Path(__file__).parents[1] / "conf" / "diagnose.yaml"
STYLES = {OK: "green", WARNING: "yellow", FAILED: "bold red"}


def telling() -> Tell:
    """Shows one bar after the other."""
    bars: dict[str, Progress] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = Progress(what, total=total)
            bars[what].start()
        bars[what].reach(done)
        if done == total:
            bars[what].stop()

    return tell


def show(statements: list[Statement], said: str, folder: Path) -> None:
    """The verdict on the terminal."""
    console = Console(highlight=False, soft_wrap=True)
    for one in statements:
        console.print(Text(f"{one.status:<8}", style=STYLES[one.finding.status]), Text(one.finding.name), end=": ")
        console.print(Text(one.finding.text))
    worst = statements[0].finding.status if statements else OK
    console.print(Text(said, style=STYLES[worst]))
    console.print(Text(f"{folder / 'diagnosis.html'}"))


@hydra.main(version_base="1.3", config_path="../conf", config_name="diagnose")
@report_errors
def main(cfg: DictConfig) -> None:
    from rsd.commands.examined import examined_policy, run_of, speaking, with_data_of_run
    from rsd.commands.mixtures import require_one
    from rsd.data.fill_cache import hold_frames_to
    from rsd.diagnosis.diagnose import diagnose
    from rsd.diagnosis.measure import Options
    from rsd.diagnosis.verdict import headline

    stored = run_of(cfg.policy)
    cfg = with_data_of_run(cfg, stored)
    require_one(cfg)
    policy = examined_policy(cfg, HydraConfig.get().overrides.task, stored)
    spec = policy.base.spec
    frames = instantiate(
        cfg.cache.dataset,
        views=list(spec.views),
        chunk_length=spec.chunk_length,
        proprio=spec.proprio_dim is not None,
    )()
    hold_frames_to(policy.base, frames, None, cfg.cache.max_clipped, print)
    whose = cfg.model.name if cfg.policy is None else Path(cfg.policy).resolve().name
    name = cfg.name or f"{whose}-{cfg.data.name}"
    folder = Path(cfg.paths.root) / "diagnosis" / name
    options = Options(cfg.num_frames, cfg.num_episodes, cfg.batch_size, cfg.split, cfg.seed)
    title = f"Diagnosis of {whose} on {cfg.data.name}"
    speaker = speaking(cfg, policy)
    statements = diagnose(policy, frames, folder, title, options, cfg.num_looks, telling(), speaker)
    show(statements, headline(statements), folder)
    if any(one.status == FAILED for one in statements):
        sys.exit(1)


if __name__ == "__main__":
    run(main, CONFIG)
