"""Published mixtures, and the transforms held to reference arrays where there are some, else to small tables."""

import numpy as np
import pytest

from rsd.data import DataError, openx
from rsd.errors import SettingError


def steps(n: int, **features) -> dict:
    """Features of n steps; a number k stands for a vector of k dims, row i holding 10 i, 10 i + 1, …"""
    made = {}
    for name, value in features.items():
        if isinstance(value, int):
            value = (10 * np.arange(n)[:, None] + np.arange(value)).astype(np.float32)
        made[name.replace("__", "/")] = value
    return made


def test_published_weights():
    soup = openx.published_mixture("oxe_magic_soup_plus")
    assert len(soup) == 27
    assert soup["fractal20220817_data"] == 0.54087122203 and soup["kuka"] == 0.8341046294
    assert soup["droid"] == 0.06 and soup["bridge_orig"] == 1.0
    minus = openx.published_mixture("oxe_magic_soup_plus_minus")
    assert soup.keys() - minus.keys() == {"language_table", "droid"}
    assert minus["fractal20220817_data"] == 1.0
    franka = openx.published_mixture("rtx_franka")
    assert franka["taco_play"] == 2.0 and franka["cmu_play_fusion"] == 1.0 and len(franka) == 24
    assert openx.published_mixture("octo_rtx")["nyu_door_opening_surprising_effectiveness"] == 5.0
    assert len(openx.published_mixture("octo_oxe_flex_act_soup")) == 32


def test_an_unknown_mixture_is_refused():
    with pytest.raises(SettingError, match=r"data.mixture is 'soup', expected one of .*'bridge_rt_1'.*data.members="):
        openx.published_mixture("soup")


@pytest.mark.parametrize(
    ("name", "why"), [("kuka", "compressed strings"), ("droid", "tensorflow_graphics"), ("robo_net", "no formula")]
)
def test_a_set_without_a_transform_is_refused_by_name(name, why):
    with pytest.raises(
        DataError,
        match=f"no standardisation transform for the data set '{name}': .*{why}.*data.transform can be one of",
    ):
        openx.transform_of(name)


@pytest.mark.parametrize(
    ("commands", "positions"),
    [
        ([0, 0, 1, 0, 0, -1, 0], [1, 1, 0, 0, 0, 1, 1]),  # closes, then opens: open before
        ([0, -1, 0, 1], [0, 1, 1, 0]),  # opens first: closed before
        ([0, 0.1, -0.1], [1, 1, 1]),  # no command: open
        ([0.5], [0]),
    ],
)
def test_relative_gripper_commands(commands, positions):
    got = openx.absolute_gripper(np.array(commands, dtype=np.float32))
    assert got.dtype == np.float32 and got.tolist() == positions


def test_gripper_the_other_way_round():
    assert openx.invert_gripper(np.array([0, 0.25, 1])).tolist() == [1, 0.75, 0]


def test_bridge_takes_reached_motions_and_drops_both_ends():
    state = np.zeros((5, 7), dtype=np.float32)
    state[:, 0] = [0, 1, 3, 6, 10]
    state[:, 6] = [9, 1, 2, 3, 4]
    action = np.full((5, 7), 99, dtype=np.float32)
    action[:, 6] = [0.5, 1, 0.5, 0, 1]
    words = list("abcde")
    recorded = steps(5, observation__state=state, action=action, language_instruction=words, observation__image_0=2)
    got = openx.bridge_orig(recorded)
    assert got["action"][:, 0].tolist() == [2, 3, 4]  # steps 1, 2, 3: differences of the reached states
    assert got["action"][:, 1:6].tolist() == [[0] * 5] * 3
    assert got["action"][:, 6].tolist() == [1, 0, 0]  # 0.5 is on the way to the 0 that follows
    assert got["observation/proprio"][:, 0].tolist() == [1, 3, 6]
    assert got["observation/proprio"][:, 6:].tolist() == [[0, 1], [0, 2], [0, 3]]
    assert got["language_instruction"] == ["b", "c", "d"]
    assert got["observation/image_0"].tolist() == [[10, 11], [20, 21], [30, 31]]
    assert len(recorded["action"]) == 5 and recorded["action"][0, 0] == 99  # what came in is as it was


