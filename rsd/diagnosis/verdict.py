"""The verdict in words: what a policy uses, what it ignores, what is wrong with it, and what to try, with evidence.

Every statement is a pure function of the measurements. What surprises first: an input counts as used when the *right*
one makes the policy less wrong than another task's, and not when the chunk merely moves: a policy that was trained on
black pictures moves at random when it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rsd.diagnosis.bootstrap import Estimate
from rsd.diagnosis.interventions import (
    ALL_BUT_PROPRIO,
    BLACK,
    EMPTY,
    FROZEN,
    INSTRUCTION,
    NOISE,
    NONSENSE,
    PICTURES,
    PROPRIO,
    SWAPPED,
    ZERO,
)
from rsd.diagnosis.measurements import Gripper, Measurements, Moved
from rsd.finding import FAILED, OK, WARNING, Finding

# Thresholds. A share is of what demonstrations of other tasks differ by, unless it says otherwise.
IGNORED = 0.1  # a chunk that moves by less of it is the same motion: a tenth is lost in what demonstrators differ by
MIN_GAIN = 0.1  # of the error with the wrong input that the right one has to take off for the input to be of use
SAME_CHUNK = 0.25  # variety of a policy below which it says the same everywhere; a fitted one has 0.7 to 1
ALONE = (
    0.8  # R² from which on proprio alone explains what a policy says; on LIBERO demonstrations it explains 0.3 or so
)
DOMINATES = 2.0  # times as far as all other inputs together that proprio moves a chunk which hangs on it alone
GIVEN_AWAY = 0.85  # R² of the demonstrations from which on the state holds the next actions: people are never so linear
MOST = 0.5  # of the closings missed: the gripper does not do its work
SOME = 0.2  # of them: it will drop things now and then
INVERTED = 0.3  # agreement of grippers: 0.5 is chance, and only a gripper with open and closed exchanged is below
AGREES = 0.7  # agreement of grippers from which on nothing is said
LATE = 1.0  # chunks that closings may be off at the median; the arm has moved on by then
IDLE = 0.5  # of the demonstrated movement at an episode's start; below it a robot hardly leaves where it stands
MORE_STILL = 0.3  # share of chunks that stand still beyond the demonstrations' share
DRIFT = 0.5  # standard deviations by which a dim may move more than the demonstrations on average
JUMP = 3.0  # demonstrated steps (and errors) that a chunk may begin away from where the last one went on
DARK = 0.5  # share of frames of one colour from which on a camera shows nothing
FINGERS = -0.3  # correlation of "open" with fingers apart below which the rule is the wrong way round
FITS = 0.8  # R² in every moving dim from which on a policy needs nothing that it ignores, on this data
ALIKE = 0.95  # spread within a task over that between tasks: from here on words do not tell motions apart
FEW_EPISODES = 3  # held-out episodes below which intervals mean little

USES, IGNORES, BEHAVES, DATA = "uses", "ignores", "behaves", "data"

TRY_PICTURES = (
    "look at the pictures that training sees (data.views, black or exchanged cameras, RGB order); then train longer, "
    "with image augmentation and phase.module.proprio_dropout=0.5, or with model.backbone.use_proprio=false"
)
TRY_WORDS = (
    "see that each episode carries its own instruction (shuffled or missing words look like this), that tasks start "
    "from the same scenes, and train longer; FiLM (OpenVLA-OFT+) is made for it"
)
TRY_GRIPPER = (
    "look at data.gripper (open= and closed=) and at when the demonstrations close; with few closings a data set needs "
    "more of them, or chunks that begin before them need more weight"
)
TRY_PROPRIO = (
    "train with phase.module.proprio_dropout=0.5 or without proprio; take commanded positions and what follows from "
    "the next action out of the state"
)


@dataclass(frozen=True)
class Statement:
    """One sentence of the verdict.

    Attributes:
        about: USES, IGNORES, BEHAVES or DATA.
        finding: What is said, its evidence and what to try.
    """

    about: str
    finding: Finding

    @property
    def status(self) -> str:
        return self.finding.status


def said(about: str, name: str, status: str, text: str, remedy: str = "") -> Statement:
    """A statement."""
    return Statement(about, Finding(name, status, text, remedy))  # type: ignore[arg-type]


def verdict(found: Measurements) -> list[Statement]:
    """All statements, the worst first."""
    statements = [
        *_fit(found),
        *_pictures(found),
        *_each_camera(found),
        *_instruction(found),
        *_proprio(found),
        *_same_chunk(found),
        *(one for gripper in found.grippers for one in _gripper(gripper, found)),
        *_movement(found),
        *_continuity(found),
        *_tokens(found),
        *_data(found),
    ]
    order = {FAILED: 0, WARNING: 1, OK: 2}
    return sorted(statements, key=lambda one: order[one.status])


def headline(statements: list[Statement]) -> str:
    """The verdict in a sentence."""
    failed = [one.finding.name for one in statements if one.status == FAILED]
    warned = [one.finding.name for one in statements if one.status == WARNING]
    used = [one.finding.name for one in statements if one.about == USES]
    if failed:
        return f"Do not run it on a robot: {'; '.join(failed)}."
    if warned:
        return f"Nothing failed. {'; '.join(used)}. To be looked at: {'; '.join(warned)}."
    return f"Nothing found that is wrong: {'; '.join(used)}."


def _fit(found: Measurements) -> Iterator[Statement]:
    where = f"{found.num_frames} held-out frames of {found.num_episodes} episodes"
    text = (
        f"the chunk is off by {found.error} in model space on {where}; demonstrations of other tasks differ by "
        f"{found.spread_tasks}, and it explains {found.explained.percent} of the demonstrations' variance"
    )
    if found.explained.high < MIN_GAIN:
        remedy = "train longer, or see that actions and frames belong together"
        yield said(BEHAVES, "it does not predict the demonstrations", FAILED, text, remedy)
    else:
        yield said(BEHAVES, "it predicts the demonstrations", OK, text)


def evidence(one: Moved) -> str:
    """What an intervention did, in figures."""
    return (
        f"{one.name}: moves the chunk by {one.of_spread.percent} of what demonstrations of other tasks differ by, and "
        f"makes it more wrong by {one.cost}"
    )


def use(one: Moved) -> str:
    """What the right input in place of this one is to the policy: "ignored", "useless", "used" or "unclear"."""
    if one.of_spread.high < IGNORED:
        return "ignored"
    is_of_use, shown = one.gain.value >= MIN_GAIN, one.cost.low > 0
    if is_of_use and shown:
        return "used"
    return "useless" if not is_of_use and not shown else "unclear"


def _pictures(found: Measurements) -> Iterator[Statement]:
    candidates = [one for kind in (SWAPPED, FROZEN) if (one := found.of(PICTURES, kind)) is not None]
    best = max(candidates, key=lambda one: one.gain.value)
    others = [one for kind in (BLACK, NOISE) if (one := found.of(PICTURES, kind)) is not None]
    text = "; ".join(map(evidence, [*candidates, *others]))
    kind = use(best)
    if kind in ("ignored", "useless"):
        name = "it ignores its pictures"
        text = f"{same_motion([*others, *candidates])}{text}"
        if kind == "useless":
            text = f"right pictures are no better than wrong ones, as after a training with black ones: {text}"
        yield said(IGNORES, name, FAILED, text, TRY_PICTURES)
    elif kind == "unclear":
        yield said(IGNORES, "it hardly uses its pictures", WARNING, text, TRY_PICTURES)
    else:
        yield said(USES, "it uses its pictures", OK, text)


def same_motion(rows: list[Moved]) -> str:
    """Which of these interventions change next to nothing, as the beginning of a sentence."""
    same = [one.name for one in rows if one.of_spread.high < IGNORED]
    return f"it makes the same motion with {', '.join(same)}: " if same else ""


def _each_camera(found: Measurements) -> Iterator[Statement]:
    for view in found.views:
        alone = [one for one in found.moved if one.alone and one.views == [view]]
        if not alone or any(one.of_spread.high >= IGNORED for one in alone):
            continue
        worst = max(alone, key=lambda one: one.of_spread.value)
        name, remedy = f"it ignores the camera {view}", f"see what {view} shows in training; a camera less is faster"
        yield said(IGNORES, name, WARNING, f"whatever {view} shows, at most {evidence(worst)}", remedy)


def _instruction(found: Measurements) -> Iterator[Statement]:
    swapped = found.of(INSTRUCTION, SWAPPED)
    others = [one for kind in (EMPTY, NONSENSE) if (one := found.of(INSTRUCTION, kind)) is not None]
    text = "; ".join(map(evidence, [one for one in (swapped, *others) if one is not None]))
    if swapped is None:
        deaf = all(one.of_spread.high < IGNORED for one in others)
        told = f"the data set has one instruction ({found.tasks[0]!r}), so words could not be learned"
        name = "any text gives the same motion" if deaf else "its words cannot be judged"
        remedy = "expected of one task; for several, record them with their own words"
        yield said(IGNORES, name, WARNING, f"{told}; {text}", remedy)
        return
    kind = use(swapped)
    if kind == "used":
        yield said(USES, "it uses its instruction", OK, text)
        return
    if kind == "unclear":
        yield said(IGNORES, "it hardly uses its instruction", WARNING, text, TRY_WORDS)
        return
    rows = [swapped, *others]
    every = all(one.of_spread.high < IGNORED for one in rows)
    text = f"{'any text gives the same motion: ' if every else same_motion(rows)}{text}"
    if kind == "useless":
        text = f"the right instruction is no better than another task's, as after a training with shuffled ones: {text}"
    if fits_everywhere(found):
        remedy = "nothing, if pictures are to choose the task; else record tasks that begin with the same picture"
        text = f"{text}; the demonstrations are reproduced all the same, so here pictures tell the tasks apart"
        yield said(IGNORES, "it ignores its instruction", WARNING, text, remedy)
        return
    yield said(IGNORES, "it ignores its instruction", FAILED, text, TRY_WORDS)


def fits_everywhere(found: Measurements) -> bool:
    """Whether the demonstrations are reproduced in every dim that moves."""
    return all(one is None or one >= FITS for one in found.explained_dims)


def _proprio(found: Measurements) -> Iterator[Statement]:
    if found.proprio is None:
        return
    alone, taken = found.proprio, found.of(ALL_BUT_PROPRIO, SWAPPED)
    zero = found.of(PROPRIO, ZERO)
    text = (
        f"a ridge regression on proprio explains {alone.policy.percent} of what the policy says and "
        f"{alone.demonstrations.percent} of the demonstrations"
    )
    text += "".join(f"; {evidence(one)}" for one in (zero, taken) if one is not None)
    says_something = found.variety.high >= SAME_CHUNK
    rest = 0.0 if taken is None else taken.of_spread.value
    moves = zero is not None and zero.of_spread.low > max(IGNORED, DOMINATES * rest)
    if moves and says_something and (rest < IGNORED or alone.policy.value >= ALONE):
        if alone.demonstrations.value >= GIVEN_AWAY:
            text = f"the state gives the next actions away: {text}"
        yield said(IGNORES, "it answers from proprio alone", FAILED, text, TRY_PROPRIO)
    elif alone.policy.low >= ALONE and not says_something:
        return
    elif alone.policy.low >= ALONE:
        yield said(IGNORES, "proprio alone explains most of what it says", WARNING, text, TRY_PROPRIO)
    elif zero is not None and zero.of_spread.high < IGNORED:
        yield said(IGNORES, "it does without its proprio", OK, text)
    else:
        yield said(USES, "it uses its proprio", OK, text)


def _same_chunk(found: Measurements) -> Iterator[Statement]:
    if found.variety.high >= SAME_CHUNK:
        return
    text = f"its chunks differ from each other by {found.variety.percent} of what the demonstrations' do"
    motion = in_words(found)
    remedy = "it says the demonstrations' mean or median: train longer, with a higher learning rate, and see its loss"
    yield said(BEHAVES, "it makes the same motion whatever it is shown", FAILED, f"{text}: {motion}", remedy)


def in_words(found: Measurements) -> str:
    """The policy's mean motion, its three largest dims."""
    grippers = {one.dim for one in found.grippers}
    dims = [dim for dim in range(len(found.dims)) if dim not in grippers]
    largest = sorted(dims, key=lambda dim: -abs(found.idle.mean[dim]))[:3]
    told = ", ".join(
        f"{found.dims[dim]} {found.idle.mean[dim]:+.2g} (demonstrated {found.idle.mean_demonstrated[dim]:+.2g})"
        for dim in largest
    )
    down = any(found.dims[dim].split()[0] == "z" and found.idle.mean[dim] < 0 for dim in largest[:1])
    return f"{'the hand goes down, ' if down else ''}on average {told}"


