"""The verdict on figures that are made up: one changed at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rsd.diagnosis.bootstrap import Estimate
from rsd.diagnosis.interventions import (
    ALL_BUT_PROPRIO,
    BLACK,
    EMPTY,
    FROZEN,
    INSTRUCTION,
    PICTURES,
    PROPRIO,
    SWAPPED,
    ZERO,
)
from rsd.diagnosis.measurements import Continuity, Gripper, Idle, Measurements, Moved, ProprioAlone, TokenAccuracy
from rsd.diagnosis.verdict import headline, use, verdict
from rsd.finding import FAILED, OK, WARNING


def e(value: float, width: float = 0.01) -> Estimate:
    return Estimate(value, value - width, value + width, 10)


def moved(what: str, kind: str, share: float, cost: float, view: str | None = None) -> Moved:
    return Moved(
        name=f"{kind} {view or what}",
        input=what,
        kind=kind,
        views=[view] if view else ["image", "wrist_image"],
        alone=view is not None,
        moved=e(share),
        of_spread=e(share),
        of_error=e(10 * share),
        cost=e(cost),
        gain=e(cost / (cost + 0.1) if cost > 0 else 0),
        dims=[share] * 7,
        robot_dims=[share] * 7,
    )


GOOD = Measurements(
    num_frames=64,
    num_episodes=10,
    num_replayed=10,
    tasks=["lift", "push"],
    views=["image", "wrist_image"],
    dims=["x", "y", "z", "roll", "pitch", "yaw", "gripper"],
    error=e(0.1),
    error_dims=[0.1] * 7,
    robot_error_dims=[0.1] * 7,
    explained=e(0.8),
    explained_dims=[0.5] * 7,
    spread_tasks=e(1.0),
    spread_episodes=e(0.5),
    same_over_other=e(0.5),
    variety=e(0.9),
    moved=[
        moved(PICTURES, BLACK, 1.0, 0.5),
        moved(PICTURES, FROZEN, 0.5, 0.2),
        moved(PICTURES, SWAPPED, 0.5, 0.2),
        moved(PICTURES, SWAPPED, 0.5, 0.2, "image"),
        moved(PICTURES, SWAPPED, 0.5, 0.2, "wrist_image"),
        moved(INSTRUCTION, SWAPPED, 0.5, 0.2),
        moved(INSTRUCTION, EMPTY, 0.5, 0.2),
        moved(PROPRIO, ZERO, 0.3, 0.1),
        moved(ALL_BUT_PROPRIO, SWAPPED, 0.9, 0.4),
    ],
    refused={},
    dark={"image": 0.0, "wrist_image": 0.0},
    proprio=ProprioAlone(e(0.3), e(0.3), [0.3] * 7),
    grippers=[Gripper(6, 10, e(0.0), [0, 1, -1], 10, 0.95, 0.95, e(0.95), 16, 0.0, 0.8)],
    idle=Idle(e(0.9), e(0.1), e(0.1), e(0.1), [e(0.0)] * 7, [0.0] * 7, [0.0] * 7),
    continuity=Continuity(e(0.1), e(0.5), e(0.01), e(0.1), e(0.1), 0.5),
)
GRIPPER = GOOD.grippers[0]


def test_a_good_one():
    statements = verdict(GOOD)
    assert {one.status for one in statements} == {OK}
    assert headline(statements) == (
        "Nothing found that is wrong: it uses its pictures; it uses its instruction; it uses its proprio."
    )


def with_rows(*changed: Moved) -> Measurements:
    key = {(one.input, one.kind, one.alone, tuple(one.views)): one for one in changed}
    rows = [key.get((one.input, one.kind, one.alone, tuple(one.views)), one) for one in GOOD.moved]
    return replace(GOOD, moved=rows)


BLIND = with_rows(*(moved(PICTURES, kind, 0.02, 0.0) for kind in (BLACK, FROZEN, SWAPPED)))
CASES = {
    "it ignores its pictures": (FAILED, BLIND),
    "it hardly uses its pictures": (
        WARNING,
        with_rows(moved(PICTURES, SWAPPED, 0.2, 0.011), moved(PICTURES, FROZEN, 0.2, 0.0)),
    ),
    "it ignores the camera wrist_image": (WARNING, with_rows(moved(PICTURES, SWAPPED, 0.02, 0.0, "wrist_image"))),
    "it ignores its instruction": (FAILED, with_rows(moved(INSTRUCTION, SWAPPED, 0.02, 0.0))),
    "it answers from proprio alone": (
        FAILED,
        replace(
            with_rows(moved(ALL_BUT_PROPRIO, SWAPPED, 0.05, 0.0), moved(PROPRIO, ZERO, 0.6, 0.4)),
            proprio=ProprioAlone(e(0.9), e(0.6), [0.9] * 7),
        ),
    ),
    "proprio alone explains most of what it says": (
        WARNING,
        replace(GOOD, proprio=ProprioAlone(e(0.9), e(0.6), [0.9] * 7)),
    ),
    "the state gives the next actions away": (
        WARNING,
        replace(GOOD, proprio=ProprioAlone(e(0.5), e(0.95), [0.5] * 7)),
    ),
    "it makes the same motion whatever it is shown": (FAILED, replace(GOOD, variety=e(0.1))),
    "it does not predict the demonstrations": (FAILED, replace(GOOD, explained=e(0.0))),
    "its gripper is inverted": (FAILED, replace(GOOD, grippers=[replace(GRIPPER, agreement=e(0.05))])),
    "its gripper never closes": (
        FAILED,
        replace(
            GOOD,
            grippers=[
                replace(GRIPPER, missed=e(1.0), delays=[], executed_closings=0, closed_share=0.0, agreement=e(0.5))
            ],
        ),
    ),
    "its gripper misses most closings": (FAILED, replace(GOOD, grippers=[replace(GRIPPER, missed=e(0.6))])),
    "its gripper closes at the wrong time": (WARNING, replace(GOOD, grippers=[replace(GRIPPER, delays=[9, 9, 10])])),
    "the gripper's labels are inverted in the data set": (
        FAILED,
        replace(GOOD, grippers=[replace(GRIPPER, fingers=-0.8)]),
    ),
    "the gripper may be inverted in the data set": (
        WARNING,
        replace(GOOD, grippers=[replace(GRIPPER, begins_closed=1.0, fingers=None)]),
    ),
    "it stays where it starts": (FAILED, replace(GOOD, idle=replace(GOOD.idle, start=e(0.1)))),
    "it stands still": (FAILED, replace(GOOD, idle=replace(GOOD.idle, still=e(0.6)))),
    "the demonstrations begin idle": (
        WARNING,
        replace(GOOD, idle=replace(GOOD.idle, start_still_demonstrated=e(0.7))),
    ),
    "its hand goes down": (
        WARNING,
        replace(GOOD, idle=replace(GOOD.idle, bias=[e(0.0), e(0.0), e(-1.0), *[e(0.0)] * 4])),
    ),
    "its chunks jump": (WARNING, replace(GOOD, continuity=replace(GOOD.continuity, of_step=e(5.0)))),
    "its tokens are worse than a majority guess": (
        FAILED,
        replace(GOOD, tokens=[TokenAccuracy(e(0.2), e(0.5), e(-0.3))]),
    ),
    "the camera image shows nothing in the data set": (FAILED, replace(GOOD, dark={"image": 1.0, "wrist_image": 0.0})),
    "words do not tell the demonstrations apart": (WARNING, replace(GOOD, same_over_other=e(1.0))),
    "few held-out episodes": (WARNING, replace(GOOD, num_episodes=1)),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_named_with_evidence_and_a_remedy(name):
    status, found = CASES[name]
    statements = verdict(found)
    (own,) = [one for one in statements if one.finding.name == name]
    assert own.status == status and own.finding.remedy and any(letter.isdigit() for letter in own.finding.found)
    assert name in headline(statements)
    others = {one.finding.name for one in statements if one.status == FAILED} - {name}
    assert not others, others


def test_one_instruction_cannot_be_failed_and_is_said():
    rows = [one for one in GOOD.moved if one.input != INSTRUCTION] + [moved(INSTRUCTION, EMPTY, 0.01, 0.0)]
    statements = verdict(replace(GOOD, tasks=["lift"], moved=rows))
    (own,) = [one for one in statements if one.status != OK]
    assert own.status == WARNING and own.finding.name == "any text gives the same motion"
    assert "one instruction ('lift')" in own.finding.found


def test_words_that_are_not_needed_are_a_warning():
    found = replace(with_rows(moved(INSTRUCTION, SWAPPED, 0.02, 0.0)), explained_dims=[0.95] * 6 + [None])
    (own,) = [one for one in verdict(found) if one.status != OK]
    assert own.status == WARNING and "pictures tell the tasks apart" in own.finding.found


def test_moving_is_not_using():
    assert use(moved(PICTURES, SWAPPED, 0.5, -0.005)) == "useless"
    assert use(moved(PICTURES, SWAPPED, 0.5, 0.2)) == "used"
    assert use(moved(PICTURES, SWAPPED, 0.01, 0.2)) == "ignored"
    useless = with_rows(moved(PICTURES, SWAPPED, 0.5, -0.005), moved(PICTURES, FROZEN, 0.5, 0.0))
    (own,) = [one for one in verdict(useless) if one.status == FAILED]
    assert own.finding.found.startswith("right pictures are no better than wrong ones, as after a training with black")
