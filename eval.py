"""Evaluate one policy in closed loop: python eval.py decoding=speculative env=libero_spatial model=oft_tiny"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsd.entry_point import report_errors, run
from rsd.evaluation.evaluate import ERRORS_FILE, CrashedEpisodesError, Recording, resume_results
from rsd.evaluation.parallel import evaluate_parallel
from rsd.evaluation.plan import keep_plan
from rsd.evaluation.progress import follow, show_report
from rsd.evaluation.report import log_report, write_report
from rsd.evaluation.sequential import describe_rule, in_random_order, until_decided
from rsd.runs import open_run


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@report_errors
def main(cfg: DictConfig) -> None:
    found = {"simulator": instantiate(cfg.check)}
    stopping = instantiate(cfg.get("stopping"))
    ablation = instantiate(cfg.get("ablation"))
    plan = instantiate(cfg.plan)(
        tasks=instantiate(cfg.env.tasks),
        ablation=None if ablation is None else ablation.func.__name__,
        stopping=None if stopping is None else describe_rule(stopping),
    )
    if stopping is not None:
        plan = dataclasses.replace(plan, episodes=tuple(in_random_order(plan.episodes, plan.seed)))
    run_dir = open_run(cfg, HydraConfig.get(), found=found)
    keep_plan(run_dir, plan)
    done = resume_results(run_dir, plan.episodes)
    logger = instantiate(cfg.logger)(run_dir=run_dir)
    make_env = instantiate(cfg.env.make)
    devices = [cfg.device] if isinstance(cfg.device, str) else cfg.device
    episodes = evaluate_parallel(
        make_env=make_env if ablation is None else partial(ablation, make=make_env),
        policies=[instantiate(OmegaConf.merge(cfg, {"device": device}).policy) for device in devices],
        plan=plan.episodes,
        done=done,
        recording=Recording(run_dir, every_step=cfg.video_every_step, clip_actions=cfg.protocol.clip_actions),
        suite=plan.suite,
        in_order=stopping is not None,
        num_workers=cfg.num_workers,
        max_batch=cfg.max_batch,
        render_devices=cfg.render_devices,
    )
    episodes = until_decided(episodes, stopping, plan.episodes, done, run_dir)
    finished = follow(episodes, num_planned=len(plan.episodes), done=done)
    report = write_report(run_dir)
    show_report(report, run_dir)
    if not finished:
        print(f"interrupted; continue with: python eval.py resume={run_dir}", file=sys.stderr)
        sys.exit(130)
    log_report(logger, report, run_dir)
    if num_errors := report["success"]["num_errors"]:
        log = run_dir / ERRORS_FILE
        raise CrashedEpisodesError(f"{num_errors} of {len(plan.episodes)} episodes crashed; see {log}")


if __name__ == "__main__":
    run(main)
