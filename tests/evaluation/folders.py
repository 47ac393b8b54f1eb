"""Run folders of PointMassEnv, as eval.py leaves them."""

from __future__ import annotations

from pathlib import Path

from rsd.evaluation.evaluate import Recording, evaluate, plan_episodes, resume_results
from rsd.types import EpisodeResult, Policy
from tests.fakes import PointMassEnv

CONFIG = "env: {num_tasks: 3}\ntasks: null\nnum_trials: 4\n"


def make_run(
    run_dir: Path, policy: Policy, *, num_trials: int = 4, save_videos: int = 0, every_step: bool = False
) -> list[EpisodeResult]:
    """Evaluate on three tasks."""
    plan = plan_episodes(
        num_tasks=3, num_init_states=5, tasks=None, num_trials=num_trials, seed=0, save_videos=save_videos
    )
    done = resume_results(run_dir, plan)

    def make_env(task_id: int) -> PointMassEnv:
        return PointMassEnv(task_id=task_id, image_size=64)

    recording = Recording(run_dir, every_step=every_step)
    return list(evaluate(make_env=make_env, policy=policy, plan=plan, done=done, recording=recording))