def _gripper(one: Gripper, found: Measurements) -> Iterator[Statement]:
    what = "gripper" if len(found.grippers) == 1 else f"gripper (dim {one.dim})"
    if one.fingers is not None and one.fingers < FINGERS:
        text = f"where the data set says open, the fingers are closer together: correlation {one.fingers:.2f}"
        name, remedy = f"the {what}'s labels are inverted in the data set", "exchange data.gripper.open and .closed"
        yield said(DATA, name, FAILED, text, remedy)
    elif one.begins_closed >= 1 - SOME and one.fingers is None:
        text = f"{100 * one.begins_closed:.0f} % of the demonstrations begin with a closed gripper"
        remedy = "a grasp begins open: see whether data.gripper.open and .closed are exchanged"
        yield said(DATA, f"the {what} may be inverted in the data set", WARNING, text, remedy)
    if one.agreement is None:
        text = f"it never moves in the {found.num_replayed} replayed episodes"
        yield said(BEHAVES, f"the {what} cannot be judged", OK, text)
        return
    both = f"it is open at {_share(one.open_share)} of the steps with an open gripper, closed at "
    both += f"{_share(one.closed_share)} of those with a closed one"
    if one.agreement.high < INVERTED:
        text = f"{both}: open and closed are exchanged (agreement {one.agreement})"
        remedy = "exchange data.gripper.open and .closed, and train again"
        yield said(BEHAVES, f"its {what} is inverted", FAILED, text, remedy)
        return
    count = f"of {one.num_closings} demonstrated closings"
    missed = one.missed
    median = float(np.median(one.delays)) if one.delays else 0.0
    off = f"the others are {_steps(median)} at the median" if one.delays else "none is made"
    if missed is not None and missed.value >= MOST:
        never = one.executed_closings == 0 and (one.closed_share or 0) < IGNORED
        name = f"its {what} never closes" if never else f"its {what} misses most closings"
        text = f"{missed.percent} {count} are missed within {one.window} steps, {off}; {both}"
        yield said(BEHAVES, name, FAILED, text, TRY_GRIPPER)
        return
    late = one.window / 2 * LATE  # the window is two chunks
    told = "" if missed is None else f"{missed.percent} {count} are missed, {off}; "
    if (missed is not None and (missed.value >= SOME or abs(median) >= late)) or one.agreement.value < AGREES:
        name = f"its {what} closes at the wrong time"
        yield said(BEHAVES, name, WARNING, f"{told}{both}", TRY_GRIPPER)
    else:
        yield said(BEHAVES, f"its {what} closes when the demonstrations do", OK, f"{told}{both}")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _steps(median: float) -> str:
    return "on time" if median == 0 else f"{abs(median):g} steps {'late' if median > 0 else 'early'}"


