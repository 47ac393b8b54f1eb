"""What a client is answered, message by message."""

import logging

import numpy as np
import pytest

from rsd.clock import Naive
from rsd.evaluation.plan import plan_episodes
from rsd.evaluation.rollout import Episode
from rsd.serving.messages import CAMERAS, ObservationReader, ProtocolVersionError, decode_array, encode_array
from rsd.serving.session import Session
from rsd.types import InstructionError
from tests.evaluation.policies import BrokenPolicy, SeeingPolicy
from tests.fakes import PointMassEnv
from tests.serving.policies import END, HELLO, READER, START, TASK, UNIT, TellingPolicy, message, observation


class SeedKeepingPolicy(SeeingPolicy):
    """Solves PointMassEnv, and remembers its seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []

    def predict(self, requests):
        self.seeds += [request.seed for request in requests]
        return super().predict(requests)


def started(policy, *, task=TASK, reader=READER, **options) -> Session:
    session = Session(policy, reader=reader, seed=7, about={"model_server": "rsd"}, **options)
    session.answer(HELLO)
    session.answer(message("episode_start", {"task": task}))
    return session


def act(session, first_pixel=10, seq=1) -> list[float]:
    answer = session.answer(message("observation", observation(first_pixel), seq))
    assert answer["type"] == "action" and answer["seq"] == seq, answer
    return (UNIT * decode_array(answer["payload"]["actions"], "actions")).tolist()


def test_the_hello_tells_the_benchmark_how_to_observe():
    session = Session(TellingPolicy(), reader=READER, seed=7, about={"model_server": "rsd"})
    answer = session.answer({**HELLO, "seq": 4})
    assert (answer["type"], answer["seq"]) == ("hello", 4)
    assert answer["payload"]["model_server"] == "rsd" and answer["payload"]["protocol_version"] == 1
    assert answer["payload"]["observation_params"] == {
        "send_wrist_image": True,
        "send_state": True,
        "quat_no_antipodal": True,
        "env_seed": 0,
    }
    assert {name: spec["format"] for name, spec in answer["payload"]["action_spec"].items()} == {
        "position": "delta_xyz",
        "rotation": "axis_angle",
        "gripper": "binary_close_positive",
    }


def test_one_chunk_lasts_for_its_open_loop_steps():
    policy = TellingPolicy(num_open_loop_steps=3)
    session = started(policy)
    actions = [act(session, first_pixel=10 + step) for step in range(5)]
    assert [action[0] for action in actions] == [0, 1, 2, 0, 1]
    assert [action[1] for action in actions] == [10, 10, 10, 13, 13]  # from the picture that came first, and fourth
    assert actions[0] == [0, 10, 100, 110, 200, 3.5, 1]
    assert len(policy.seen) == 2


def test_a_server_with_a_delay_decodes_what_its_clock_asks_for():
    """Chunks of four: the first is waited for, and of the second the first action is over."""
    policy = TellingPolicy(num_open_loop_steps=4)
    session = started(policy, clock=Naive(delay=1))
    actions = [act(session, first_pixel=10 + step) for step in range(7)]
    assert actions[0] == [0, 0, 0, 0, 0, 0, -UNIT]
    assert [action[0] for action in actions[1:]] == [0, 1, 2, 3, 1, 2]
    assert [action[1] for action in actions[1:]] == [10, 10, 10, 10, 14, 14] and len(policy.seen) == 2


def test_a_new_episode_forgets_the_queue():
    session = started(TellingPolicy())
    act(session)
    assert session.answer(END) is None
    assert session.answer(START) is None
    assert act(session, first_pixel=50)[:2] == [0, 50]


@pytest.mark.parametrize("changed", [{}, {"task_id": 1}, {"episode_idx": 4}])
def test_seeds_and_actions_are_those_of_an_evaluation(changed):
    """The same task, init state and run seed, once with the environment here and once on the client's side."""
    place = {"task_id": 2, "episode_idx": 3} | changed
    plan = plan_episodes(num_tasks=3, num_init_states=5, tasks=[place["task_id"]], num_trials=5, seed=7, save_videos=0)
    here, there = SeedKeepingPolicy(), SeedKeepingPolicy()
    env = PointMassEnv(task_id=place["task_id"], image_size=64)
    episode = Episode(env, here)
    episode.run(init_state_id=place["episode_idx"], seed=plan[place["episode_idx"]].seed)

    reader = ObservationReader(views=READER.views, image_size=64, proprio_dim=8)
    session = started(there, task={"name": env.task.instruction, **place}, reader=reader)
    seen, success, num_steps = env.reset(place["episode_idx"]), False, 0
    while not success:
        images = {CAMERAS[view]: encode_array(picture) for view, picture in seen.images.items()}
        payload = {"images": images, "states": encode_array(seen.proprio), "task_description": seen.instruction}
        answer = session.answer(message("observation", payload))
        step = env.step(decode_array(answer["payload"]["actions"], "actions"))
        seen, success = step.observation, step.success
        num_steps += 1
    assert num_steps == episode.num_steps and episode.success
    assert there.seeds == here.seeds and len(here.seeds) == len(set(here.seeds)) == len(here.seen) > 1


