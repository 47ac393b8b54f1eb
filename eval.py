"""Evaluate one policy in closed loop: python eval.py decoding=speculative env=libero_spatial model=oft_tiny"""

from __future__ import annotations

import sys
from functools import partial

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsd.entry_point import report_errors, run
from rsd.envs.suites import suite_name
from rsd.evaluation.evaluate import ERRORS_FILE, CrashedEpisodesError, Recording, plan_episodes, resume_results
from rsd.evaluation.parallel import evaluate_parallel
from rsd.evaluation.report import log_report, write_report
from rsd.evaluation.sequential import in_random_order, until_decided
from rsd.evaluation.terminal import follow, show_report
from rsd.runs import open_run


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@report_errors
def main(cfg: DictConfig) -> None:
    asked = {name: cfg[name] for name in ("tasks", "num_trials", "seed", "save_videos")}
    plan = plan_episodes(num_tasks=cfg.env.num_tasks, num_init_states=cfg.env.num_init_states, **asked)
    stopping = instantiate(cfg.stopping) if "stopping" in cfg else None
    if stopping is not None:
        plan = in_random_order(plan, cfg.seed)
    run_dir = open_run(cfg, HydraConfig.get(), found={"simulator": instantiate(cfg.check)})
    done = resume_results(run_dir, plan)
    logger = instantiate(cfg.logger)(run_dir=run_dir)
    make_env = instantiate(cfg.env.make)
    make_env = partial(instantiate(cfg.ablation), make=make_env) if "ablation" in cfg else make_env
    devices = [cfg.device] if isinstance(cfg.device, str) else cfg.device
    policies = [instantiate(OmegaConf.merge(cfg, {"device": device}).policy) for device in devices]
    episodes = evaluate_parallel(
        make_env=make_env,
        policies=policies,
        plan=plan,
        done=done,
        recording=Recording(run_dir, every_step=cfg.video_every_step, clip_actions=cfg.protocol.clip_actions),
        suite=suite_name(cfg.env.suite, cfg.env.variant),
        in_order=stopping is not None,
        **{name: cfg[name] for name in ("num_workers", "max_batch", "render_devices")},
    )
    finished = follow(until_decided(episodes, stopping, plan, done, run_dir), num_planned=len(plan), done=done)
    report = write_report(run_dir)
    show_report(report, run_dir)
    if not finished:
        print(f"interrupted; continue with: python eval.py resume={run_dir}", file=sys.stderr)
        sys.exit(130)
    log_report(logger, report, run_dir)
    if num_errors := report["success"]["num_errors"]:
        raise CrashedEpisodesError(f"{num_errors} of {len(plan)} episodes crashed; see {run_dir / ERRORS_FILE}")


if __name__ == "__main__":
    run(main)
