"""Evaluate one policy in closed loop: python eval.py decoding=speculative; python eval.py --help prints all choices.

With env=replay, in open loop on recorded demonstrations: rsd/commands/replay.py.
"""

from __future__ import annotations

from rsd import interrupts

if __name__ == "__main__":
    interrupts.at_once()  # the other imports take seconds

import dataclasses
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from rsd.commands.entry_point import run
from rsd.commands.error_reports import report_errors
from rsd.commands.requeued import interrupted
from rsd.commands.run_folder import begin_run
from rsd.envs.ablations import describe_ablation, with_ablation
from rsd.evaluation.evaluate import Recording, check_all_kept, check_no_crash, resume_results
from rsd.evaluation.parallel import device_names, evaluate_parallel
from rsd.evaluation.plan import keep_plan
from rsd.evaluation.report import log_report, write_report
from rsd.evaluation.sequential import describe_rule, in_order_for, read_verdict, until_decided
from rsd.evaluation.terminal import follow, show_report
from rsd.silence import PATIENCE_S, check_patience

CONFIG = Path(__file__).parent / "conf" / "eval.yaml"


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@report_errors
def main(cfg: DictConfig) -> float | None:
    """Returns the success rate, for a sweeper that optimises; None where every episode crashed or none was done.

    Of a replay, the l1 of held-out episodes.
    """
    from rsd.commands.configured import (  # needs torch, which --help does not wait for
        check_clock,
        check_tasks,
        configured_clock,
        configured_policy,
        policy_fields,
        require_base,
    )
    from rsd.commands.open_loop import keep_open_loop

    overrides = HydraConfig.get().overrides.task
    if "replay" in cfg.env:  # recorded frames in the place of a simulator
        from rsd.commands.replay import evaluate_replay

        return evaluate_replay(cfg, overrides)
    patience_s = check_patience(cfg.get("simulator_timeout_s", PATIENCE_S))
    found = {"simulator": instantiate(cfg.check)}
    stopping = instantiate(cfg.get("stopping"))
    ablation = instantiate(cfg.get("ablation"))
    require_base(cfg)
    fields, clock = policy_fields(cfg, overrides), configured_clock(cfg, overrides)
    tasks = instantiate(cfg.env.tasks)
    plan = instantiate(cfg.plan)(
        tasks=tasks,
        ablation=describe_ablation(ablation, tasks),
        stopping=None if stopping is None else describe_rule(stopping),
        policy=fields | {"clock": clock.to_json()},
    )
    plan = dataclasses.replace(plan, episodes=tuple(in_order_for(stopping, plan.episodes, plan.seed)))
    run_dir = begin_run(cfg, reads=fields.get("checkpoints", {}), found=found)
    keep_plan(run_dir, plan)
    done = resume_results(run_dir, plan.part, plan.tasks)
    logger = instantiate(cfg.logger)(run_dir=run_dir)
    policies = [configured_policy(cfg, overrides, device) for device in device_names(cfg.device)]
    for policy in policies:
        check_clock(policy, clock)
        check_tasks(policy, plan.tasks)
    keep_open_loop(cfg, policies[0], clock, run_dir)
    episodes = evaluate_parallel(
        make_env=with_ablation(instantiate(cfg.env.make), ablation),
        policies=policies,
        max_batch=cfg.max_batch,
        plan=plan.part,
        done=done,
        recording=Recording(
            run_dir, every_step=cfg.video_every_step, clip_actions=cfg.protocol.clip_actions, clock=clock
        ),
        num_workers=cfg.num_workers,
        suite=plan.suite,
        render_devices=cfg.render_devices,
        in_order=stopping is not None,
        patience_s=patience_s,
    )
    decided = until_decided(episodes, stopping, plan.part, done, run_dir)
    finished = follow(decided, num_planned=len(plan.part), done=done)
    if finished and read_verdict(run_dir) is None:
        check_all_kept(run_dir, plan.part)
    report = write_report(run_dir)
    show_report(report, run_dir)
    if not finished:
        interrupted(run_dir, what="episode", done=report["success"]["num_episodes"], before=len(done))
    log_report(logger, report, run_dir)
    check_no_crash(report["success"]["num_errors"], len(plan.part), run_dir)
    return report["success"]["success_rate"]


if __name__ == "__main__":
    run(main, CONFIG)
