"""What a training would refuse of a data set, all of it and not the first thing alone, and what else is odd.

A refusal is the message that the training itself raises, with the key that repairs it; of those that are alike in many
episodes the first is said, with the number of the others. What surprises first: a warning is no error: rsd trains on
what it warns of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rsd.data.datasets import LOST, MUCH_CLIPPED, ChunkDataset, Demonstrations, FrameDataset, split_episodes
from rsd.data.layout import Layout
from rsd.data.survey import USUAL_VIEWS, Content
from rsd.data.trajectories import check_finite, require_chunks
from rsd.errors import RSDError
from rsd.finding import FAILED, WARNING, Finding
from rsd.space import check_statistics

SHOWN = 8  # numbers of episodes in a message
MANY_IDLE = 0.1  # share of all steps
LONG_REST = 5  # steps at rest before an episode moves, or after
FROZEN = 0.3  # share of steps whose picture is the last step's, from which on it is said
NUMBERS = re.compile(r"\d+")
EARLY = 0.15  # by how much better an action must fit the movement before it
OWN = 0.3  # correlation with the state dim of the same number, below which another dim is said to be meant
CLEAR = 0.7  # and of that other one


def refusals(content: Content, layout: Layout, chunk_length: int, said: Said | None = None) -> list[Finding]:
    """Everything that a training would refuse, a finding each.

    Args:
        said: What trainings themselves have said, see `trainings_say`; kept where nothing here says it.
    """
    messages = dict.fromkeys(content.refused.values())
    for what in ("record", "lengths"):
        messages |= dict.fromkeys(
            _grouped({one.index: one.refused[what] for one in content.episodes if what in one.refused})
        )
    features = dict.fromkeys(
        name for one in content.episodes for name in one.refused if name not in ("record", "lengths")
    )
    for name in features:
        messages |= dict.fromkeys(
            _grouped({one.index: one.refused[name] for one in content.episodes if name in one.refused})
        )
    for name in ("action", "proprio"):
        messages |= dict.fromkeys(_grouped(_not_finite(content, name)))
    there = [one.action for one in content.episodes if one.action is not None]
    for dim in content.places.grippers if there else ():
        which = "last dim of action" if content.places.grippers == (there[0].shape[1] - 1,) else f"dim {dim} of action"
        recorded = [one[np.isfinite(one[:, dim]), dim] for one in there]
        messages |= dict.fromkeys(_raised(layout.gripper.check, recorded, str(content.directory), which))
    if content.episodes:
        messages |= dict.fromkeys(_lengths(content, chunk_length))
    known = [_plain(message) for message in messages]
    for message in filter(None, () if said is None else (said.tokenizer, said.policy)):
        if not any(_plain(message) in one or one in _plain(message) for one in known):
            messages[message] = None
    found = [Finding("refused", FAILED, message) for message in messages]
    if found and said is not None and said.tokenizer is None:
        found.append(Finding("phases", WARNING, "phase=rfsq takes the data set as it is; the other phases refuse it"))
    if said is not None and said.kept is not None and said.kept[0] < said.kept[1]:
        text = f"trainings keep {said.kept[0]} of {said.kept[1]} steps (data.every, data.target_rate, data.idle)"
        found.append(Finding("steps", WARNING, text))
    return found


class Said(NamedTuple):
    """What rsd's own reading raises, as phase=rfsq reads and as the training of a policy does; None if nothing."""

    tokenizer: str | None
    policy: str | None
    kept: tuple[int, int] | None = None  # steps that are trained on, of those that are recorded


def trainings_say(
    directory: Path, layout: Layout, views: Sequence[str], chunk_length: int, *, proprio: bool = True
) -> Said:
    """Read the data set as trainings do.

    What surprises first: all records are read again. It is the answer that counts; what else is said here of refusals
    only finds more than the first of them.
    """

    kept: list[tuple[int, int]] = []

    def tokenizer() -> None:
        demonstrations = Demonstrations(directory, layout=layout, language=False, proprio=False)
        trained = sum(len(one.actions) for one in demonstrations.trajectories)
        kept.append((trained, demonstrations.num_recorded))
        for split in ("train", "val"):
            ChunkDataset(demonstrations, chunk_length, split)
        check_statistics(demonstrations.norm_stats, str(directory))

    def policy() -> None:
        demonstrations = Demonstrations(directory, views, layout, proprio=proprio)
        for split in ("train", "val"):
            FrameDataset(demonstrations, chunk_length, split)[0]

    first, second = (next(iter(_raised(read)), None) for read in (tokenizer, policy))
    return Said(first, second, kept[0] if kept else None)


