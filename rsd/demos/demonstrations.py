"""One demonstration: the scripted expert on a LIBERO task, from a random placement, recorded step by step.

What surprises first: labels are the expert's undisturbed actions, but what is executed may be disturbed, so replaying
the labels does not reproduce the episode. And an episode ends at the first success, because an `Env` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rsd.demos.hand import holds_something
from rsd.demos.skills import skill_for
from rsd.envs.placements import PlacementError
from rsd.silence import simulator_turn
from rsd.types import IMAGE_VIEWS, Env, Observation

if TYPE_CHECKING:
    from rsd.envs.libero import LiberoEnv

NO_OP_NORM = 1e-4  # of the first six dims; less, with an unchanged gripper, is a no-op: the published sets' filter
NOISE_PROBABILITY = 0.5  # share of the free-space steps that are disturbed
ROTATION_NOISE = 0.5  # rotation noise relative to position noise
EMPTY_STEPS = 12  # with an empty hand: what was put down is judged by then, and fingers have closed or opened
DISPLACED_M = 0.03  # an object this far outside the region its task describes was thrown there by overlapping placement


class RandomStartEnv(Env, Protocol):
    """An Env that can also start anywhere, as demonstrations do."""

    def reset_random(self, seed: int) -> Observation:
        """Like `reset`, from a random placement that depends on `seed` alone.

        Raises:
            PlacementError: it is an evaluation init state.
        """


class Expert(Protocol):
    """Someone who knows the simulator's state and solves the task that the environment is in."""

    def begin(self) -> None:
        """Look at the scene just after a reset."""

    def scene_is_as_described(self) -> bool:
        """Whether the instruction is true of this placement; to be asked after `begin`."""

    def act(self, observation: Observation | None) -> tuple[np.ndarray, bool]:
        """The right action now, [A], and whether a disturbance would be harmless; None without rendering."""

    def joint_state(self) -> np.ndarray:
        """Arm joint angles, [7], rad."""

    def holds_something(self) -> bool:
        """Whether anything is between the fingers."""


@dataclass
class Demonstration:
    """What one attempt gave. Steps that were no-ops are dropped from the lists, which have n entries.

    Attributes:
        outcome: "success", "failure" (step limit), or of a placement that was not tried: "displaced" (the instruction
            is not true of it), "reserved" (it is an evaluation's), "skipped" (whoever acted before has solved the task,
            or never let go).
        instruction: The task in words.
        num_steps: Executed steps, no-ops included; without those of whoever acted before.
        actions: Undisturbed actions, each [7], robot units, gripper -1 open, +1 close.
        states: Observation.proprio before each action, each [8].
        joint_states: Arm joint angles before each action, each [7], rad.
        images: View name to the pictures before each action, each [H, W, 3] uint8 or what it was stored as; empty
            without rendering.
    """

    outcome: str
    instruction: str
    num_steps: int = 0
    actions: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    joint_states: list[np.ndarray] = field(default_factory=list)
    images: dict[str, list[Any]] = field(default_factory=lambda: {view: [] for view in IMAGE_VIEWS})


class LiberoExpert:
    """Scripted expert for LIBERO tasks whose goals rsd.demos.skills knows how to reach.

    Raises:
        SettingError: a goal is of another kind.
    """

    def __init__(self, env: LiberoEnv) -> None:
        self._env, self._domain = env, env.simulator.env
        goal_state = self._domain.parsed_problem["goal_state"]
        self._skill = skill_for(goal_state, self._domain)
        self._names = [name for goal in goal_state for name in goal[1:]]

    def begin(self) -> None:
        self._skill.begin()

    def scene_is_as_described(self) -> bool:
        """False when overlapping objects were thrown apart in the waiting steps; LIBERO's sampler permits that.

        Objects that have each other's places are held to where they were put.
        """
        problem, moved = self._domain.parsed_problem, self._env.moved
        for name, place in moved.items():
            xy = self._domain.sim.data.body_xpos[self._domain.obj_body_id[name]][:2]
            if np.abs(xy - place).max() > DISPLACED_M:
                return False
        for relation, name, *place in problem["initial_state"]:
            if relation != "on" or name not in self._names or place[0] not in problem["regions"] or name in moved:
                continue
            boxes = problem["regions"][place[0]]["ranges"]  # none for a region on a fixture
            xy = self._domain.sim.data.body_xpos[self._domain.obj_body_id[name]][:2]
            xy = xy - self._domain.workspace_offset[:2]  # regions are meant from the middle of the table
            if boxes and not any(inside(xy, box, DISPLACED_M) for box in boxes):
                return False
        return True

    def act(self, observation: Observation | None) -> tuple[np.ndarray, bool]:
        return self._skill.act()

    def joint_state(self) -> np.ndarray:
        robot = self._domain.robots[0]
        return np.array(self._domain.sim.data.qpos[robot._ref_joint_pos_indexes])

    def holds_something(self) -> bool:
        return holds_something(self._domain)


def inside(xy: np.ndarray, box: Sequence[float], margin: float) -> bool:
    """Whether a point [2] lies in a box (x_min, y_min, x_max, y_max) widened by `margin` on all sides."""
    return bool(box[0] - margin <= xy[0] <= box[2] + margin and box[1] - margin <= xy[1] <= box[3] + margin)


