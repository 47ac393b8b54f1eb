"""How objects are gripped: on the narrow side, away from neighbours, and along the axes of one that starts turned."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsd.demos.expert import GraspPlan
from rsd.demos.grips import GRIPS, OPEN_M, SIDEWAYS, SURE_M, grip_plan, half_turn
from rsd.demos.palm import CLEAR_M
from rsd.demos.placing import APART, ON_PLAN, OUT_OF_A_DRAWER_M, PLACES, PickAndPlace

BACK_OF_CADDY = "desk_caddy_1_back_contain_region"


def domain(
    half_widths: tuple[float, float], neighbours: list[tuple[float, float]], *, name="can", heading=0.0, tall=0.0
):
    """A table with one box at the origin, and others as thin as a line that rise so much above its middle."""
    positions = np.array([(0.0, 0.0, 0.5), *((x, y, 0.5) for x, y in neighbours)])
    sizes = np.array([[*half_widths, 0.04], *([[0.0, 0.0, tall]] * len(neighbours))])
    numbers = {name: 0} | {f"other_{i}": i + 1 for i in range(len(neighbours))}
    wxyz = np.roll(Rotation.from_euler("z", heading).as_quat(), 1)
    return SimpleNamespace(
        parsed_problem={"initial_state": []},
        sim=SimpleNamespace(
            model=SimpleNamespace(geom_name2id=numbers.get, geom_size=sizes),
            data=SimpleNamespace(
                geom_xmat=np.tile(np.eye(3).ravel(), (len(sizes), 1)), geom_xpos=positions, body_xpos=positions
            ),
        ),
        obj_body_id=numbers,
        objects_dict=dict.fromkeys(numbers),
        get_object=lambda name: SimpleNamespace(category_name=name, contact_geoms=[name]),
        object_states_dict={name: SimpleNamespace(get_geom_state=lambda: {"quat": wxyz})},
    )


@pytest.mark.parametrize(
    ("half_widths", "neighbours", "yaw"),
    [
        ((0.03, 0.02), [], 0.0),  # the fingers open along y
        ((0.02, 0.03), [], SIDEWAYS),
        ((0.03, 0.02), [(0.0, 0.08)], SIDEWAYS),
        ((0.02, 0.03), [(-0.08, 0.02)], 0.0),
        ((0.02, 0.03), [(0.0, 0.08)], SIDEWAYS),  # not where a finger goes
        ((0.05, 0.02), [(0.0, 0.08)], 0.0),  # too wide the other way
    ],
)
def test_fingers_close_on_the_narrow_side_where_no_neighbour_is_in_their_way(half_widths, neighbours, yaw):
    assert grip_plan(domain(half_widths, neighbours), "can")["yaw"] == yaw


def test_a_hand_comes_in_over_a_taller_neighbour_and_beside_it():
    """A wall 7 cm along y would be under the palm; so the grip is 1 cm further along x, away from where it stands."""
    plan = grip_plan(domain((0.04, 0.02), [(-0.031, 0.08)], tall=0.12), "can")
    np.testing.assert_allclose(plan["offset"], [0.01, 0.0, 0.0], atol=1e-12)
    assert plan["yaw"] == 0.0 and plan["hover_height"] == plan["lift_height"] == pytest.approx(0.12 + CLEAR_M)


@pytest.mark.parametrize(("half", "near"), [(0.02, GraspPlan.near_grasp), (0.031, OPEN_M - 0.031), (0.05, SURE_M)])
def test_the_wider_an_object_the_more_exactly_the_hand_comes_down(half, near):
    assert grip_plan(domain((0.06, half), []), "can")["near_grasp"] == pytest.approx(near)


def test_an_object_that_stands_beside_its_origin_is_taken_at_its_middle():
    scene = domain((0.03, 0.03), [])
    scene.sim.data.geom_xpos = scene.sim.data.body_xpos + np.array([0.0, -0.004, 0.0])
    np.testing.assert_allclose(grip_plan(scene, "can")["offset"], [0.0, -0.004, 0.0], atol=1e-12)


def test_a_hand_with_room_around_it_keeps_the_usual_heights():
    plan = grip_plan(domain((0.04, 0.02), [(-0.031, 0.08)], tall=0.02), "can")
    assert plan["offset"] == (0.0, 0.0, 0.0)
    assert (plan["hover_height"], plan["lift_height"]) == (GraspPlan.hover_height, GraspPlan.lift_height)


def test_a_turned_book_is_gripped_along_its_own_axes_and_put_down_along_the_worlds():
    heading = np.deg2rad(-115)
    plan = grip_plan(domain((0.01, 0.05), [], name="black_book", heading=heading), "black_book")
    assert plan["yaw"] == pytest.approx(np.deg2rad(-25)) and plan["turn"] == pytest.approx(np.deg2rad(-65))
    own = GRIPS["black_book"].offset
    np.testing.assert_allclose(plan["offset"], Rotation.from_euler("z", heading).apply(own), atol=1e-12)
    np.testing.assert_allclose(plan["shift"], [0.0, own[1]], atol=1e-12)  # then headed to -180 degrees


def test_an_object_that_starts_unturned_does_not_turn_the_hand():
    assert "turn" not in grip_plan(domain((0.01, 0.05), [], name="moka_pot"), "moka_pot")


def test_two_objects_on_one_place_stand_apart_and_on_their_feet():
    target, names = "flat_stove_1_cook_region", ("pot_1", "pot_2")
    shifts = []
    for name, other in (names, names[::-1]):
        scene = domain((0.03, 0.03), [], name=name)
        scene.get_object = lambda name: SimpleNamespace(category_name="moka_pot", contact_geoms=["geom"])
        skill = PickAndPlace(scene, name, target, "on", [other])
        skill.begin()
        shifts.append(skill._expert.plan.shift)
    plan = skill._expert.plan
    np.testing.assert_allclose(shifts, [APART[target], -np.array(APART[target])])
    assert plan.release_height == PLACES[target]["release_height"] + GRIPS["moka_pot"].foot
    # the foot of the one passes over the knob of the other, which is as high above its origin as it is gripped
    assert plan.lift_height > GRIPS["moka_pot"].foot + GRIPS["moka_pot"].offset[2] + 0.03


def test_what_begins_in_a_drawer_is_carried_over_its_front():
    scene, heights = domain((0.02, 0.02), []), []
    for facts in ([], [["in", "can", "drawer"]], [["on", "can", "table"]]):
        scene.parsed_problem = {"initial_state": facts}
        skill = PickAndPlace(scene, "can", "plate", "on")
        skill.begin()
        heights.append(skill._expert.plan.carry_height)
    assert heights == [ON_PLAN["carry_height"], ON_PLAN["carry_height"] + OUT_OF_A_DRAWER_M, ON_PLAN["carry_height"]]


def test_what_a_place_and_what_a_grip_shift_is_both_counted():
    skill = PickAndPlace(domain((0.01, 0.05), [], name="black_book"), "black_book", BACK_OF_CADDY, "in")
    skill.begin()
    own, place = GRIPS["black_book"].offset[1], PLACES[BACK_OF_CADDY]["shift"]
    np.testing.assert_allclose(skill._expert.plan.shift, [place[0], place[1] - own], atol=1e-12)


@pytest.mark.parametrize(("degrees", "same"), [(0, 0), (100, -80), (-100, 80), (90, -90), (180, 0), (350, -10)])
def test_a_half_turn_is_none(degrees, same):
    assert half_turn(np.deg2rad(degrees)) == pytest.approx(np.deg2rad(same))