def test_actions_out_of_range_are_clipped_and_bad_ones_refused():
    session = started(BrokenPolicy(np.full((8, 7), 1.5)))
    assert act(session) == [UNIT] * 7
    session = started(BrokenPolicy(np.full((8, 7), np.nan)))
    answer = session.answer(message("observation", observation()))
    assert "the policy failed: ActionError: the policy returned nan at step 0" in answer["payload"]["error"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("nonsense", "the message is of type str"),
        (message("dance"), "message type 'dance' is unknown"),
        (message("observation", {}), "observation has no 'images'"),
    ],
)
def test_what_is_not_understood_is_answered_and_logged_and_the_session_goes_on(wrong, said, caplog):
    session = started(TellingPolicy())
    answer = session.answer(wrong)
    assert answer["type"] == "error" and said in answer["payload"]["error"]
    assert answer["seq"] == (wrong["seq"] if isinstance(wrong, dict) else 0)
    assert said in caplog.text
    assert act(session)[0] == 0


def test_a_sequence_number_that_is_none_is_not_sent_back():
    assert started(TellingPolicy()).answer({"type": "hello", "seq": "x"})["seq"] == 0


def test_the_hello_comes_first():
    session = Session(TellingPolicy(), reader=READER, seed=7, about={})
    answer = session.answer(message("observation", observation()))
    assert "the first message is 'observation', expected 'hello'" in answer["payload"]["error"]


def test_another_protocol_ends_the_connection():
    session = Session(TellingPolicy(), reader=READER, seed=7, about={})
    with pytest.raises(ProtocolVersionError):
        session.answer(message("hello", {"protocol_version": 2}))


def test_an_observation_outside_of_an_episode_is_an_error():
    session = Session(TellingPolicy(), reader=READER, seed=7, about={})
    session.answer(HELLO)
    ask = message("observation", observation())
    assert "outside of an episode: no episode_start came" in session.answer(ask)["payload"]["error"]
    session.answer(START)
    session.answer(END)
    assert "the last episode has ended" in session.answer(ask)["payload"]["error"]


def test_what_is_wrong_with_an_episode_is_said_at_its_first_observation():
    session = started(TellingPolicy())
    assert session.answer(message("episode_start", {"task": {"name": "reach"}})) is None
    answer = session.answer(message("observation", observation()))
    assert "outside of an episode: episode_start.task has no 'task_id'" in answer["payload"]["error"]


def test_a_policy_that_fails_says_so_and_serves_the_next_episode(caplog):
    session = started(TellingPolicy())
    black = observation()
    black["images"]["agentview"] = {**black["images"]["agentview"], "format": "raw", "dtype": "|u1"}
    black["images"]["agentview"]["data"] = np.zeros((16, 16, 3), dtype=np.uint8).tobytes()
    answer = session.answer(message("observation", black, seq=6))
    assert (answer["type"], answer["seq"]) == ("error", 6)
    assert answer["payload"]["error"].startswith("the policy failed: RuntimeError: CUDA error")
    assert "the policy failed in task 3 init state 5 (reach)" in caplog.text and "Traceback" in caplog.text
    session.answer(START)
    assert act(session)[0] == 0