def _movement(found: Measurements) -> Iterator[Statement]:
    idle = found.idle
    text = (
        f"in the first chunks it moves {idle.start.percent} as much as the demonstrations; {idle.still.percent} of its "
        f"chunks stand still, {idle.still_demonstrated.percent} of the demonstrations'"
    )
    stays = idle.start.high < IDLE
    if stays or idle.still.low > idle.still_demonstrated.high + MORE_STILL:
        name = "it stays where it starts" if stays else "it stands still"
        remedy = "take idle steps out of the data set (its filter of idle steps), and train longer"
        yield said(BEHAVES, name, FAILED, text, remedy)
    elif idle.start_still_demonstrated.value >= MOST:
        text = f"{idle.start_still_demonstrated.percent} of the demonstrations' first chunks stand still; {text}"
        remedy = "take idle steps out of the data set (its filter of idle steps): a policy may wait forever"
        yield said(DATA, "the demonstrations begin idle", WARNING, text, remedy)
    else:
        yield said(BEHAVES, "it moves off as the demonstrations do", OK, text)
    grippers = {one.dim for one in found.grippers}
    for dim, bias in enumerate(idle.bias):
        if dim not in grippers and (bias.low > DRIFT or bias.high < -DRIFT):
            text = f"{found.dims[dim]} is {idle.mean[dim]:+.2g} on average, {idle.mean_demonstrated[dim]:+.2g} "
            text += f"demonstrated: off by {bias} standard deviations"
            down = found.dims[dim].split()[0] == "z" and bias.high < 0
            name = "its hand goes down" if down else f"it drifts along {found.dims[dim]}"
            remedy = "see that the statistics are this data set's (unnorm_key), and train longer"
            yield said(BEHAVES, name, WARNING, text, remedy)


