"""All measurements of one policy on one data set, from the frames to the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd.data.datasets import FrameDataset
from rsd.diagnosis import continuity, gripper_timing, movement
from rsd.diagnosis.bootstrap import Estimate, explained, mean, ratio
from rsd.diagnosis.interventions import NONSENSE_WORDS, Answers, Intervention, interventions
from rsd.diagnosis.measurements import Continuity, Gripper, Idle, Measurements, Moved, ProprioAlone, TokenAccuracy
from rsd.diagnosis.moments import EpisodeIndex, Moment, choose_moments, episodes_of
from rsd.diagnosis.proprio_control import held_out_predictions
from rsd.diagnosis.replay import Replay, replay, spread_out, stride_of
from rsd.diagnosis.token_accuracy import demonstrated_tokens, has_tokens, majority, tokens_of
from rsd.models.openvla.base import OpenVLABase
from rsd.models.openvla.text import TextEncoder
from rsd.policy.policy import VLAPolicy
from rsd.policy.sensitivity import chunks_of
from rsd.space import Space
from rsd.types import InstructionError, Observation, Request

DARK = 3.0  # grey levels: a picture whose values scatter by less shows one colour; JPEG alone makes about one of black
WINDOW_CHUNKS = 2  # chunks around a demonstrated closing in which the policy's closing counts
FIRST_CHUNKS = 2  # chunks that are the start of an episode
CONSTANT = 1e-6  # standard deviation below which a dim does not move
END_EFFECTORS = {4: ("x", "y", "z", "gripper"), 7: ("x", "y", "z", "roll", "pitch", "yaw", "gripper")}  # by dims
ANGLES = ("rad", "deg")
NONSENSE_COUNT = 5  # words of a data set in a senseless order

Tell = Callable[[str, int, int], None]  # what is measured, done, of how many


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        num_frames: N moments.
        num_episodes: Episodes that are seen through from end to end, at most.
        batch_size: Frames that the policy is shown at once.
        split: "val" or "all".
        seed: Of the choice of frames, and of noise.
    """

    num_frames: int = 64
    num_episodes: int = 10
    batch_size: int = 16
    split: str = "val"
    seed: int = 0


class Wordless:
    """A text encoder that takes an empty instruction, too."""

    def __init__(self, text: TextEncoder) -> None:
        self._text = text

    def encode(self, instruction: str) -> list[int]:
        return self._text.encode(instruction) if instruction else self._text.without_words()

    def vector(self, instruction: str) -> Tensor | None:
        known = self._text.vector(instruction or self._text.example)
        return known if instruction or known is None else torch.zeros_like(known)  # which no placeholder takes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text, name)


@contextmanager
def wordless(base: OpenVLABase) -> Iterator[None]:
    """Inside, the base model takes an empty instruction."""
    text = base.text
    base.text = Wordless(text)
    try:
        yield
    finally:
        base.text = text


def nonsense(text: TextEncoder, instructions: Sequence[str], seed: int) -> str | None:
    """Words without meaning that the tokenizer takes: of no language, else the data set's own in a senseless order."""
    words = sorted({word for one in instructions for word in one.split()})
    random = np.random.default_rng(seed)
    mixed = " ".join(random.choice(words, size=NONSENSE_COUNT)) if words else ""
    for candidate in (NONSENSE_WORDS, mixed):
        try:
            text.encode(candidate)
        except InstructionError:
            continue
        return candidate
    return None


def ask(policy: VLAPolicy, moments: Sequence[Moment], options: Options, tell: Tell, places: EpisodeIndex) -> Answers:
    """Show the policy all moments as they are, and once for each intervention."""
    base, space = policy.base, policy.base.spec.space
    assert isinstance(base, OpenVLABase)
    shown = [one.own["observation"] for one in moments]
    chunks = chunks_of(policy, shown, options.batch_size)
    felt = np.concatenate([places.frames.trajectories[one].proprio for one in places.episodes])
    planned = list(
        interventions(
            base.views,
            nonsense=nonsense(base.text, places.tasks, options.seed),
            several_tasks=len(places.tasks) > 1,
            proprio_std=felt.std(axis=0) if base.use_proprio else None,
        )
    )
    changed, refused = dict[Intervention, np.ndarray](), dict[str, str]()
    for number, one in enumerate(planned):
        random = np.random.default_rng((options.seed, number))
        try:
            with wordless(base):
                changed[one] = chunks_of(policy, [one.change(moment, random) for moment in moments], options.batch_size)
        except InstructionError as error:
            refused[one.name] = str(error)
        tell("interventions", number + 1, len(planned))
    demonstrated = np.stack([space.to_model(one.own["actions"].numpy()) for one in moments])
    return Answers(chunks, demonstrated, changed, refused)


