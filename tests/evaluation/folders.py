"""Run folders of PointMassEnv, as eval.py leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rsd.evaluation.evaluate import Recording, evaluate, resume_results
from rsd.evaluation.plan import Plan, PlannedEpisode, keep_plan, make_plan
from rsd.types import EpisodeResult, Policy, Task
from tests.fakes import PointMassEnv, point_mass_tasks


def plan_of(tasks: list[Task], **values: Any) -> Plan:
    """An ordinary run's plan, or with other arguments of make_plan."""
    ordinary = {
        "task_ids": None,
        "num_init_states": 5,
        "num_trials": 4,
        "seed": 0,
        "save_videos": 0,
        "num_workers": 1,
        "max_batch": 1,
        "variant": None,
        "environment": {"image_size": 64},
        "clip_actions": True,
        "score_versions": ["point_mass"],
        "allowed_versions": {},
        "policy": {"model": "seeing", "num_open_loop_steps": 8},
    }
    return make_plan(tasks=tasks, **(ordinary | values))


def make_run(
    run_dir: Path,
    policy: Policy,
    *,
    num_trials: int = 4,
    save_videos: int = 0,
    every_step: bool = False,
    num_run: int | None = None,
    has_plan: bool = True,
) -> list[EpisodeResult]:
    """Evaluate on three tasks.

    Args:
        num_run: Run only so many episodes of each task.
        has_plan: False leaves plan.json out.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    planned = plan_of(point_mass_tasks(num_tasks=3), num_trials=num_trials, save_videos=save_videos)
    if has_plan:
        keep_plan(run_dir, planned)
    plan: list[PlannedEpisode] = [one for one in planned.episodes if num_run is None or one.init_state_id < num_run]
    done = resume_results(run_dir, plan, planned.tasks)

    def make_env(task_id: int) -> PointMassEnv:
        return PointMassEnv(task_id=task_id, image_size=64)

    recording = Recording(run_dir, every_step=every_step)
    return list(evaluate(make_env=make_env, policy=policy, plan=plan, done=done, recording=recording))
