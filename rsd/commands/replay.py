"""env=replay of eval.py: a policy in the frames of a data set, with no simulator. Knows Hydra and the policy.

What surprises first: of eval.py's settings those that tell how episodes run mean nothing here, and are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from rsd import interrupts
from rsd.commands.configured import configured_policy, is_typed, policy_fields, require_base
from rsd.commands.mixtures import require_one
from rsd.commands.requeued import interrupted
from rsd.commands.run_folder import begin_run
from rsd.differences import differences, told
from rsd.errors import SettingError
from rsd.evaluation.parallel import device_names
from rsd.evaluation.plan import PLAN_FILE, REPLAY, PlanError, describe_policy
from rsd.evaluation.replay import (
    Replay,
    Replayed,
    Yardstick,
    check_every,
    chosen_episodes,
    replay,
    resume_replayed,
)
from rsd.evaluation.replay_report import HELD_OUT, TRAINING, Training, build_report, flat_metrics, write_replay_report
from rsd.evaluation.report import REPORT_HTML, log_results
from rsd.evaluation.results import RESULTS_FILE
from rsd.models.openvla.published import TRAINING_FILE
from rsd.policy import VLAPolicy
from rsd.progress import Progress
from rsd.record import read_json, write
from rsd.runs import CONFIG_FILE, METRICS_FILE, PROVENANCE_FILE, read_yaml
from rsd.types import ReadsInstructions

SCHEMA = f"{REPLAY} 1"
OF_EPISODES = (  # settings of a closed loop
    "tasks", "num_trials", "save_videos", "num_workers", "render_devices", "video_every_step", "simulator_timeout_s",
    "delay", "async", "ablation", "stopping", "shard", "shards",
)  # fmt: skip


def evaluate_replay(cfg: DictConfig, overrides: Sequence[str]) -> float | None:
    """Replay what the configuration says, or the rest of it; returns l1 of the held-out episodes.

    Args:
        cfg: eval.py's, with env=replay.
        overrides: What was typed.

    Raises:
        SettingError: something was typed that means nothing without a simulator, the data are a mixture, or the policy
            is no VLAPolicy.
        PlanError: the run was begun with other settings.
    """
    check_typed(overrides)
    require_one(cfg)
    asked: Replay = instantiate(cfg.env.replay)
    require_base(cfg)
    fields = policy_fields(cfg, overrides)
    data_dir = Path(cfg.env.make.dataset_dir)
    run_dir = begin_run(cfg, reads={**fields.get("checkpoints", {}), "data": data_dir})
    policy = configured_policy(cfg, overrides, device_names(cfg.device)[0])
    if not isinstance(policy, VLAPolicy):
        raise SettingError(
            f"env=replay measures in the policy's own space, and a {type(policy).__name__} tells none; give a policy's "
            "folder (policy=FOLDER) or compose one from the groups"
        )
    check_every(asked.every, policy.num_open_loop_steps)
    spec = policy.base.spec
    recorded = instantiate(cfg.env.make)(
        views=spec.views, chunk_length=spec.chunk_length, proprio=spec.proprio_dim is not None
    )
    offered = recorded.proprio_dim if spec.proprio_dim is not None else 0
    policy.contract.check(views=spec.views, proprio_dim=offered, action_dim=len(recorded.space.action))
    if isinstance(policy, ReadsInstructions):
        where = recorded.frames[TRAINING].instructions()
        policy.check_instructions(list(where), where)
    counts = {HELD_OUT: None, TRAINING: asked.num_train_episodes}
    planned = {split: chosen_episodes(recorded.frames[split], count) for split, count in counts.items()}
    plan = {
        "data": recorded.frames[TRAINING].content_id(),
        "episodes": planned,
        "every": asked.every,
        "units": list(recorded.units),
        "rate": recorded.rate,
        "seed": cfg.seed,
        "max_batch": cfg.max_batch,
        "policy": json.loads(json.dumps(dataclasses.asdict(describe_policy(fields)))),
    }
    base = fields.get("checkpoints", {}).get("base")
    training = None if base is None else training_of(Path(base))
    plan["training"] = None if training is None else dataclasses.asdict(training)
    keep_replay_plan(run_dir, plan)
    done = resume_replayed(run_dir / RESULTS_FILE, planned)
    lines = replay(
        policy,
        recorded.frames,
        planned,
        done,
        asked=asked,
        yardstick=Yardstick(
            space=recorded.space,
            robot=spec.space,
            limits=spec.space.limits,
            clip=cfg.protocol.clip_actions,
            median=recorded.median,
            chunk_length=spec.chunk_length,
        ),
        file_paths=recorded.file_paths,
        seed=cfg.seed,
        max_batch=cfg.max_batch,
        run_dir=run_dir,
    )
    interrupts.in_order()  # what was replayed is reported
    results, finished = list(done), True
    try:
        with Progress("episodes", total=sum(map(len, planned.values())), done=len(done), interval_s=0) as progress:
            for result in lines:
                results.append(result)
                progress.reach(len(results), in_words(result))
    except KeyboardInterrupt:
        finished = False
    report = build_report(
        results,
        plan=plan,
        training=training,
        config=read_yaml(run_dir / CONFIG_FILE),
        provenance=read_json(run_dir / PROVENANCE_FILE),
    )
    write_replay_report(run_dir, report)
    for line in (f"verdict: {report['verdict']['text']}", *(f"note: {note}" for note in report["notes"])):
        print(line)
    print(f"report: {run_dir / REPORT_HTML}")
    if not finished:
        interrupted(run_dir, what="episode", done=len(results), before=len(done))
    logger = instantiate(cfg.logger)(run_dir=run_dir)
    logger.log_hyperparams(report["config"])
    logger.log_metrics(flat_metrics(report))
    logger.log_files([run_dir / REPORT_HTML])
    log_results(logger, run_dir)
    return flat_metrics(report).get("l1")


def check_typed(overrides: Sequence[str]) -> None:
    """See that nothing is typed that only a closed loop reads.

    Raises:
        SettingError: something is.
    """
    typed = [one for one in overrides if is_typed([one], *OF_EPISODES)]
    if typed:
        raise SettingError(
            f"{', '.join(typed)}: env=replay runs no episodes, so that means nothing; leave it out, or choose the env "
            "of a simulator"
        )


def keep_replay_plan(run_dir: Path, plan: dict[str, Any]) -> None:
    """Write plan.json at a first start; at a resume hold the plan to the stored one.

    Raises:
        PlanError: it is another one.
    """
    path = run_dir / PLAN_FILE
    stored = read_json(path)
    if stored is None:
        write(path, {"schema": SCHEMA, **plan})
        return
    before = {name: value for name, value in stored.items() if name not in ("schema", "checksum")}
    if different := differences(before, plan):
        raise PlanError(
            f"cannot resume {run_dir}: it was planned otherwise: {told(different)}. Put that back to continue the run, "
            "or start a new one without resume"
        )


def training_of(checkpoint: Path) -> Training | None:
    """What training said of a base model: in its checkpoint, or in the folder of the run that it lies in; None where
    neither does."""
    folder = checkpoint.resolve()
    own = (read_json(folder / "checkpoint.json") or {}).get("provenance", {})
    data = own.get("data") or (read_json(folder / TRAINING_FILE) or {}).get("data")
    found = {str(checkpoint / "checkpoint.json"): own.get("metrics") or {}}
    if (folder.parent / CONFIG_FILE).is_file():
        found[str(folder.parent / METRICS_FILE)] = read_json(folder.parent / METRICS_FILE) or {}
    for source, metrics in found.items():
        if "l1" in metrics:
            return Training(metrics["l1"], metrics.get("gripper_accuracy"), source, data)
    return None


def in_words(result: Replayed) -> str:
    """An episode in a line of progress."""
    mean = sum(map(sum, result.l1)) / sum(map(len, result.l1))
    return f"{result.split} episode {result.episode}: {result.num_chunks} chunks, l1 {mean:.4f}"