def measure(
    policy: VLAPolicy, frames: FrameDataset, options: Options, tell: Tell, speaker: VLAPolicy | None = None
) -> tuple[Measurements, list[Moment]]:
    """Everything; the moments come back for pictures.

    Args:
        frames: Of all episodes, with the policy's views and chunk length.
        speaker: The same policy by a decoding over tokens, whose target is held to a majority guess; the policy itself
            where there is none.

    Raises:
        DataError: nothing can be held out, or a picture cannot be decoded.
        InstructionError: the policy does not understand the data set's instructions.
        PolicyError or NotFiniteError: a part says NaN.
    """
    base, space = policy.base, policy.base.spec.space
    assert isinstance(base, OpenVLABase)
    places = EpisodeIndex(frames)
    base.check_instructions(places.tasks)
    moments = choose_moments(places, options.split, options.num_frames, options.seed)
    episodes = episodes_of(moments)
    answers = ask(policy, moments, options, tell, places)
    replays = []
    chosen = spread_out(places, options.split, options.num_episodes)
    stride = stride_of(base.chunk_length, policy.num_open_loop_steps)
    for number, episode in enumerate(chosen):
        replays.append(replay(places, episode, stride, lambda seen: chunks_of(policy, seen, options.batch_size)))
        tell("episodes", number + 1, len(chosen))
    actions = np.concatenate([places.frames.trajectories[one].actions for one in places.episodes])  # [n, A]
    spread = _distance(moments, "other", space)  # [N]
    together = np.array([one.same is not None for one in moments])
    same = _distance([one for one in moments if one.same is not None], "same", space)
    error = np.abs(answers.chunks - answers.demonstrated)  # [N, T, A]
    std = space.to_model(actions).std(axis=0)  # [A]
    measured = Measurements(
        num_frames=len(moments),
        num_episodes=len(set(episodes.tolist())),
        num_replayed=len(replays),
        tasks=places.tasks,
        views=list(base.views),
        dims=dim_names(frames),
        error=mean(answers.error(), episodes),
        error_dims=error.mean(axis=(0, 1)).tolist(),
        robot_error_dims=robot_distance(space, answers.chunks, answers.demonstrated).mean(axis=0).tolist(),
        explained=explained(_scaled_chunks(answers.chunks, std), _scaled_chunks(answers.demonstrated, std), episodes),
        explained_dims=_explained_dims(answers.chunks, answers.demonstrated),
        spread_tasks=mean(spread, episodes),
        spread_episodes=mean(same, episodes[together]) if together.any() else None,
        same_over_other=ratio(same, spread[together], episodes[together]) if together.any() else None,
        variety=ratio(_variety(answers.chunks), _variety(answers.demonstrated), episodes),
        moved=[_moved(space, answers, one, spread, episodes) for one in answers.changed],
        refused=answers.refused,
        dark=_dark(moments, base.views),
        proprio=_proprio(policy, answers, moments, replays, options) if base.use_proprio else None,
        grippers=[_gripper(dim, replays, places, space) for dim in gripper_dims(frames)],
        idle=_idle(replays, places, space, actions),
        continuity=_continuity(policy, moments, replays, space, options),
        tokens=_tokens(speaker or policy, moments, answers, episodes, options),
    )
    return measured, moments


