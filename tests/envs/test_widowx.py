"""The WidowX environment against a simulated server; the contract of every environment, and a robot's own troubles."""

import os
import pty
import select
import sys
import time

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from rsd.envs import operator
from rsd.envs.edgeml import RobotServerError
from rsd.envs.operator import Operator, OperatorError
from rsd.envs.widowx import ROTATION, START_QUATERNION, WidowXEnv, check_widowx, picture_of, proprio_of
from rsd.errors import SettingError
from rsd.images import resize_pictures
from rsd.jpeg import jpeg_round_trip
from rsd.protocols import PROMISED
from tests.envs.contract import EnvContract
from tests.envs.robots import EXECUTION_FAILURE, SimulatedPerson, SimulatedRobot, as_jpeg
from tests.test_configs import CONF

CARROT, POT = "put the carrot on the plate", "move the pot to the left"
FAST = {"control_hz": 1000.0, "timeout_s": 20.0}  # a loaded machine may be slow


@pytest.fixture
def robot():
    with SimulatedRobot() as robot:
        yield robot


@pytest.fixture
def person(robot):
    return SimulatedPerson(robot)


def made(robot, person, **options):
    return WidowXEnv(
        **{"instructions": [CARROT, POT], "task_id": 1, "port": robot.port, "person": person, **FAST, **options}
    )


@pytest.fixture
def env(robot, person):
    env = made(robot, person)
    yield env
    env.close()


class TestWidowXEnv(EnvContract):
    @pytest.fixture
    def env(self, robot, person):
        self.person = person
        env = made(robot, person)
        yield env
        env.close()

    def succeed(self, env):
        self.person.solved = True
        return env.step(self.actions(env)[0], observe=False).success


def test_the_server_is_told_what_openvlas_script_tells_it(robot, env):
    env.reset(0)
    assert robot.asked == ["hash", "init", "reset", "move", "obs"]
    assert robot.params == {
        "fix_zangle": 0.1,
        "move_duration": 0.2,
        "adaptive_wait": True,
        "move_to_rand_start_freq": 1,
        "override_workspace_boundaries": [[0.1, -0.2, -0.01, -1.57, 0.0], [0.45, 0.25, 0.3, 1.57, 0.0]],
        "action_clipping": "xyz",
        "catch_environment_except": False,
        "start_state": [0.3, -0.09, 0.26, 0, -0.259, 0, -0.966],
        "skip_move_to_neutral": False,
        "return_full_image": True,
        "camera_topics": [{"name": "/blue/image_raw"}],
    }
    rotation = np.array(ROTATION)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=2e-3)  # as published, to three digits
    assert abs(np.linalg.norm(START_QUATERNION) - 1) < 1e-3


def test_an_action_arrives_as_it_was_given(robot, env):
    env.reset(0)
    action = np.array([0.013, -0.02, 0.1 / 3, 0.1, -0.2, 1e-9, 0.7])
    env.step(action)
    np.testing.assert_array_equal(robot.steps[0], action)
    seen = env.step(np.zeros(7)).observation
    np.testing.assert_allclose(seen.proprio, [0.313, -0.11, 0.26 + 0.1 / 3, 0.1, -0.2, 1e-9, 0, 0])
    assert seen.instruction == POT and not seen.stored


def test_what_the_camera_sees_keeps_its_colours_and_is_not_turned():
    picture = np.zeros((480, 640, 3), dtype=np.uint8)
    picture[:240, :320] = (250, 20, 20)  # red in the upper left corner
    seen = picture_of(as_jpeg(picture))
    assert seen.shape == (480, 640, 3) and seen.dtype == np.uint8
    assert np.abs(seen.astype(int) - picture).mean() < 2 and seen[100, 100, 0] > 200 > 50 > seen[100, 100, 2]


