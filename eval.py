"""Evaluate one policy in closed loop: python eval.py decoding=speculative; python eval.py --help prints all choices."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsd.entry_point import report_errors, run
from rsd.envs.ablations import with_ablation
from rsd.envs.suites import suite_name
from rsd.evaluation.evaluate import Recording, check_no_crash, plan_episodes, resume_results
from rsd.evaluation.parallel import device_names, evaluate_parallel
from rsd.evaluation.progress import follow, show_report
from rsd.evaluation.report import log_report, write_report
from rsd.evaluation.sequential import in_order_for, until_decided
from rsd.runs import open_run

CONFIG = Path(__file__).parent / "conf" / "eval.yaml"


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@report_errors
def main(cfg: DictConfig) -> float | None:
    """Returns the success rate, for a sweeper that optimises; None where every episode crashed or none was done."""
    plan = plan_episodes(
        num_tasks=cfg.env.num_tasks,
        num_init_states=cfg.env.num_init_states,
        tasks=cfg.tasks,
        num_trials=cfg.num_trials,
        seed=cfg.seed,
        save_videos=cfg.save_videos,
    )
    stopping = instantiate(cfg.get("stopping"))
    plan = in_order_for(stopping, plan, cfg.seed)
    run_dir = open_run(cfg, HydraConfig.get(), found={"simulator": instantiate(cfg.check)})
    done = resume_results(run_dir, plan)
    logger = instantiate(cfg.logger)(run_dir=run_dir)
    device_configs = [OmegaConf.merge(cfg, {"device": device}) for device in device_names(cfg.device)]
    policies = [instantiate(device_config.policy) for device_config in device_configs]
    episodes = evaluate_parallel(
        make_env=with_ablation(instantiate(cfg.env.make), instantiate(cfg.get("ablation"))),
        policies=policies,
        max_batch=cfg.max_batch,
        plan=plan,
        done=done,
        recording=Recording(run_dir, every_step=cfg.video_every_step, clip_actions=cfg.protocol.clip_actions),
        num_workers=cfg.num_workers,
        suite=suite_name(cfg.env.suite, cfg.env.variant),
        render_devices=cfg.render_devices,
        in_order=stopping is not None,
    )
    finished = follow(until_decided(episodes, stopping, plan, done, run_dir), num_planned=len(plan), done=done)
    report = write_report(run_dir)
    show_report(report, run_dir)
    if not finished:
        print(f"interrupted; continue with: python eval.py resume={run_dir}", file=sys.stderr)
        sys.exit(130)
    log_report(logger, report, run_dir)
    check_no_crash(report["success"]["num_errors"], len(plan), run_dir)
    return report["success"]["success_rate"]


if __name__ == "__main__":
    run(main, CONFIG)
