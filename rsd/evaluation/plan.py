"""What a run was meant to measure: plan.json in its folder, written once at a first start.

Everybody who judges a run (reports, comparisons, published rates) reads this record, and never the config, whose key
names change. A folder without plan.json that was begun at 7eff0a3 has its plan derived from its config; see
`rsd.evaluation.old_runs`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np

from rsd.clock import ClockRecord
from rsd.differences import differences, told
from rsd.errors import RSDError
from rsd.record import EntryError, check_seal, conform, read, shown, unsealed, write
from rsd.settings import Count, Length, Natural, Processes, Seed, Share, checked
from rsd.types import EpisodeResult, Task

PLAN_FILE = "plan.json"
SCHEMA = 1
REPLAY = "replay"  # begins the schema of a replay's plan, see rsd/commands/replay.py
MAY_DIFFER = ("num_workers",)  # between the starts of one run


class PlanError(RSDError, ValueError):
    """The requested episodes do not exist, or a stored plan cannot be read or is another one."""


@dataclass(frozen=True)
class PlannedEpisode:
    """One episode to run: which task, which init state, the policy's seed, and whether to record a video."""

    task_id: Natural
    init_state_id: Natural
    seed: Seed
    record: bool


@dataclass(frozen=True)
class Protocol:
    """How episodes run.

    Attributes:
        name: Name and version, "openvla_oft-1".
        values: What environments are made with and the loop is told (num_wait_steps, image_size, clip_actions, …).
    """

    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Stopping:
    """A rule that may end the run early: its name, and its values ("rate", "alpha", …)."""

    name: str
    values: dict[str, float]


@dataclass(frozen=True)
class CheckpointName:
    """A part's checkpoint: the last part of its path, and its weights' SHA-256 where the folder tells."""

    name: str
    sha256: str | None


class _Named(TypedDict):
    """What a plan tells of a checkpoint.json."""

    sha256: NotRequired[str | None]


@dataclass(frozen=True)
class PolicyDescription:
    """Which policy.

    Attributes:
        model, decoding, target: Names of the base model, the decoding and what decides; None when it has none.
        draft: Name of who drafts ("early", "micro", a control; of a policy's folder the part); None when nobody does.
        unnorm_key: The statistics that actions are un-normalised with.
        num_open_loop_steps: Actions executed of a chunk.
        clock: How late chunks were, and what the robot did meanwhile; None where the simulator waits for them.
        options: The decoding's own ("num_draft_stages", …).
        base: What the base model was loaded with ("views", "dtype", …).
        checkpoints: Part ("base", "tokenizer", "head", "draft") to its checkpoint, without parts that are not used.
    """

    model: str | None = None
    decoding: str | None = None
    target: str | None = None
    draft: str | None = None
    unnorm_key: str | None = None
    num_open_loop_steps: Count | None = None
    clock: ClockRecord | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoints: dict[str, CheckpointName] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """The part of a plan that one run does: the index-th of `of`, from 0."""

    index: Natural
    of: Count