def _continuity(found: Measurements) -> Iterator[Statement]:
    one = found.continuity
    turn = (
        f"from frame to frame states turn by {one.turned}, {one.of_task.percent} of how far they turn to another task's"
        f" frame, while pictures change by {one.pictures.percent} of that"
    )
    if one.of_step is not None and one.jump is not None:
        text = f"a chunk begins {one.jump} away from where the last one went on, {one.of_step} times "
        text += "a demonstrated step and its own error"
        if one.of_step.low > JUMP:
            remedy = "execute fewer steps of a chunk, blend chunks, or train longer"
            yield said(BEHAVES, "its chunks jump", WARNING, f"{text}; {turn}", remedy)
        else:
            yield said(BEHAVES, "its chunks follow each other", OK, f"{text}; {turn}")
    else:
        yield said(BEHAVES, "its states follow the pictures", OK, turn)


def _tokens(found: Measurements) -> Iterator[Statement]:
    for stage, one in enumerate(found.tokens):
        which = "its tokens" if len(found.tokens) == 1 else f"its tokens of stage {stage + 1}"
        text = f"{one.policy.percent} are the demonstration's, {one.majority.percent} by the most frequent token"
        if one.better.high < 0 and stage == 0:
            remedy = "train the head longer, or with a tokenizer of fewer levels"
            yield said(BEHAVES, f"{which} are worse than a majority guess", FAILED, text, remedy)
        elif one.better.low <= 0:
            remedy = "nothing, if its chunks are right; else train the head longer"
            yield said(BEHAVES, f"{which} are no better than a majority guess", WARNING, text, remedy)
        else:
            yield said(BEHAVES, f"{which} are better than a majority guess", OK, text)