def _plain(message: str) -> str:
    """A message up to what is told of further episodes."""
    return message.partition(" (the same in ")[0]


def _raised(call: Callable[..., Any], *arguments: Any) -> list[str]:
    """What a check says, if anything."""
    try:
        call(*arguments)
    except RSDError as error:
        return [str(error)]
    return []


def _grouped(messages: dict[int, str]) -> list[str]:
    """Messages of episodes that differ in numbers alone, as one."""
    groups: dict[str, list[int]] = {}
    for index, message in messages.items():
        groups.setdefault(NUMBERS.sub("#", message), []).append(index)
    return [
        messages[first] + (f" (the same in {len(more)} further episodes: {some(more)})" if more else "")
        for first, *more in groups.values()
    ]


def some(numbers: Sequence[int]) -> str:
    """The first of many numbers."""
    return ", ".join(map(str, numbers[:SHOWN])) + (", …" if len(numbers) > SHOWN else "")


def _not_finite(content: Content, name: str) -> dict[int, str]:
    feature = "+".join(map(str, getattr(content.places, name)))
    found = {}
    for one in content.episodes:
        values = getattr(one, name)
        if values is not None and (message := _raised(check_finite, values, feature, one.where)):
            found[one.index] = message[0]
    return found


def _lengths(content: Content, chunk_length: int) -> Iterator[str]:
    lengths = {one.index: one.num_steps for one in content.episodes}
    if not any(lengths.values()):
        yield f"{content.directory}: all {len(lengths)} episodes have no steps; collect them again"
        return
    split = _raised(split_episodes, content.num_episodes, "train")
    yield from split
    if split:
        return
    for name in ("train", "val"):
        there = [lengths[index] for index in split_episodes(content.num_episodes, name) if index in lengths]
        if there:
            yield from _raised(require_chunks, there, chunk_length, f"{content.directory}, split {name!r}")


def warnings(content: Content, figures: dict[str, Any], *, has_model: bool = False) -> list[Finding]:
    """What is odd of a data set, a line each, with what to do about it.

    Args:
        has_model: Whether the views are those that a model asks for.
    """
    found = [("reading", one, "") for one in (*content.dropped, *content.places.unread)]
    if content.places.views and tuple(content.asked) != USUAL_VIEWS and not has_model:
        text = f"views are {', '.join(content.asked)}, the models of conf/model ask for {', '.join(USUAL_VIEWS)}"
        found.append(("views", text, f"train with model.backbone.views=[{','.join(content.asked)}]"))
    for look in (
        _sample,
        _ranges,
        _clipped,
        _gripper,
        _idle,
        _jumps,
        _responses,
        _declared,
        _words,
        _pictures,
        _duplicates,
        _short,
    ):
        found += look(figures)
    return [Finding(name, WARNING, text, remedy) for name, text, remedy in found]


Warned = Iterator[tuple[str, str, str]]


def _sample(figures: dict[str, Any]) -> Warned:
    if figures["num_read"] < figures["num_episodes"]:
        text = (
            f"{figures['num_read']} of {figures['num_episodes']} episodes were read: what the others hold is not known"
        )
        yield "sample", text, "max_episodes=null reads all"
    elif 0 < figures["num_episodes"] < 10:
        yield (
            "episodes",
            f"{figures['num_episodes']} episodes: a single one is held out",
            "10 or more are better judged",
        )


def _ranges(figures: dict[str, Any]) -> Warned:
    for what in ("action", "proprio"):
        dims = [one for one in figures[what]["dims"] if "min" in one and not one["is_gripper"]]
        still = [str(one["dim"]) for one in dims if one["min"] == one["max"]]
        if still:
            text = f"{what} dims {', '.join(still)} never change: they are trained as 0"
            yield "constant", text, f"leave them out with data.{what}=…[first:last], or record them"
        rare = [str(one["dim"]) for one in dims if one["q01"] == one["q99"] and one["min"] < one["max"]]
        if rare:
            text = f"{what} dims {', '.join(rare)} change in fewer than 1 % of the steps: quantiles have no width there"
            yield "sparse", text, "data.bounds=extremes keeps the movement"
        wide = [str(one["dim"]) for one in dims if _is_tailed(one)]
        if wide:
            text = f"{what} dims {', '.join(wide)} reach beyond ten times the range of q01..q99"
            yield "outliers", text, "look at the jumps below; remove the episodes that have them"


