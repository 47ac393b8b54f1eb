"""Which skill reaches which goal of a task, and how goals are refused that none reaches."""

from types import SimpleNamespace

import pytest

from rsd.demos.drawers import SlideDrawer
from rsd.demos.parts import Drag, TurnOn
from rsd.demos.placing import PickAndPlace
from rsd.demos.skills import skill_for, steps_to
from rsd.errors import SettingError

JOINTS = SimpleNamespace(joint_name2id={"cabinet_top": 0, "stove_button": 1}.get)
DOMAIN = SimpleNamespace(
    objects_dict={"plate_1": None, "basket_1": None},
    fixtures_dict={"microwave_1": None, "cabinet_1": None, "wooden_cabinet_1": None},
    sim=SimpleNamespace(model=JOINTS),
    get_object=lambda name: SimpleNamespace(joints=["stove_button"]),
    object_sites_dict={
        "basket_1_contain_region": SimpleNamespace(parent_name="basket_1", joints=["basket_1_joint0"]),
        "cabinet_1_top_region": SimpleNamespace(parent_name="cabinet_1", joints=["cabinet_1_top_level"]),
        "wooden_cabinet_1_top_region": SimpleNamespace(parent_name="wooden_cabinet_1", joints=["cabinet_top"]),
        "microwave_1_heating_region": SimpleNamespace(parent_name="microwave_1", joints=[]),
        "cabinet_1_top_side": SimpleNamespace(parent_name="cabinet_1", joints=[]),
    },
)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (["on", "akita_black_bowl_1", "plate_1"], PickAndPlace),
        (["in", "milk_1", "basket_1_contain_region"], PickAndPlace),
        (["on", "akita_black_bowl_1", "cabinet_1_top_side"], PickAndPlace),
        (["on", "plate_1", "main_table_stove_front_region"], Drag),
        (["on", "plate_1", "flat_stove_1_cook_region"], PickAndPlace),
        (["open", "cabinet_1_top_region"], SlideDrawer),
        (["close", "cabinet_1_top_region"], SlideDrawer),
        (["turnon", "stove_1"], TurnOn),
    ],
)
def test_goal_decides_the_skill(goal, expected):
    assert type(skill_for([goal], DOMAIN)) is expected


@pytest.mark.parametrize(
    ("goal_state", "unreached"),
    [
        ([], []),
        ([["close", "microwave_1"]], ["close", "microwave_1"]),
        ([["on", "a", "b"], ["fold", "c"]], ["fold", "c"]),
    ],
)
def test_other_goals_are_refused_by_name(goal_state, unreached):
    with pytest.raises(SettingError, match="choose other tasks with") as error:
        skill_for(goal_state, DOMAIN)
    assert str(goal_state) in str(error.value) and f"does not reach {unreached}" in str(error.value)


def test_several_goals_come_in_an_order_that_works():
    """Turned on first, closed last, and a drawer is opened for what goes into it, as long as that is not in.

    What goes onto another object comes late, where nothing that is put beside it pushes it over.
    """
    region = "wooden_cabinet_1_top_region"
    on, put, close, turn_on = ["on", "pot_1", "plate_1"], ["in", "bowl_1", region], ["close", region], ["turnon", "s"]
    steps = steps_to([close, on, put, turn_on], DOMAIN)
    assert [step.goal for step in steps] == [turn_on, ["open", region], put, on, close]
    assert [step.until for step in steps] == [None, put, None, None, None]


@pytest.mark.parametrize("region", ["cabinet_1_top_region", "microwave_1_heating_region"])
def test_furniture_that_nobody_has_measured_is_refused(region):
    with pytest.raises(SettingError, match=f"does not reach .*{region}"):
        steps_to([["in", "bowl_1", region]], DOMAIN)
