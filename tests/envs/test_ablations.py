"""Ablations change what is shown and nothing else."""

from functools import partial

import numpy as np
import pytest

from rsd.envs import ablations
from tests.fakes import PointMassEnv

ACTION = np.full(7, 0.1)


def pair(kind, **options):
    make = partial(PointMassEnv, image_size=16)
    return make(task_id=1), kind(make=make, task_id=1, **options)


def test_pictures_are_black_and_the_rest_is_as_before():
    plain, changed = pair(ablations.BlackPictures)
    before, after = ([env.reset(2), env.step(ACTION).observation] for env in (plain, changed))
    for one, other in zip(before, after, strict=True):
        assert one.images["image"].any() and not any(picture.any() for picture in other.images.values())
        assert np.array_equal(one.proprio, other.proprio) and one.instruction == other.instruction
    assert changed.step(ACTION, observe=False).observation is None
    assert changed.task == plain.task and changed.reset_rendering_s > 0
    changed.close()


def test_proprio_is_zero():
    plain, changed = pair(ablations.ZeroProprio)
    one, other = plain.reset(0), changed.reset(0)
    assert one.proprio.any() and not other.proprio.any()
    assert np.array_equal(one.images["image"], other.images["image"])


@pytest.mark.parametrize(("task_id", "shown"), [(1, 2), (2, 0)])
def test_the_instruction_is_the_next_tasks(monkeypatch, task_id, shown):
    class Task:
        instruction = f"do task {shown}"

    asked = []
    monkeypatch.setattr(ablations, "load_task", lambda *place: asked.append(place) or Task)
    env = ablations.OtherInstruction(make=partial(PointMassEnv, image_size=16), task_id=task_id, num_tasks=3)
    assert env.reset(0).instruction == f"do task {shown}" and asked == [(env.task.suite, shown)]
