"""A policy's actions in recorded episodes, kept beside its closed loop: `open_loop` of eval.py. Knows Hydra and policy.

What surprises first: it is done before the episodes, so that data that are not there cost none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from rsd.clock import Clock
from rsd.errors import SettingError
from rsd.evaluation.open_loop import MOST_EPISODES, OPEN_LOOP_FILE, executed, keep_executed, observed
from rsd.evaluation.replay import HELD_OUT, chosen_episodes
from rsd.models.openvla.text import UnknownWordError
from rsd.policy import VLAPolicy
from rsd.space import LIBERO_GRIPPER
from rsd.types import InstructionError, Policy


def keep_open_loop(cfg: DictConfig, policy: Policy, clock: Clock, run_dir: Path) -> None:
    """Write what the policy executes in held-out episodes of cfg.open_loop into the run's folder, if it is not there.

    Raises:
        SettingError: the policy is no VLAPolicy of LIBERO's actions.
        InstructionError: the data set has a task that the policy does not understand.
        DataError: the data set cannot be read.
    """
    path = run_dir / OPEN_LOOP_FILE
    if cfg.get("open_loop") is None or path.is_file():
        return
    if not isinstance(policy, VLAPolicy) or policy.base.spec.space.gripper != LIBERO_GRIPPER:
        raise SettingError(
            f"open_loop measures LIBERO's actions in millimetres and degrees, and a {type(policy).__name__} that has "
            "none of them cannot be held to it; set open_loop=null"
        )
    spec = policy.base.spec
    recorded = instantiate(cfg.open_loop)(
        views=spec.views, chunk_length=spec.chunk_length, proprio=spec.proprio_dim is not None
    )
    frames = recorded.frames[HELD_OUT]
    _check_tasks(policy, frames.instructions(), cfg.open_loop.dataset_dir)
    numbers = chosen_episodes(frames, MOST_EPISODES)
    actions = executed(
        policy,
        [observed(frames, number) for number in numbers],
        clock=clock,
        seed=cfg.seed,
        max_batch=cfg.max_batch,
        clip=cfg.protocol.clip_actions,
        limits=spec.space.limits,
    )
    keep_executed(path, dict(zip(numbers, actions, strict=True)))


def _check_tasks(policy: VLAPolicy, tasks: Mapping[str, str], dataset_dir: str) -> None:
    """See that the policy understands every task of a data set, told with its episodes."""
    for task, where in tasks.items():
        try:
            policy.check_instructions([task], tasks)
        except UnknownWordError:
            raise InstructionError(
                f"{dataset_dir}, which open_loop shows to the policy, has the task {task!r} ({where}), whose words "
                "it was not trained on; give data of its own tasks (data=, paths.data=), or set open_loop=null"
            ) from None
    policy.check_instructions(list(tasks), tasks)