def test_the_log_tells_how_episodes_end(caplog):
    caplog.set_level(logging.INFO)
    session = started(TellingPolicy())
    act(session)
    session.answer(END)
    assert "task 3 init state 5 (reach): {'success': True} after 2 steps; 1 chunks" in caplog.text
    session.close()
    assert "left" not in caplog.text
    session.answer(START)
    session.close()
    assert "the client left in the middle of task 3 init state 5" in caplog.text


def test_a_clients_error_is_logged(caplog):
    assert started(TellingPolicy()).answer(message("error", {"error": "out of memory"})) is None
    assert "the client reports: {'error': 'out of memory'}" in caplog.text


def test_the_end_of_no_episode_is_logged_and_nothing_else(caplog):
    caplog.set_level(logging.INFO)
    session = started(TellingPolicy())
    for _ in range(2):
        assert session.answer(END) is None
    assert "no episode: {'success': True} after 2 steps; 0 chunks" in caplog.text
    session.answer(START)
    assert act(session)[0] == 0


def test_what_is_echoed_is_short_and_one_line(caplog):
    session = started(TellingPolicy())
    answer = session.answer(message("dance\n" * 10**6))
    assert len(answer["payload"]["error"]) < 600 and "\n" not in answer["payload"]["error"]
    session.answer(message("error", {"error": "out of memory" * 10**6}))
    assert max(len(record.getMessage()) for record in caplog.records) < 600


@pytest.mark.parametrize("number", [-1, True, 1.5])
def test_numbers_of_an_episode_that_are_none_are_said_at_its_first_observation(number):
    session = started(TellingPolicy(), task={**TASK, "task_id": number})
    answer = session.answer(message("observation", observation()))
    assert "outside of an episode: episode_start.task.task_id is" in answer["payload"]["error"]


@pytest.mark.parametrize(
    ("instruction", "said"),
    [
        ("", "expected the instruction in words"),
        ("put " * 10**6, "task_description has 4000000 characters, expected 10000 at most: 'put put"),
    ],
)
def test_an_instruction_that_none_can_be_gets_no_action_in_the_middle_of_a_chunk_either(instruction, said):
    session = started(TellingPolicy(num_open_loop_steps=3))
    act(session)
    answer = session.answer(message("observation", {**observation(), "task_description": instruction}))
    assert said in answer["payload"]["error"]
    assert act(session)[0] == 1


class PuzzledPolicy(TellingPolicy):
    """Raises what nobody thought of."""

    def predict(self, requests):
        raise KeyError("goal 1")


def test_whatever_a_policy_raises_is_answered(caplog):
    answer = started(PuzzledPolicy()).answer(message("observation", observation()))
    assert answer["payload"]["error"] == "the policy failed: KeyError: 'goal 1'" and "Traceback" in caplog.text


class ReadingPolicy(TellingPolicy):
    """Knows one instruction."""

    def check_instructions(self, instructions, where=None):
        if list(instructions) != ["lift it"]:
            raise InstructionError(f"unknown words in {list(instructions)}")


def test_an_instruction_that_the_policy_does_not_know_ends_the_episode_before_anything_is_computed(caplog):
    policy = ReadingPolicy()
    session = started(policy)
    seen = observation(10) | {"task_description": "fly"}
    first = session.answer(message("observation", seen, 1))["payload"]["error"]
    later = session.answer(message("observation", seen, 2))["payload"]["error"]
    assert first == "unknown words in ['fly']" and not policy.seen
    assert later.startswith("an observation came outside of an episode: the policy does not understand the last one")
    assert [record.levelname for record in caplog.records if "ends before its first step" in record.message] == [
        "ERROR"
    ]
    session.answer(message("episode_start", {"task": TASK}))
    known = observation(10) | {"task_description": "lift it"}
    assert session.answer(message("observation", known, 3))["type"] == "action"
