"""Which skill reaches which goal of a task, and how goals are refused that none reaches."""

from types import SimpleNamespace

import pytest

from rsd.demos.skills import Drag, PickAndPlace, skill_for

DOMAIN = SimpleNamespace(
    fixtures_dict={"cabinet_1": None},
    object_sites_dict={
        "basket_1_contain_region": SimpleNamespace(parent_name="basket_1", joints=["basket_1_joint0"]),
        "cabinet_1_top_region": SimpleNamespace(parent_name="cabinet_1", joints=["cabinet_1_top_level"]),
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
    ],
)
def test_goal_decides_the_skill(goal, expected):
    assert type(skill_for([goal], DOMAIN)) is expected


@pytest.mark.parametrize(
    "goal_state",
    [[], [["close", "drawer_1"]], [["on", "a", "b"], ["on", "c", "d"]], [["in", "bowl_1", "cabinet_1_top_region"]]],
)
def test_other_goals_are_refused_by_name(goal_state):
    with pytest.raises(ValueError, match="choose other tasks with") as error:
        skill_for(goal_state, DOMAIN)
    assert str(goal_state) in str(error.value)