def _data(found: Measurements) -> Iterator[Statement]:
    for view, share in found.dark.items():
        if share >= DARK:
            text = f"{100 * share:.0f} % of its held-out pictures have one colour"
            remedy = "record it again, or leave it out (model.backbone.views)"
            yield said(DATA, f"the camera {view} shows nothing in the data set", FAILED, text, remedy)
    if found.proprio is not None and found.proprio.demonstrations.value >= GIVEN_AWAY:
        text = f"a ridge regression on proprio explains {found.proprio.demonstrations.percent} of the demonstrations"
        yield said(DATA, "the state gives the next actions away", WARNING, text, TRY_PROPRIO)
    alike, other = found.same_over_other, found.spread_tasks
    if len(found.tasks) > 1 and alike is not None and alike.low >= ALIKE:
        text = f"with the same words demonstrations differ by {found.spread_episodes}, with other words by {other}"
        remedy = "see that each episode carries its own instruction: shuffled ones look like this"
        yield said(DATA, "words do not tell the demonstrations apart", WARNING, text, remedy)
    if found.num_episodes < FEW_EPISODES:
        count: Estimate = found.error
        text = f"{count.num_episodes} held-out episode{'s' if count.num_episodes > 1 else ''}: intervals mean little"
        remedy = "record more; split=all takes every episode, for a policy that was trained on other data"
        yield said(DATA, "few held-out episodes", WARNING, text, remedy)