@dataclass(frozen=True)
class Plan:
    """Attributes:
    seed: The run's; every episode's own follows from it.
    num_trials: Episodes of each task; trial i starts from init state i.
    num_workers, max_batch: Processes that ran episodes, and the largest number of observations in one call of the
        policy: with more than one of either, milliseconds are those of a busy machine.
    variant: A perturbed version of the suite, or None.
    ablation: What was withheld from the policy (the class's name, of a broken camera with its options), or None.
    stopping: The rule that may end the run early, or None.
    score_versions: Packages whose version changes scores.
    allowed_versions: Package to a version that was accepted by name although scores are not comparable.
    protocol, policy: See there.
    tasks: Those of the planned episodes, as known before an environment was built.
    episodes: In the order in which they are run.
    shard: Which part of the episodes this run does, or None: all of them.
    """

    seed: Seed
    num_trials: Count
    num_workers: Processes
    max_batch: Count
    variant: str | None
    ablation: str | None
    stopping: Stopping | None
    score_versions: tuple[str, ...]
    allowed_versions: dict[str, str]
    protocol: Protocol
    policy: PolicyDescription
    tasks: tuple[Task, ...]
    episodes: tuple[PlannedEpisode, ...]
    shard: Shard | None = None

    @property
    def part(self) -> tuple[PlannedEpisode, ...]:
        """The episodes that this run does. Those of a shard follow each other, so that it has few tasks."""
        if self.shard is None:
            return self.episodes
        first, stop = (len(self.episodes) * end // self.shard.of for end in (self.shard.index, self.shard.index + 1))
        return self.episodes[first:stop]

    @property
    def suite(self) -> str:
        """Name of the suite, with its variant."""
        return self.tasks[0].suite

    def to_json(self) -> dict[str, Any]:
        """As it stands in plan.json; `from_json` is the inverse."""
        record = {"schema": SCHEMA, **json.loads(json.dumps(dataclasses.asdict(self)))}
        return {name: value for name, value in record.items() if name != "shard" or value is not None}

    def settings(self) -> dict[str, Any]:
        """Everything that is common to all episodes, nested: without the lists of tasks and episodes, but with
        num_tasks and, where all tasks have the same one, max_steps. What the policy does not tell is left out."""
        record = self.to_json()
        del record["schema"], record["tasks"], record["episodes"]
        record["policy"] = {name: value for name, value in record["policy"].items() if value is not None}
        limits = sorted({task.max_steps for task in self.tasks})
        return record | {"num_tasks": len(self.tasks), "max_steps": limits[0] if len(limits) == 1 else limits}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str = PLAN_FILE) -> Plan:
        """The plan in a JSON object.

        Args:
            where: Its file, for messages.

        Raises:
            PlanError: it is of another schema, lacks something, holds something unknown or out of range, or its
                episodes are not `num_trials` of each task.
        """
        if not isinstance(record, Mapping) or "schema" not in record:
            raise PlanError(f"{where} is no plan of an evaluation: it has no 'schema'")
        values = dict(record)
        if str(values["schema"]).startswith(REPLAY):
            raise PlanError(
                f"{where} is of a replay of recorded frames (env=replay), which has no success rate; its report.html "
                "says what there is"
            )
        if (schema := values.pop("schema")) != SCHEMA:
            raise PlanError(
                f"{where} has schema {shown(schema)}, expected {SCHEMA}; read it with the version that wrote it"
            )
        try:
            conform(values, {"policy": {"checkpoints": dict[str, Any]}}, where)
            plan: Plan = conform(unsealed(values), cls, where)
            if plan.stopping is not None:
                conform(plan.stopping.values, {"rate": Share}, where, "stopping.values")
            check_seal(dict(record), where)
        except EntryError as error:
            raise PlanError(f"{error}; restore it as eval.py wrote it") from error
        for name in ("tasks", "episodes"):
            if not getattr(plan, name):
                raise PlanError(f"{where}: entry {name!r} is empty; restore it as eval.py wrote it")
        tasks = {task.task_id for task in plan.tasks}
        places = {(one.task_id, one.init_state_id) for one in plan.episodes}
        fits = all(task_id in tasks and state < plan.num_trials for task_id, state in places)
        if not fits or not len(plan.tasks) * plan.num_trials == len(places) == len(plan.episodes):
            raise PlanError(
                f"{where}: entry 'episodes' has {len(plan.episodes)}, expected num_trials ({plan.num_trials}) of each "
                f"of the {len(plan.tasks)} tasks, from init states 0, 1, …; restore it as eval.py wrote it"
            )
        check_shard(plan, where)
        return plan


def check_shard(plan: Plan, where: str = "") -> None:
    """See that a plan's shard is one, and has an episode.

    Raises:
        PlanError: it has not, or a stopping rule looks at all episodes.
    """
    place = f"{where}: " if where else ""
    if plan.shard is None:
        return
    if plan.shard.index >= plan.shard.of:
        raise PlanError(f"{place}shard is {plan.shard.index}, expected 0..{plan.shard.of - 1}: shards={plan.shard.of}")
    if plan.shard.of > len(plan.episodes):
        raise PlanError(f"{place}shards is {plan.shard.of}, expected at most the {len(plan.episodes)} planned episodes")
    if plan.stopping is not None:
        raise PlanError(f"{place}stopping= looks at the episodes of one run, which shards= divides; leave one out")


