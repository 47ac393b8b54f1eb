"""Run folders as eval.py leaves them, with given outcomes, for tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import OmegaConf

from rsd.evaluation.results import append_result
from rsd.types import EpisodeResult

CRASH = "RuntimeError: CUDA error"


def config(*, seed: int = 7, num_tasks: int = 2, num_trials: int = 5, **values) -> dict:
    """A resolved evaluation config, cut down to what is read; `env` and others can be replaced."""
    env = {"num_tasks": num_tasks, "make": {"protocol": "openvla_oft-1", "max_steps": 60, "allow_mujoco_version": None}}
    return {
        "seed": seed,
        "env": env,
        "tasks": None,
        "num_trials": num_trials,
        "num_workers": 1,
        "resume": None,
    } | values


def provenance(*, device: str = "cpu (1 threads)", mujoco: str = "3.2.3", decoding: str = "l1") -> dict:
    start = {"time": "2026-01-01T00:00:00+00:00", "rsd": "0.1.0", "packages": {"mujoco": mujoco}, "device": device}
    return {"choices": {"model": "oft_tiny", "decoding": decoding}, "starts": [start]}


def write_run(
    run_dir: Path,
    outcomes: dict[int, str],
    *,
    configuration: dict | None = None,
    made_with: dict | None = None,
    suite: str = "point_mass",
    **fields,
) -> Path:
    """Write a run folder.

    Args:
        outcomes: Task id to one character an init state: "+" success, "-" failure, "!" crash, " " not run.
        configuration, made_with: Content of config.yaml and provenance.json; None leaves the file out.
        fields: More of EpisodeResult, the same in every episode.
    """
    run_dir.mkdir()
    for task_id, row in outcomes.items():
        for init_state_id, mark in enumerate(row):
            if mark != " ":
                error = CRASH if mark == "!" else None
                result = EpisodeResult(
                    suite, task_id, f"reach <goal> {task_id}", init_state_id, 1, mark == "+", 20, error=error, **fields
                )
                append_result(run_dir / "results.jsonl", result)
    if configuration is not None:
        (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(configuration)))
    if made_with is not None:
        (run_dir / "provenance.json").write_text(json.dumps(made_with))
    return run_dir