def _is_tailed(dim: dict[str, Any]) -> bool:
    width = dim["q99"] - dim["q01"]
    return bool(width > 0 and dim["max"] - dim["min"] > 10 * width)


def _clipped(figures: dict[str, Any]) -> Warned:
    clipped = figures["clipped"] or {}
    remedy = "data.bounds=extremes keeps it"
    for what in ("action", "proprio"):
        shares = {dim: share for dim, share in enumerate(clipped.get(what, [])) if share > LOST}
        if shares:
            dims = ", ".join(f"{dim} ({100 * share:.0f} %)" for dim, share in shares.items())
            yield "clipped", f"normalisation ({clipped['bounds']}) cuts off movement in {what} dims {dims}", remedy
    for task, own in clipped.get("tasks", {}).items():
        if max(own) > MUCH_CLIPPED:
            dim = own.index(max(own))
            yield "clipped", f"{task!r}: {100 * own[dim]:.0f} % of the movement in action dim {dim} is cut off", remedy


def _gripper(figures: dict[str, Any]) -> Warned:
    total = len(figures["action"]["dims"]) and figures["num_read"]
    for one in figures["gripper"]:
        where = f"gripper (action dim {one['dim']})"
        counts = {"never_closes": "never closes", "starts_closed": "is closed from the start"}
        for key, words in counts.items():
            if one[key] and one["by_rule"]:
                text = f"{where} {words} in {len(one[key])} of {total} episodes: {some(one[key])}"
                yield "gripper", text, "look at these; declare data.gripper the other way round if all are so"
        if one["chatters"]:
            text = f"{where} turns twice within three steps in {len(one['chatters'])} episodes: {some(one['chatters'])}"
            yield "gripper", text, "the command is noisy: smooth it when you write the data set"


def _idle(figures: dict[str, Any]) -> Warned:
    idle = figures["idle"]
    if idle is None:
        return
    remedy = "a policy learns to stay where it starts: drop them (data.idle=…), or when you write the data set"
    if idle["share"] > MANY_IDLE:
        yield "idle", f"{100 * idle['share']:.0f} % of all steps move nothing", remedy
    for key, words in (("at_start", "before the first movement"), ("at_end", "after the last one")):
        long = [index for index, count in zip(idle["episodes"], idle[key], strict=True) if count >= LONG_REST]
        if long:
            text = f"{len(long)} episodes rest for {LONG_REST} steps or more {words}: {some(long)}"
            yield "idle", text, remedy


def _jumps(figures: dict[str, Any]) -> Warned:
    for what, found in figures["jumps"].items():
        if found["count"]:
            first = found["largest"][0]
            text = (
                f"{what} jumps at {found['count']} places in {found['episodes']} episodes, most in episode "
                f"{first['episode']}, step {first['step']}, dim {first['dim']}: by {first['change']:.4g}, "
                f"{first['times']:.0f} times what is usual"
            )
            remedy = "lost steps, an angle that wraps, or two episodes in one: look at the pictures there"
            yield "jumps", text, remedy


def _responses(figures: dict[str, Any]) -> Warned:
    found = list(enumerate(figures["responses"]))
    found = [(dim, one) for dim, one in found if not figures["action"]["dims"][dim]["is_gripper"]]
    early = [str(dim) for dim, one in found if abs(one["early"]) > abs(one["step"]) + EARLY and one["kind"] != "goal"]
    if early:
        text = f"action dims {', '.join(early)} fit the movement before the step better than the one after it"
        yield "order", text, "states seem to be recorded after the action: shift them by a step"
    for dim, one in found:
        r = one["goal"] if one["kind"] == "goal" else one["step"]
        if one["kind"] != "unclear" and abs(r) >= CLEAR and one["own"] is not None and abs(one["own"]) < OWN:
            text = f"action dim {dim} moves proprio dim {one['state_dim']} (r = {r:.2f}), hardly dim {dim}"
            yield "order", text, "see that both name the same axes, in the same order"
    kinds = {one["kind"] for _, one in found} - {"unclear"}
    if found and not kinds:
        remedy = "see that data.proprio is the state of the same arm, and that both are of the same step"
        yield "order", "no action dim moves a dim of proprio clearly", remedy
    if len(kinds) > 1:
        goals = ", ".join(str(dim) for dim, one in found if one["kind"] == "goal")
        text = f"action dims {goals} look like goals (the state takes their value), the others like steps"
        yield "order", text, "a mixture is meant seldom: see how each dim was recorded"