def read_plan_file(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        PlanError: see `Plan.from_json`; or the file is not JSON.
    """
    record = read(path, dict[str, Any], error=PlanError, remedy="restore it as eval.py wrote it", raw=True)
    return Plan.from_json(record, str(path))


def plan_episodes(
    *, num_tasks: int, num_init_states: int, tasks: Sequence[int] | None, num_trials: int, seed: int, save_videos: int
) -> list[PlannedEpisode]:
    """The episodes of a run, task by task; trial i starts from init state i.

    Args:
        num_tasks, num_init_states: What the suite has.
        tasks: Task ids, or None for all.
        num_trials: Episodes per task.
        seed: The run's seed; every episode gets its own one, whatever the order of the episodes.
        save_videos: Videos per task, of the first trials.

    Raises:
        PlanError: a task id does not exist or is there twice, or more trials than init states are asked for.
    """
    tasks = list(range(num_tasks)) if tasks is None else list(tasks)
    unknown = [task for task in tasks if not 0 <= task < num_tasks]
    if unknown:
        raise PlanError(f"tasks {unknown} do not exist; the suite has task ids 0..{num_tasks - 1}")
    if len(set(tasks)) != len(tasks):
        raise PlanError(f"tasks={tasks} names a task twice; name each once and set num_trials instead")
    if not 1 <= num_trials <= num_init_states:
        raise PlanError(f"num_trials is {num_trials}, expected 1..{num_init_states}: each has its own init state")
    return [
        PlannedEpisode(task, trial, episode_seed(seed, task, trial), record=trial < save_videos)
        for task in tasks
        for trial in range(num_trials)
    ]


def episode_seed(seed: int, task_id: int, trial: int) -> int:
    """Seed of an episode: 0..2**32-1, a function of the run's seed, the task and the trial alone."""
    return int(np.random.SeedSequence((seed, task_id, trial)).generate_state(1)[0])


@checked
def make_plan(
    *,
    tasks: Sequence[Task],
    task_ids: Annotated[Sequence[Natural], Length()] | None,
    num_init_states: Count,
    num_trials: Count,
    seed: Seed,
    save_videos: Natural,
    num_workers: Processes,
    max_batch: Count,
    variant: str | None,
    environment: Mapping[str, Any],
    clip_actions: bool,
    score_versions: Sequence[str],
    allowed_versions: Mapping[str, str | None],
    policy: Mapping[str, Any],
    ablation: str | None = None,
    stopping: Stopping | None = None,
    shard: Natural = 0,
    shards: Count = 1,
) -> Plan:
    """The plan of a run that begins now.

    Args:
        tasks: All of the suite, in its order.
        task_ids: Those to evaluate, or None for all.
        num_init_states, num_trials, seed, save_videos: See `plan_episodes`.
        environment: What environments are made with: arguments of their constructor; those that a Task or another field
            of the plan tells are left out of the protocol's values, and so are names with a leading underscore.
        clip_actions: See `rsd.queue.executed_actions`.
        allowed_versions: Package to a version or None.
        policy: Fields of PolicyDescription; checkpoints as part to path, or None for a part that is not used.
        variant, score_versions, num_workers, max_batch, ablation, stopping: See `Plan`.
        shard, shards: Which part of the episodes the run does, from 0, and how many there are.

    Raises:
        PlanError: see `plan_episodes` and `check_shard`; or what a task says of itself is out of range.
    """
    episodes = plan_episodes(
        num_tasks=len(tasks),
        num_init_states=num_init_states,
        tasks=task_ids,
        num_trials=num_trials,
        seed=seed,
        save_videos=save_videos,
    )
    planned = sorted({episode.task_id for episode in episodes})
    for task_id in planned:
        try:
            conform(json.loads(json.dumps(dataclasses.asdict(tasks[task_id]))), Task, f"task {task_id} of the suite")
        except EntryError as error:  # nobody could read the plan again
            raise PlanError(f"{error}; correct what env.tasks makes") from error
    plan = Plan(
        seed=seed,
        num_trials=num_trials,
        num_workers=num_workers,
        max_batch=max_batch,
        variant=variant,
        ablation=ablation,
        stopping=stopping,
        score_versions=tuple(score_versions),
        allowed_versions={package: version for package, version in allowed_versions.items() if version is not None},
        protocol=Protocol(tasks[0].protocol, protocol_values(environment, clip_actions)),
        policy=describe_policy(policy),
        tasks=tuple(tasks[task_id] for task_id in planned),
        episodes=tuple(episodes),
        shard=Shard(shard, shards) if shards > 1 or shard > 0 else None,
    )
    check_shard(plan)
    return plan


def protocol_values(environment: Mapping[str, Any], clip_actions: bool | None) -> dict[str, Any]:
    """`Protocol.values` from what environments are made with."""
    told_elsewhere = ("suite", "variant", "max_steps", "protocol", "allow_mujoco_version")
    values = {name: value for name, value in plain(environment).items() if name not in told_elsewhere}
    return values if clip_actions is None else values | {"clip_actions": clip_actions}


def describe_policy(fields: Mapping[str, Any]) -> PolicyDescription:
    """A policy's description from its fields, see `make_plan`; reads each checkpoint's SHA-256 if there is one."""
    paths = fields.get("checkpoints") or {}
    checkpoints = {part: _checkpoint_name(Path(path)) for part, path in paths.items() if path is not None}
    options, base = plain(fields.get("options") or {}), base_values(fields.get("base") or {})
    return PolicyDescription(**{**fields, "options": options, "base": base, "checkpoints": checkpoints})


def base_values(node: Mapping[str, Any]) -> dict[str, Any]:
    """`PolicyDescription.base` from what the base model is loaded with."""
    return {name: value for name, value in plain(node).items() if name not in ("checkpoint", "unnorm_key")}


def _checkpoint_name(folder: Path) -> CheckpointName:
    path = folder / "checkpoint.json"
    if not path.is_file():
        return CheckpointName(folder.name, None)
    record = read(path, _Named, error=PlanError, remedy="copy it again")
    return CheckpointName(folder.name, record.get("sha256"))


def plain(node: Any) -> Any:
    """A config node without the names that say what is to be built of it."""
    if isinstance(node, Mapping):
        return {name: plain(value) for name, value in node.items() if not name.startswith("_")}
    return [plain(value) for value in node] if isinstance(node, list | tuple) else node


def keep_plan(run_dir: Path, plan: Plan) -> None:
    """Write plan.json at a first start; at a resume hold the plan to the stored one.

    Raises:
        PlanError: the stored plan cannot be read, or is another one.
    """
    path = run_dir / PLAN_FILE
    if not path.is_file():
        write(path, plan.to_json())
        return
    before, now = (_comparable(one) for one in (read_plan_file(path), plan))
    different = differences(before, now, MAY_DIFFER)
    if different:
        raise PlanError(
            f"cannot resume {run_dir}: it was planned otherwise: {told(different)}. "
            "Put that back to continue the run, or start a new one without resume"
        )


def missing_places(episodes: Sequence[PlannedEpisode], results: Sequence[EpisodeResult]) -> list[tuple[int, int]]:
    """(task_id, init_state_id) of the planned episodes that have no result, in the plan's order."""
    found = {(result.task_id, result.init_state_id) for result in results}
    places = [(episode.task_id, episode.init_state_id) for episode in episodes]
    return [place for place in places if place not in found]


def hold_to_plan(
    results: Sequence[EpisodeResult], episodes: Sequence[PlannedEpisode], tasks: Sequence[Task], path: Path
) -> None:
    """See that every line of results.jsonl is of the planned episode that it names.

    Args:
        results: All lines, in their order.
        episodes, tasks: The plan's.
        path: Their file, for messages.

    Raises:
        PlanError: an episode was not planned; or its suite, instruction, seed or protocol is another one, or it has
            more steps than the task's limit.
    """
    planned = {(episode.task_id, episode.init_state_id): episode for episode in episodes}
    found = {(result.task_id, result.init_state_id) for result in results}
    if strange := sorted(found - planned.keys()):
        missing = missing_places(episodes, results)
        raise PlanError(
            f"{path} holds episodes that this run does not plan: (task, init state) {shown(strange)}; planned, and not "
            f"there: {shown(missing) if missing else 'none'}; remove those lines, or restore the file"
        )
    described = {task.task_id: task for task in tasks}
    for number, result in enumerate(results, start=1):
        task, episode = described[result.task_id], planned[result.task_id, result.init_state_id]
        line = f"{path}, line {number} is not of this run: entry"
        place = f"of task {result.task_id}, init state {result.init_state_id}; remove that line, or restore the file"
        for entry, expected in {
            "suite": task.suite,
            "instruction": task.instruction,
            "seed": episode.seed,
            "protocol": task.protocol,
        }.items():
            own = getattr(result, entry)
            unsaid = own == "" and (entry == "protocol" or result.error is not None)  # before protocols; a dead worker
            if own != expected and not unsaid:
                raise PlanError(f"{line} {entry!r} is {shown(own)}, its plan has {shown(expected)} {place}")
        if 0 < task.max_steps < result.num_steps:  # of some old runs nobody knows it: 0
            limit = f"the step limit {task.max_steps} in its plan"
            raise PlanError(f"{line} 'num_steps' is {result.num_steps}, above {limit} {place}")


def _comparable(plan: Plan) -> dict[str, Any]:
    """The plan as JSON with tasks and episodes by name, and checkpoints by content, whatever folder they lie in now;
    without what only the machine decides, its versions."""
    record = plan.to_json()
    tasks = {str(task["task_id"]): task | {"versions": {}} for task in record["tasks"]}
    episodes = [list(episode.values()) for episode in record["episodes"]]
    known = record["policy"]["checkpoints"]
    told = {part: {name: one[name] for name in (("sha256",) if one["sha256"] else one)} for part, one in known.items()}
    policy = record["policy"] | {"checkpoints": told}
    return record | {"tasks": tasks, "episodes": episodes, "policy": policy}