def test_pixels_are_those_that_the_servers_own_client_decodes():
    cv2 = pytest.importorskip("cv2")
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((640, 480), Image.Resampling.BICUBIC))
    _, encoded = cv2.imencode(".jpg", picture)
    expected = cv2.imdecode(np.frombuffer(encoded.tobytes(), dtype=np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(picture_of(encoded.tobytes()).astype(int) - expected).max() <= 1


def test_the_model_gets_224_pixels_in_one_step_from_the_cameras():
    """As run_bridgev2_eval.py: JPEG, then lanczos3 to a square, without a crop; not by way of 256."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC))
    got = resize_pictures([jpeg_round_trip(picture)], 224)[0].numpy()
    channels = [Image.fromarray(jpeg_round_trip(picture)[..., one].astype(np.float32)) for one in range(3)]
    resized = [np.asarray(one.resize((224, 224), Image.Resampling.LANCZOS)) for one in channels]
    expected = np.clip(np.round(np.stack(resized, axis=-1)), 0, 255)
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_the_zero_of_bridge_origs_proprio_can_be_left_out(robot, person):
    state = np.arange(7.0)
    np.testing.assert_array_equal(proprio_of(state, 8), [0, 1, 2, 3, 4, 5, 0, 6])
    np.testing.assert_array_equal(proprio_of(state, 7), state)
    env = made(robot, person, proprio_dim=7)
    assert env.task.proprio_dim == 7 and env.reset(0).proprio.shape == (7,)
    env.close()


def test_a_person_is_asked_at_the_last_step_and_decides(robot, person):
    env = made(robot, person, max_steps=3)
    for verdict in (False, True):
        person.verdict = verdict
        env.reset(0)
        assert [env.step(np.zeros(7), observe=False).success for _ in range(3)] == [False, False, verdict]
    assert person.asked == 2
    env.reset(1)
    person.solved = True  # said in the middle: nobody asks again
    assert env.step(np.zeros(7)).success and person.asked == 2
    env.close()


def test_a_step_lasts_as_long_as_the_robots(robot, person, monkeypatch):
    env = made(robot, person, control_hz=5.0)
    env.reset(0)
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    env.step(np.zeros(7), observe=False)
    monkeypatch.undo()
    assert len(slept) == 1 and 0 <= slept[0] <= 0.2
    env.close()


def test_a_stalled_server_is_an_error_in_time_and_nothing_is_repeated(robot, person):
    env = made(robot, person, timeout_s=0.5)
    env.reset(0)
    env.step(np.zeros(7))
    robot.stalled = True
    before = len(robot.steps)
    with pytest.raises(
        RobotServerError, match=r"127|localhost.*has not answered in 0.5 s, asked for step_action"
    ) as said:
        env.step(np.full(7, 0.01))
    assert "\n" not in str(said.value)
    assert robot.asked.count("step_action") == before + 1 and len(robot.steps) == before
    with pytest.raises(RuntimeError, match=r"reset\(\)"):  # what the arm does is not known
        env.step(np.zeros(7))
    with pytest.raises(RobotServerError, match="asked for reset"):
        WidowXEnv.reset(shortened(env), 0)
    robot.stalled = False
    env.reset(1)
    assert env.step(np.zeros(7)).observation is not None
    env.close()


def shortened(env):
    env._motion_timeout_s = 0.3
    return env


def test_no_server_is_an_error_in_time(monkeypatch):
    with SimulatedRobot() as robot:
        port = robot.port
    monkeypatch.setattr(operator, "check_terminal", lambda: None)
    with pytest.raises(
        RobotServerError, match=rf"localhost:{port} has not answered in 0.3 s, asked for its configuration"
    ):
        WidowXEnv(instructions=[CARROT], task_id=0, port=port, timeout_s=0.3)


def test_what_the_server_could_not_do_is_said(robot, person, env):
    robot.status = EXECUTION_FAILURE
    with pytest.raises(RobotServerError, match="could not do 'reset': execution failure; look at its own log"):
        env.reset(0)
    robot.status, robot.params = 1, None
    with pytest.raises(RobotServerError, match="'reset': the robot is not initialised"):
        env.reset(0)
    robot.status = 2
    with pytest.raises(RobotServerError, match="could not do 'init': execution failure"):
        made(robot, person)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("version", "0.0.2", "has version 0.0.2, expected 0.0.1"),
        ("action_keys", ["init"], r"has action_keys \['init'\], expected \['init', 'move'"),
        ("observation_keys", ["image", "state"], "it is another version of bridge_data_robot"),
    ],
)
def test_another_kind_of_server_is_refused(robot, person, name, value, message):
    robot.config[name] = value
    with pytest.raises(RobotServerError, match=message):
        made(robot, person)


def test_a_forwarded_port_is_none_of_its_business(robot, person):
    robot.config |= {"port_number": 15556, "broadcast_port": 15557}
    made(robot, person).close()


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (picture_of, b"no picture", "picture is no JPEG"),
        (picture_of, np.zeros((4, 4, 3), np.uint8), "picture is no JPEG.*is the robot initialised"),
        (picture_of, None, "picture is no JPEG"),
        (lambda state: proprio_of(state, 8), {}, r"state is \{\}, expected 7 finite numbers"),
        (lambda state: proprio_of(state, 8), np.zeros(8), "expected 7 finite numbers"),
        (lambda state: proprio_of(state, 8), np.full(7, np.nan), "expected 7 finite numbers"),
    ],
)
def test_what_is_seen_is_looked_at(function, value, message):
    with pytest.raises(RobotServerError, match=message):
        function(value)


@pytest.fixture
def typed(monkeypatch):
    """What somebody types, line by line; nothing more comes once it is closed."""
    read, write = os.pipe()
    with os.fdopen(read) as keyboard, os.fdopen(write, "w", buffering=1) as hands:
        monkeypatch.setattr(sys, "stdin", keyboard)
        yield hands


def answering(monkeypatch, write, *answers):
    """Let these be typed, one as soon as each question is there; returns what is said."""
    said, left = [], iter(answers)

    def say(text, **_):
        said.append(text)
        if text.endswith("Enter."):
            write(f"{next(left)}\n")

    monkeypatch.setattr(operator, "print", say, raising=False)
    return said


def test_the_operator_takes_yes_and_no_and_asks_again(typed, monkeypatch):
    said = answering(monkeypatch, typed.write, "", "maybe", "Y", "n")
    person = Operator()
    person.wait_until_ready(CARROT, 2)
    assert person.judge(CARROT) is True and person.judge(CARROT) is False
    assert said[0] == f"Episode 3: '{CARROT}'. Arrange the scene, then press Enter."
    assert said[3] == "'maybe' is no answer; type y or n, then Enter."


def test_what_was_typed_before_a_question_is_no_answer_to_it(monkeypatch):
    """On a terminal, which hands out a line at a time; a second y must not set the arm in motion."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as keyboard:
        monkeypatch.setattr(sys, "stdin", keyboard)
        os.write(ours, b"y\ny\n")
        while not select.select([keyboard], [], [], 1)[0]:
            pass
        answering(monkeypatch, lambda text: os.write(ours, text.encode()), "n")
        assert Operator().judge(CARROT) is False
    os.close(ours)


def test_solved_can_be_typed_in_the_middle_and_nobody_is_waited_for(typed):
    person = Operator()
    assert person.says_solved() is False
    typed.write("s\n")
    assert person.says_solved() is True and person.says_solved() is False
    typed.close()
    with pytest.raises(OperatorError, match="standard input has ended in the middle of an episode"):
        person.says_solved()
    with pytest.raises(OperatorError, match="nobody can be asked"):
        person.judge(CARROT)


def checked_with(robot, **options):
    given = {"instructions": [CARROT], "protocol": "openvla_bridge", "num_workers": 1, "host": "localhost"}
    return check_widowx(**{**given, "port": robot.port, "timeout_s": 20.0, **options})


def test_the_check_before_an_evaluation(robot, monkeypatch):
    with pytest.raises(SettingError, match="standard input is no terminal; run it in one"):
        checked_with(robot)
    assert robot.asked == []  # nothing is waited for, and nothing asked
    monkeypatch.setattr("rsd.envs.widowx.check_terminal", lambda: None)
    assert checked_with(robot)["robot"] == f"widowx at localhost:{robot.port}"
    assert robot.asked == ["hash"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instructions": None}, r"env.instructions names no task; say what to do: env.instructions=\["),
        ({"instructions": [CARROT, CARROT]}, "one stands twice; raise num_trials"),
        ({"protocol": "openvla_oft"}, "protocol=openvla_oft is how LIBERO is evaluated; .*protocol=openvla_bridge"),
        ({"num_workers": 2}, "num_workers is 2, and env=widowx is one robot"),
    ],
)
def test_the_check_says_what_is_missing(robot, options, message):
    with pytest.raises(SettingError, match=message):
        checked_with(robot, **options)


def composed(*typed):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("eval", ["env=widowx", "protocol=openvla_bridge", f"env.instructions=[{CARROT},{POT}]", *typed])


def test_the_configuration_makes_the_environment(robot, person):
    cfg = composed(f"env.port={robot.port}", "env.timeout_s=20")
    tasks = instantiate(cfg.env.tasks)
    env = instantiate(cfg.env.make)(task_id=1, person=person)
    assert env.task == tasks[1] and [task.instruction for task in tasks] == [CARROT, POT]
    assert (env.task.max_steps, env.task.control_hz, env.task.protocol) == (60, 5, "openvla_bridge-1")
    assert (cfg.num_trials, cfg.data.unnorm_key, cfg.env.offers.proprio_dim) == (10, "bridge_orig", 8)
    env.close()


@pytest.mark.parametrize(
    ("typed", "changed"),
    [
        ("env.max_steps=80", "max_steps=80"),
        ("protocol.control_hz=10", "control_hz=10"),
        ("env.blocking=true", "blocking=True"),
        ("env.start_position=[0.3,0.0,0.26]", "start_position=[0.3, 0.0, 0.26]"),
    ],
)
def test_a_stamp_says_which_value_it_does_not_promise(typed, changed):
    assert instantiate(composed(typed).env.make).keywords["protocol"] == f"openvla_bridge-1 with {changed}"


def test_what_the_protocol_is_configured_with_is_what_its_name_promises():
    cfg, promised = composed(), PROMISED["openvla_bridge-1"]
    assert cfg.protocol.max_steps == promised["max_steps"] and cfg.env.start_position == promised["start_position"]
    assert (cfg.protocol.control_hz, cfg.protocol.blocking) == (promised["control_hz"], promised["blocking"])