def _declared(figures: dict[str, Any]) -> Warned:
    kinds = {True: "step", False: "goal"}  # by whether a dim is declared as a delta
    arm = [one["dim"] for one in figures["action"]["dims"] if not one["is_gripper"]]
    found = {dim: figures["responses"][dim]["kind"] for dim in arm} if figures["responses"] else {}
    for relative in (True, False) if figures["relative"] else ():
        wrong = [
            str(dim) for dim in found if figures["relative"][dim] == relative and found[dim] == kinds[not relative]
        ]
        if wrong:
            text = f"data.relative declares action dims {', '.join(wrong)} {'deltas' if relative else 'absolute'}"
            yield "order", f"{text}, and they look like {kinds[not relative]}s", "see how they were recorded"


def _words(figures: dict[str, Any]) -> Warned:
    words = figures["languages"]
    if not words["instructions"]:
        return
    if words["empty_steps"]:
        yield (
            "language",
            f"{words['empty_steps']} steps have an empty instruction",
            "write one, or leave these episodes out",
        )
    if len(words["instructions"]) == 1:
        text = "all episodes have the same instruction: nothing makes a policy listen to it"
        yield "language", text, "a second task, or no hope that other words do anything"
    if words["changing"]:
        text = f"the instruction changes within {len(words['changing'])} episodes: {some(words['changing'])}"
        yield "language", text, "each step is trained with its own; a policy must be told the same way"
    foreign = [one["text"] for one in words["instructions"] if not one["ascii"]]
    if foreign:
        text = f"{len(foreign)} instructions are not in ASCII: {foreign[0]!r}"
        yield (
            "language",
            text,
            "an English base model knows few such words: doctor.py tells whether it tells them apart",
        )
    for same in words["alike"]:
        yield "language", f"instructions differ in case or punctuation alone: {same}", "write them alike"


def _pictures(figures: dict[str, Any]) -> Warned:
    for view, one in figures["pictures"].items():
        if one["repeated_share"] > FROZEN:
            text = f"{view}: {100 * one['repeated_share']:.0f} % of the pictures are the last step's, byte by byte"
            yield "pictures", text, "the camera stood still, or is slower than the steps: see how it was recorded"
        elif one["frozen"]:
            yield (
                "pictures",
                f"{view} is the same picture all along in episodes {some(one['frozen'])}",
                "leave them out",
            )
        if one["flat_share"] > 0:
            share, mean = f"{100 * one['flat_share']:.0f} %", f"{one['brightness']:.0f}"
            text = f"{view}: {share} of those looked at are of one colour (mean {mean})"
            yield "pictures", text, "black or covered: a policy learns to ignore such a view"
        if len(one["sizes"]) > 1:
            yield "pictures", f"{view} has several sizes: {one['sizes']}", ""
    for a, b in figures["same_views"]:
        yield "pictures", f"views {a} and {b} show the same", "one camera was recorded twice: leave one out"


def _duplicates(figures: dict[str, Any]) -> Warned:
    groups = figures["duplicates"]["episodes"]
    if groups:
        text = f"{sum(map(len, groups))} episodes have the same numbers as another: {'; '.join(map(some, groups[:4]))}"
        yield "duplicates", text, "remove them: one in train and one in val makes every validation look good"
    for view, one in figures["duplicates"]["pictures"].items():
        if one["other_instruction"]:
            text = (
                f"{view}: in {one['other_instruction']} groups of episodes the middle picture is nearly the same, the "
                "instruction another"
            )
            yield "duplicates", text, "if pictures do not differ between tasks, they cannot teach a policy to look"


def _short(figures: dict[str, Any]) -> Warned:
    lengths = figures["lengths"]
    if short := lengths.get("short"):
        chunk = f"the chunk of {lengths['chunk_length']} steps"
        text = f"{len(short)} episodes are shorter than {chunk} and give none: {some(short)}"
        yield "lengths", text, "chunk=… takes a shorter one"