def is_no_op(action: np.ndarray, last_gripper: float | None) -> bool:
    """Whether an action [7] moves nothing: no motion, with the gripper command of the last kept action (None: none)."""
    still = float(np.linalg.norm(action[:6])) < NO_OP_NORM
    return bool(still and (last_gripper is None or action[6] == last_gripper))


def drawn_scale(random: np.random.Generator, noise_scales: Sequence[float]) -> float:
    """Noise scale of an episode: the first that its generator gives, so that it can be known from the seed alone."""
    return float(random.choice(np.asarray(noise_scales, dtype=np.float64)))


def disturb(action: np.ndarray, scale: float, random: np.random.Generator) -> np.ndarray:
    """The action with Gaussian noise of standard deviation `scale` on its motion, in half of the calls; within ±1."""
    if scale == 0.0 or random.random() >= NOISE_PROBABILITY:
        return action
    noise = scale * random.standard_normal(6) * np.array([1, 1, 1, ROTATION_NOISE, ROTATION_NOISE, ROTATION_NOISE])
    disturbed = action.copy()
    disturbed[:6] = np.clip(action[:6] + noise, -1.0, 1.0)
    return disturbed


def lead_in(
    env: Env, lead: Expert, observation: Observation, num_steps: int, scale: float, random: np.random.Generator
) -> Observation | None:
    """Let the lead act for at least `num_steps` steps and until its hand has been empty and at rest for EMPTY_STEPS.

    Fingers that are about to close upon something are empty, too. An expert who took over from there would show how to
    give up a grasp that is going well.

    Returns:
        What is seen then; None when it has solved the task before, or the step limit came first.
    """
    lead.begin()
    empty_steps, last_gripper = EMPTY_STEPS, None  # in a row so far; an episode begins with an empty hand
    for step in range(env.task.max_steps):
        if step >= num_steps and empty_steps >= EMPTY_STEPS:
            return observation
        action, harmless = lead.act(observation)
        with simulator_turn():
            taken = env.step(disturb(action, scale, random) if harmless else action)
        assert taken.observation is not None  # it was asked for
        observation = taken.observation
        moves = last_gripper is not None and action[6] != last_gripper
        empty_steps, last_gripper = 0 if moves or lead.holds_something() else empty_steps + 1, action[6]
        if taken.success:
            return None
    return None


def record_demonstration(
    env: RandomStartEnv,
    expert: Expert,
    *,
    seed: int,
    noise_scales: Sequence[float],
    num_tail_steps: int = 0,
    lead: Expert | None = None,
    lead_steps: tuple[int, int] = (0, 0),
    render: bool = True,
    store_picture: Callable[[np.ndarray], Any] = np.asarray,
) -> Demonstration:
    """Let the expert try the placement `seed`, at most env.task.max_steps steps.

    Success comes one to three steps after the gripper begins to open. A policy that predicts chunks would hardly ever
    see the opening at the start of one, therefore the expert goes on for a while.

    With a `lead` the demonstration begins where that one has brought the scene to: the expert shows how to go on from
    another's mistakes.

    Args:
        seed: Decides the placement, the noise scale of the episode and its noise.
        num_tail_steps: Steps recorded after the first success, which must hold to the end; above 0 the environment must
            not end at success.
        lead: Acts before the expert, disturbed like it; nothing of that is recorded.
        lead_steps: Fewest and most steps that the lead acts, evenly drawn. It goes on until its hand has been empty and
            its fingers at rest for EMPTY_STEPS, because the expert begins by opening the hand.
        noise_scales: One of them is drawn for the episode; standard deviation of the action noise in free space.
        render: False to look at success only: the same physics, nothing kept.
        store_picture: What to keep of a picture [H, W, 3], uint8; rsd.jpeg.encode_jpeg, for example.
    """
    try:
        with simulator_turn():
            first = env.reset_random(seed)
    except PlacementError:
        return Demonstration("reserved", env.task.instruction)
    expert.begin()
    if not expert.scene_is_as_described():
        return Demonstration("displaced", env.task.instruction)
    random = np.random.default_rng(seed)
    scale = drawn_scale(random, noise_scales)
    demonstration = Demonstration("failure", env.task.instruction)
    observation: Observation | None = first
    if lead is not None:
        num_steps = int(random.integers(*lead_steps, endpoint=True))
        observation = lead_in(env, lead, first, num_steps, scale, random)
        if observation is None:
            return Demonstration("skipped", env.task.instruction)
        expert.begin()
    last_gripper = None
    steps_left = env.task.max_steps
    solved = False
    while steps_left > 0:
        joint_state = expert.joint_state()
        action, harmless = expert.act(observation)
        if render and not is_no_op(action, last_gripper):
            assert observation is not None  # with `render` every step asks for it
            last_gripper = float(action[6])
            demonstration.actions.append(action)
            demonstration.states.append(observation.proprio)
            demonstration.joint_states.append(joint_state)
            for view in IMAGE_VIEWS:
                demonstration.images[view].append(store_picture(observation.images[view]))
        executed = disturb(action, scale, random) if harmless else action
        with simulator_turn():
            taken = env.step(executed, observe=render)
        observation = taken.observation
        demonstration.num_steps += 1
        steps_left -= 1
        if taken.success and not solved:
            solved, steps_left = True, num_tail_steps
    if solved and taken.success:
        demonstration.outcome = "success"
    return demonstration
