"""Ablations change what is shown and nothing else."""

from functools import partial

import numpy as np
import pytest

from rsd.envs import ablations
from rsd.errors import SettingError
from tests.fakes import PointMassEnv, point_mass_tasks

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


def seen(env, num_steps, observe=lambda _: True):
    """Pictures of an episode after each of its steps, the first one included."""
    found = [env.reset(2)]
    found += [env.step(10 * ACTION, observe(number)).observation for number in range(num_steps)]
    return [one and one.images for one in found]


def test_a_camera_goes_black_from_a_step_on_and_the_other_one_does_not():
    plain, broken = pair(ablations.CameraOutage, views=["image"], start=2)
    for _ in range(2):  # the second episode as the first
        real, shown = seen(plain, 3), seen(broken, 3)
        assert [one["image"].any() for one in shown] == [True, True, False, False]
        others = [(one["wrist_image"], other["wrist_image"]) for one, other in zip(real, shown, strict=True)]
        assert all(np.array_equal(one, other) for one, other in others)
        assert np.array_equal(real[1]["image"], shown[1]["image"])
    assert [one["wrist_image"].any() for one in seen(pair(ablations.CameraOutage, views=None, start=0)[1], 1)] == [0, 0]


def test_a_camera_freezes_at_the_first_picture_that_is_asked_for():
    plain, broken = pair(ablations.FrozenCamera, views=["image"], start=2)
    for _ in range(2):
        real, shown = seen(plain, 5), seen(broken, 5, observe=lambda number: number != 1)  # nobody looks at step 2
        assert shown[2] is None and not np.array_equal(real[3]["image"], real[5]["image"])
        assert np.array_equal(shown[1]["image"], real[1]["image"])
        assert all(np.array_equal(shown[number]["image"], real[3]["image"]) for number in (3, 4, 5))
        assert np.array_equal(shown[5]["wrist_image"], real[5]["wrist_image"])


def test_an_ablation_is_told_with_the_options_that_matter():
    tasks = point_mass_tasks(num_tasks=2, image_size=16)
    outage = partial(ablations.CameraOutage, views=["image"], start=40)
    assert ablations.describe_ablation(outage, tasks) == "CameraOutage(views=['image'], start=40)"
    assert ablations.describe_ablation(partial(ablations.OtherInstruction, num_tasks=2), tasks) == "OtherInstruction"
    assert ablations.describe_ablation(None, tasks) is None


def test_a_camera_that_is_not_there_is_refused():
    message = r"ablation.views has \['top'\]; the pictures of point_mass are \['image', 'wrist_image'\]"
    with pytest.raises(SettingError, match=message):
        pair(ablations.FrozenCamera, views=["image", "top"], start=0)
    with pytest.raises(SettingError, match=message):
        tasks = point_mass_tasks(num_tasks=2, image_size=16)
        ablations.describe_ablation(partial(ablations.CameraOutage, views=["top"], start=0), tasks)
    with pytest.raises(SettingError, match="start"):
        pair(ablations.CameraOutage, views=None, start=-1)