def dim_names(frames: FrameDataset) -> list[str]:
    """Names of the action dims, for people, with the units that the data set declares.

    Those of an end effector where there are as many as it has, and no unit says that they are angles of joints.
    """
    count, grippers = frames.trajectories[0].actions.shape[1], gripper_dims(frames)
    units = frames.demonstrations.layout.units or [""] * count
    names = [f"dim {dim}" for dim in range(count)]
    if count in END_EFFECTORS and units[0] not in ANGLES:
        names = list(END_EFFECTORS[count])
    names = ["gripper" if dim in grippers and len(grippers) == 1 else name for dim, name in enumerate(names)]
    return [f"{name} ({unit})" if unit else name for name, unit in zip(names, units, strict=True)]


def gripper_dims(frames: FrameDataset) -> list[int]:
    """Dims of the actions that are grippers."""
    return list(frames.demonstrations.places.grippers)


def robot_distance(space: Space, chunks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean absolute difference of chunks [N, T, A] in each dim, robot units, [N, A]."""
    return np.abs(space.to_robot(chunks) - space.to_robot(others)).mean(axis=1)


def _distance(moments: Sequence[Moment], to: str, space: Space) -> np.ndarray:
    """L1 between the demonstration's chunk of each moment and that of its `other` or `same` frame, model space, [N]."""
    pairs = [(one.own["actions"].numpy(), getattr(one, to)["actions"].numpy()) for one in moments]
    return np.array([np.abs(space.to_model(own) - space.to_model(other)).mean() for own, other in pairs])


def _variety(chunks: np.ndarray) -> np.ndarray:
    """How far each chunk [N, T, A] is from the mean chunk, [N]."""
    return np.abs(chunks - chunks.mean(axis=0)).mean(axis=(1, 2))


def _scaled_chunks(chunks: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Chunks [N, T, A] in standard deviations of the dims that move, [N, dims]."""
    used = std > CONSTANT
    return (chunks[..., used] / std[used]).reshape(len(chunks), -1)


def _explained_dims(chunks: np.ndarray, demonstrated: np.ndarray) -> list[float | None]:
    """R² of each action dim of chunks [N, T, A]; None where nothing moves."""
    found: list[float | None] = []
    for dim in range(chunks.shape[-1]):
        said, truth = chunks[..., dim], demonstrated[..., dim]
        there = ((truth - truth.mean(axis=0)) ** 2).sum()
        found.append(float(1 - ((said - truth) ** 2).sum() / there) if there > CONSTANT else None)
    return found


def _moved(space: Space, answers: Answers, one: Intervention, spread: np.ndarray, episodes: np.ndarray) -> Moved:
    by_dim, cost, error = answers.moved(one), answers.cost(one), answers.error()
    moved = by_dim.mean(axis=1)
    return Moved(
        name=one.name,
        input=one.input,
        kind=one.kind,
        views=list(one.views),
        alone=one.alone,
        moved=mean(moved, episodes),
        of_spread=ratio(moved, spread, episodes),
        of_error=ratio(moved, error, episodes),
        cost=mean(cost, episodes),
        gain=ratio(cost, cost + error, episodes),
        dims=by_dim.mean(axis=0).tolist(),
        robot_dims=robot_distance(space, answers.changed[one], answers.chunks).mean(axis=0).tolist(),
    )


def _dark(moments: Sequence[Moment], views: Sequence[str]) -> dict[str, float]:
    """View → share of the moments whose picture shows one colour."""
    seen = [one.own["observation"].images for one in moments]
    return {view: float(np.mean([images[view].std() < DARK for images in seen])) for view in views}


def _proprio(
    policy: VLAPolicy, answers: Answers, moments: Sequence[Moment], replays: Sequence[Replay], options: Options
) -> ProprioAlone:
    """The control on all frames that are there: the moments, those that took their inputs' places, and the replays'."""
    space = policy.base.spec.space
    more = [frame for one in moments for frame in (one.other, one.same) if frame is not None]
    frames = [*(one.own for one in moments), *more]
    said = [answers.chunks, chunks_of(policy, [one["observation"] for one in more], options.batch_size)]
    felt = np.concatenate([np.stack([one["observation"].proprio for one in frames]), *(one.proprio for one in replays)])
    chunks = np.concatenate([*said, *(one.chunks for one in replays)])
    shown = np.concatenate([np.stack([one["actions"].numpy() for one in frames]), *(r.demonstrated for r in replays)])
    where = np.concatenate([[one["episode"] for one in frames], *(np.full(len(r.steps), r.episode) for r in replays)])
    truth = space.to_model(shown)
    std = truth.std(axis=(0, 1))
    used = np.flatnonzero(std > CONSTANT)
    inputs = space.proprio_to_model(felt)
    targets = [(one[..., used] / std[used]).reshape(len(one), -1) for one in (chunks, truth)]
    controls = [held_out_predictions(inputs, one, where) for one in targets]
    shape = (len(chunks), -1, len(used))
    by_dim = _explained_dims(controls[0].reshape(shape), targets[0].reshape(shape))
    dims: list[float | None] = [None] * len(std)
    for dim, value in zip(used, by_dim, strict=True):
        dims[dim] = value
    found = [explained(control, target, where) for control, target in zip(controls, targets, strict=True)]
    return ProprioAlone(found[0], found[1], dims)


def _gripper(dim: int, replays: Sequence[Replay], places: EpisodeIndex, space: Space) -> Gripper:
    window = WINDOW_CHUNKS * replays[0].chunks.shape[1]
    pairs = [
        (one.executed(one.demonstrated)[:, dim], one.executed(space.action.unnormalize(one.chunks))[:, dim])
        for one in replays
    ]
    timings = [gripper_timing.timing(demonstrated, executed, window) for demonstrated, executed in pairs]
    where = [one.episode for one in replays]
    delays = [(delay, episode) for one, episode in zip(timings, where, strict=True) for delay in one.delays]
    own = np.array([episode for _, episode in delays])
    missed = np.array([delay is None for delay, _ in delays], dtype=float)
    agree, of_episode = list[float](), list[int]()
    for one, episode in zip(timings, where, strict=True):
        if one.open_share is not None and one.closed_share is not None:
            agree.append((one.open_share + one.closed_share) / 2)
            of_episode.append(episode)
    trajectories = [places.frames.trajectories[one] for one in places.episodes]
    grippers = [one.actions[:, dim] for one in trajectories]
    widths = [gripper_timing.opening_width(one.proprio) for one in trajectories]
    opened = [width for width in widths if width is not None]
    lag = max(1, window // 4)
    return Gripper(
        dim=dim,
        num_closings=len(delays),
        missed=mean(missed, own) if len(missed) else None,
        delays=[delay for delay, _ in delays if delay is not None],
        executed_closings=sum(one.num_closings for one in timings),
        open_share=_mean([one.open_share for one in timings]),
        closed_share=_mean([one.closed_share for one in timings]),
        agreement=mean(np.array(agree), np.array(of_episode)) if agree else None,
        window=window,
        begins_closed=float(np.mean([one[0] < gripper_timing.MIDDLE for one in grippers])),
        fingers=gripper_timing.fingers_agree(grippers, opened, lag) if len(opened) == len(grippers) else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _idle(replays: Sequence[Replay], places: EpisodeIndex, space: Space, actions: np.ndarray) -> Idle:
    felt = np.concatenate([places.frames.trajectories[one].proprio for one in places.episodes])
    grippers, std = gripper_dims(places.frames), actions.std(axis=0)
    dims = [dim for dim in range(actions.shape[1]) if dim not in grippers and std[dim] > CONSTANT]
    absolute = movement.absolute_dims(actions, felt)
    said = [space.action.unnormalize(one.chunks) for one in replays]
    shown = [one.demonstrated for one in replays]
    if not any(movement.movement(chunks, dims, std, absolute).any() for chunks in shown):
        absolute = np.zeros_like(absolute)  # a state that holds the action looks like a position
    own, wanted = ([movement.movement(chunks, dims, std, absolute) for chunks in both] for both in (said, shown))
    where = np.concatenate([np.full(len(one.steps), one.episode) for one in replays])
    first = np.concatenate([one.steps < FIRST_CHUNKS * one.chunks.shape[1] for one in replays])
    moved, truth = np.concatenate(own), np.concatenate(wanted)
    still = movement.NEAR_ZERO * truth.mean()
    bias = [
        mean((np.concatenate(said) - np.concatenate(shown))[..., dim].mean(axis=1), where)
        for dim in range(actions.shape[1])
    ]
    return Idle(
        start=ratio(moved[first], truth[first], where[first]),
        still=mean((moved < still).astype(float), where),
        still_demonstrated=mean((truth < still).astype(float), where),
        start_still_demonstrated=mean((truth[first] < still).astype(float), where[first]),
        bias=[_scaled(one, std[dim]) for dim, one in enumerate(bias)],
        mean=np.concatenate(said).mean(axis=(0, 1)).tolist(),
        mean_demonstrated=np.concatenate(shown).mean(axis=(0, 1)).tolist(),
    )


def _scaled(one: Estimate, std: float) -> Estimate:
    width = float(std) if std > CONSTANT else 1.0
    return Estimate(one.value / width, one.low / width, one.high / width, one.num_episodes)


def _continuity(
    policy: VLAPolicy, moments: Sequence[Moment], replays: Sequence[Replay], space: Space, options: Options
) -> Continuity:
    following = [one for one in replays if len(one.steps) > 1]
    jump = of_step = None
    if following:
        found = np.concatenate([continuity.jumps(one) for one in following])
        usual = np.concatenate([_usual(one, space.to_model(one.demonstrated)) for one in following])
        where = np.concatenate([np.full(len(one.steps) - 1, one.episode) for one in following])
        jump, of_step = mean(found, where), ratio(found, usual, where)
    episodes, views = episodes_of(moments), policy.base.spec.views
    seen = [[getattr(one, name)["observation"] for one in moments] for name in ("own", "following", "other")]
    states = [_states(policy, one, options.batch_size) for one in seen]
    own, other = (continuity.turned(states[0], one) for one in states[1:])
    changed, different = (continuity.picture_change(seen[0], one, views) for one in seen[1:])
    return Continuity(
        jump=jump,
        of_step=of_step,
        turned=mean(own, episodes),
        of_task=ratio(own, other, episodes),
        pictures=ratio(changed, different, episodes),
        correlation=continuity.rank_correlation(own, changed),
    )


def _usual(one: Replay, demonstrated: np.ndarray) -> np.ndarray:
    """How far a jump may be: a demonstrated step, and the error of the chunk that begins, [n - 1]."""
    error = np.abs(one.chunks - demonstrated).mean(axis=(1, 2))
    return continuity.steps_of(one, demonstrated) + error[1:]


@torch.inference_mode()
def _states(policy: VLAPolicy, observations: Sequence[Observation], batch_size: int) -> np.ndarray:
    """The states that actions are made of, [N, n, H]."""
    point = list(policy.base.spec.points)[-1]
    starts = range(0, len(observations), batch_size)
    parts = [policy.base.look(observations[start : start + batch_size]).at(point) for start in starts]
    return torch.cat(parts).float().cpu().numpy()


def _tokens(
    policy: VLAPolicy, moments: Sequence[Moment], answers: Answers, episodes: np.ndarray, options: Options
) -> list[TokenAccuracy]:
    """A row a stage; none for a policy without tokens."""
    if not has_tokens(policy):
        return []
    said, wanted = list[np.ndarray](), list[np.ndarray]()
    for start in range(0, len(moments), options.batch_size):
        part = slice(start, start + options.batch_size)
        requests = [Request(one.own["observation"], seed) for seed, one in enumerate(moments[part], start)]
        found = tokens_of(policy, requests, answers.chunks[part], answers.demonstrated[part])
        said.append(found[0])
        wanted.append(found[1])
    own, truth = np.concatenate(said), np.concatenate(wanted)  # [N, K, Q]
    others = [frame for one in moments for frame in (one.other, one.same) if frame is not None]
    shown = policy.base.spec.space.to_model(np.stack([one["actions"].numpy() for one in others]))
    guess = majority(demonstrated_tokens(policy, shown))  # [K, Q]  of other episodes
    rows = []
    for stage in range(truth.shape[-1]):
        entries = (truth[..., stage] >= 0).any(axis=0)  # [K]
        if not entries.any():
            continue
        right, guessed = (
            (one[..., stage] == truth[..., stage])[:, entries].mean(axis=1)
            for one in (own, np.broadcast_to(guess, truth.shape))
        )
        rows.append(TokenAccuracy(mean(right, episodes), mean(guessed, episodes), mean(right - guessed, episodes)))
    return rows