def test_bridge_of_open_x():
    state = np.zeros((4, 7), dtype=np.float32)
    state[:, 5] = [0, 1, 3, 6]
    got = openx.bridge_oxe(
        steps(
            4,
            observation__state=state,
            action__world_vector=3,
            action__rotation_delta=3,
            action__open_gripper=np.array([False, True, False, True]),
            observation__natural_language_instruction=list("wxyz"),
        )
    )
    assert got["action"].tolist() == [[0, 0, 0, 0, 0, 2, 1], [0, 0, 0, 0, 0, 3, 0]]
    assert got["language_instruction"] == ["x", "y"]
    assert got["observation/proprio"].shape == (2, 8)


def test_fractal():
    got = openx.fractal(
        steps(
            3,
            action__world_vector=3,
            action__rotation_delta=3,
            action__gripper_closedness_action=np.array([[0], [1], [0]], dtype=np.float32),
            observation__base_pose_tool_reached=7,
            observation__gripper_closed=np.array([[0], [0], [1]], dtype=np.float32),
            observation__natural_language_instruction=list("abc"),
        )
    )
    assert got["action"].tolist() == [[0, 1, 2, 0, 1, 2, 1], [10, 11, 12, 10, 11, 12, 0], [20, 21, 22, 20, 21, 22, 0]]
    assert got["observation/proprio"][2].tolist() == [20, 21, 22, 23, 24, 25, 26, 1]
    assert got["language_instruction"] == ["a", "b", "c"]


def test_libero():
    action = np.array([[1, 2, 3, 4, 5, 6, -1], [1, 2, 3, 4, 5, 6, 1]], dtype=np.float32)
    got = openx.libero(steps(2, action=action, observation__state=8, language_instruction=["a", "a"]))
    assert got["action"][:, 6].tolist() == [1, 0]
    assert got["observation/proprio"][1].tolist() == [10, 11, 12, 13, 14, 15, 16, 17]


WORLD = {
    "action__world_vector": 3,
    "action__rotation_delta": 3,
    "observation__natural_language_instruction": ["a", "b"],
}


@pytest.mark.parametrize(
    ("name", "features", "action", "proprio"),
    [
        (
            "taco_play",
            {
                "action__rel_actions_world": np.array(
                    [[1, 2, 3, 4, 5, 6, -1], [1, 2, 3, 4, 5, 6, 1]], dtype=np.float32
                ),
                "observation__robot_obs": 15,
                "observation__natural_language_instruction": ["a", "b"],
            },
            [1, 2, 3, 4, 5, 6, 0],
            [0, 1, 2, 3, 4, 5, 0, 7],
        ),
        (
            "jaco_play",
            WORLD
            | {
                "action__gripper_closedness_action": np.array([[1], [0]], dtype=np.float32),
                "observation__end_effector_cartesian_pos": 7,
            },
            [0, 1, 2, 0, 0, 0, 0],
            [0, 1, 2, 3, 4, 5, 0, 6],
        ),
        (
            "viola",
            WORLD
            | {
                "action__gripper_closedness_action": np.array([-1, 1], dtype=np.float32),
                "observation__joint_states": 7,
                "observation__gripper_states": 1,
            },
            [0, 1, 2, 0, 1, 2, 1],
            [0, 1, 2, 3, 4, 5, 6, 0],
        ),
        (
            "berkeley_autolab_ur5",
            WORLD
            | {"action__gripper_closedness_action": np.array([0, 1], dtype=np.float32), "observation__robot_state": 15},
            [0, 1, 2, 0, 1, 2, 1],
            [6, 7, 8, 9, 10, 11, 12, 13],
        ),
        (
            "toto",
            WORLD | {"action__open_gripper": np.array([True, False]), "observation__state": 7},
            [0, 1, 2, 0, 1, 2, 1],
            [0, 1, 2, 3, 4, 5, 6, 0],
        ),
        (
            "utaustin_mutex",
            {
                "action": np.array([[1, 2, 3, 4, 5, 6, -1], [1, 2, 3, 4, 5, 6, 1]], dtype=np.float32),
                "observation__state": 24,
                "language_instruction": ["a", "b"],
            },
            [1, 2, 3, 4, 5, 6, 1],
            [0, 1, 2, 3, 4, 5, 6, 7],
        ),
    ],
)
def test_further_sets(name, features, action, proprio):
    got = openx.transform_of(name)(steps(2, **features))
    assert got["action"][0].tolist() == action and got["action"].dtype == np.float32
    assert got["observation/proprio"][0].tolist() == proprio
    assert got["language_instruction"] == [*features.get("language_instruction", ["a", "b"])]
