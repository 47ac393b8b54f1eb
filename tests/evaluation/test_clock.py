"""The clock: which action of which chunk is executed at which control step, and what the policy sees."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from rsd.clock import Clock, Corrected, DelayError, Naive, refuse_rtc
from rsd.errors import SettingError
from rsd.evaluation.evaluate import Recording, evaluate, resume_results
from rsd.evaluation.plan import PlanError, keep_plan, read_plan_file
from rsd.evaluation.report import build_report, flat_metrics
from rsd.evaluation.rollout import Episode
from rsd.evaluation.statistics import summarize_delay
from rsd.queue import ActionError, Queue, chunk_seed
from rsd.types import Chunk, EpisodeResult, Memory, Observation
from tests.evaluation.folders import plan_of
from tests.evaluation.policies import SeeingPolicy
from tests.fakes import PointMassEnv, point_mass_tasks

SEEN = Observation({}, np.zeros(8), "nothing to do")
STILL = "--"
# (async, delay, open-loop steps of chunks of 8): what is executed, step by step, as chunk and action; when it is asked
TIMES = {
    (Clock, 0, 8): ("00 01 02 03 04 05 06 07 10 11 12 13 14 15 16 17 20 21", [0, 8, 16]),
    (Naive, 0, 8): ("00 01 02 03 04 05 06 07 10 11 12 13 14 15 16 17 20 21", [0, 8, 16]),
    (Clock, 1, 8): ("-- 00 01 02 03 04 05 06 07 -- 10 11 12 13 14 15 16 17 -- 20", [0, 9, 18]),
    (Naive, 1, 8): ("-- 00 01 02 03 04 05 06 07 11 12 13 14 15 16 17 21 22", [0, 8, 15]),
    (Clock, 3, 8): ("-- -- -- 00 01 02 03 04 05 06 07 -- -- -- 10 11 12 13 14 15 16 17 --", [0, 11, 22]),
    (Naive, 3, 8): ("-- -- -- 00 01 02 03 04 05 06 07 13 14 15 16 17 23 24 25 26 27 33", [0, 8, 13, 18]),
    (Clock, 0, 4): ("00 01 02 03 10 11 12 13 20 21", [0, 4, 8]),
    (Naive, 0, 4): ("00 01 02 03 10 11 12 13 20 21", [0, 4, 8]),
    (Clock, 1, 4): ("-- 00 01 02 03 -- 10 11 12 13 -- 20", [0, 5, 10]),
    (Naive, 1, 4): ("-- 00 01 02 03 11 12 13 14 21 22 23 24 31", [0, 4, 8, 12]),
    (Clock, 3, 4): ("-- -- -- 00 01 02 03 -- -- -- 10 11 12 13 -- -- -- 20", [0, 7, 14]),
    (Naive, 3, 4): ("-- -- -- 00 01 02 03 13 14 15 16 23 24 25 26 33", [0, 4, 8, 12]),
    # one chunk is computed at a time: the old one goes on beyond its open-loop steps, and the robot stands still after
    (Naive, 3, 2): ("-- -- -- 00 01 02 13 14 15 23 24 25 33", [0, 3, 6, 9, 12]),
    (Naive, 5, 8): ("-- -- -- -- -- 00 01 02 03 04 05 06 07 15 16 17 -- -- 25 26 27 -- -- 35", [0, 8, 13, 18, 23]),
    (Clock, 8, 8): ("-- -- -- -- -- -- -- -- 00 01 02 03 04 05 06 07 --", [0, 16]),
    (Naive, 7, 8): ("-- -- -- -- -- -- -- 00 01 02 03 04 05 06 07 17 -- -- -- -- -- -- 27", [0, 8, 15, 22]),
}


class TimedEnv(PointMassEnv):
    """Its proprio tells the control step; keeps the actions that it was given."""

    def reset(self, init_state_id):
        self.actions = []
        return self._timed(super().reset(init_state_id))

    def step(self, action, observe=True):
        self.actions.append(action)
        step = super().step(action, observe)
        return dataclasses.replace(step, observation=step.observation and self._timed(step.observation))

    def _timed(self, observation):
        proprio = observation.proprio.copy()
        proprio[3] = len(self.actions)
        return dataclasses.replace(observation, proprio=proprio)


class NumberingPolicy:
    """Action t of chunk n is (10 + 10 n + t) / 100 in one dim, and closes the gripper."""

    def __init__(self, num_steps=8, length=8):
        self.num_open_loop_steps, self.length, self.requests = num_steps, length, []

    def predict(self, requests):
        if requests[0].corrects:
            return self.correct(requests[0])
        actions = np.zeros((self.length, 7))
        actions[:, 3] = (10 + 10 * len(self.requests) + np.arange(self.length)) / 100
        actions[:, 6] = 1
        self.requests += requests
        memory = Memory(np.full((self.length, 7), float(len(self.requests))))
        return [Chunk(actions, num_steps=self.num_open_loop_steps, memory=memory)]

    def correct(self, request):
        raise AssertionError("nobody has a correction here")


class CorrectingPolicy(NumberingPolicy):
    """Says in another dim, an eighth of a unit for each, how many steps it was told are over, and keeps the rest."""

    def __init__(self, *args):
        super().__init__(*args)
        self.corrected = []

    def correct(self, request):
        self.corrected.append(request)
        over, number = request.memory.num_executed, round(float(request.memory.chunk[0, 0])) - 1
        actions = np.zeros((self.length - over, 7))
        actions[:, 3] = (10 + 10 * number + np.arange(over, self.length)) / 100
        actions[:, 4], actions[:, 6] = over / 8, 1
        return [Chunk(actions, num_steps=len(actions), work={"corrections": 1}, latency_ms={"correction": 1.0})]


def run(clock, num_steps, count, *, record=False):
    """An episode of so many control steps: (episode, environment, policy)."""
    env, policy = TimedEnv(max_steps=count, image_size=16), NumberingPolicy(num_steps)
    episode = Episode(env, policy, clock=clock, record=record)
    episode.run(init_state_id=0, seed=7)
    return episode, env, policy


def told(action):
    """An executed action in the words of TIMES."""
    return f"{round(100 * action[3]) - 10:02d}" if np.any(action[:6]) else STILL


@pytest.mark.parametrize(("kind", "delay", "num_steps"), TIMES)
def test_every_control_step_executes_what_the_table_says(kind, delay, num_steps):
    expected, asked = TIMES[kind, delay, num_steps]
    expected = expected.split()
    episode, env, policy = run(kind(delay=delay), num_steps, len(expected))
    assert [told(action) for action in env.actions] == expected
    assert [request.observation.proprio[3] for request in policy.requests] == asked
    assert [request.seed for request in policy.requests] == [chunk_seed(7, number) for number in range(len(asked))]
    assert env.num_renders == 2 * len(asked)  # two views of what the policy sees, and nothing else
    assert episode.num_steps == len(expected) and episode.queue.num_still == expected.count(STILL)


def test_the_gripper_stays_as_last_commanded_while_the_robot_stands_still():
    _, env, _ = run(Clock(delay=2), 3, 9)
    assert [told(action) for action in env.actions] == "-- -- 00 01 02 -- -- 10 11".split()
    assert [action[6] for action in env.actions] == [-1, -1, 1, 1, 1, 1, 1, 1, 1]
    assert not env.actions[5][:6].any() and env.actions[5].shape == (7,)


def test_the_ages_are_those_of_the_table():
    """naive, delay 3: the first chunk is 3 to 10 steps old, later ones begin with action 3."""
    queue = run(Naive(delay=3), 8, 16)[0].queue
    assert queue.ages == [0, 0, 0, 2, 2, 2, 2, 2, 1, 1, 1]
    queue = run(Clock(delay=3), 4, 14)[0].queue
    assert queue.ages == [0, 0, 0, 2, 2, 2, 2]
    assert run(Clock(), 8, 10)[0].queue.ages == [2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("clock", "over"),
    [
        (Clock(), [None, 4, 4]),
        (Clock(delay=3), [None, 4, 4]),
        (Naive(delay=1), [None, 3, 4]),  # asked a step before its end; of the second its first action was stale
        (Naive(delay=3), [None, 1, 4]),
    ],
)
def test_the_memory_says_how_much_of_the_last_chunk_is_over(clock, over):
    _, _, policy = run(clock, 4, 15)
    memories = [request.memory for request in policy.requests[:3]]
    assert [None if one is None else one.num_executed for one in memories] == over
    assert [None if one is None else one.chunk[0, 0] for one in memories] == [None, 1.0, 2.0]


@pytest.mark.parametrize("num_steps", [8, 3])
def test_naive_without_a_delay_is_what_it_was_bit_for_bit(num_steps):
    def actions(**options):
        env = TimedEnv(task_id=1, image_size=64)
        episode = Episode(env, SeeingPolicy(num_open_loop_steps=num_steps), **options)
        episode.run(init_state_id=2, seed=5)
        return np.stack(env.actions).tobytes(), env.num_renders, episode.queue.work, episode.success

    assert actions(clock=Naive(delay=0)) == actions(clock=Clock(delay=0)) == actions()


def test_a_caller_knows_before_a_step_whether_to_look_after_it():
    queue = Queue(NumberingPolicy(), seed=0, clock=Naive(delay=3))
    asked = []
    for step in range(14):
        if queue.needs_observation:
            asked.append(step)
        queue.next(SEEN if queue.needs_observation else None)
    assert asked == [0, 8, 13] == TIMES[Naive, 3, 8][1][:3]
    assert not queue.is_empty
    while not queue.is_empty:
        queue.next(None)
    with pytest.raises(ActionError, match="there is no observation; render one for this step"):
        queue.next(None)


@pytest.mark.parametrize("key", [(Naive, 1, 8), (Naive, 3, 8), (Naive, 3, 4), (Naive, 3, 2), (Naive, 5, 8)])
def test_a_chunk_that_comes_late_is_corrected_by_what_is_seen_then(key):
    """When, is as with naive; what is executed of every chunk but the first, which is waited for, is the correction."""
    _, delay, num_steps = key
    expected, asked = TIMES[key]
    expected = expected.split()
    env, policy = TimedEnv(max_steps=len(expected), image_size=16), CorrectingPolicy(num_steps)
    episode = Episode(env, policy, clock=Corrected(delay=delay))
    episode.run(init_state_id=0, seed=7)
    assert [told(action) for action in env.actions] == expected
    assert [request.observation.proprio[3] for request in policy.requests] == asked
    came = [step + delay for step in asked[1:] if step + delay < len(expected)]
    assert [request.observation.proprio[3] for request in policy.corrected] == came
    assert all(request.memory.num_executed == delay for request in policy.corrected)
    corrected = [one != STILL and not one.startswith("0") for one in expected]
    assert [action[4] == delay / 8 for action in env.actions] == corrected
    assert env.num_renders == 2 * len({*asked, *came})
    assert episode.queue.work == {"num_chunks": len(asked), "corrections": len(came)}


def test_without_a_delay_nothing_is_corrected():
    _, env, policy = run(Corrected(delay=0), 8, 18)
    assert [told(action) for action in env.actions] == TIMES[Naive, 0, 8][0].split() and len(policy.requests) == 3


def test_the_time_of_a_correction_belongs_to_its_chunk():
    class Timed(CorrectingPolicy):
        def predict(self, requests):
            (answer,) = super().predict(requests)
            took = {"correction": 2.0, "total": 2.0} if requests[0].corrects else {"base_model": 9.0, "total": 10.0}
            return [dataclasses.replace(answer, latency_ms=took, model_ms=took["total"])]

    queue = Queue(Timed(), seed=0, clock=Corrected(delay=3))
    for _ in range(17):
        queue.next(SEEN)
    assert queue.latency_ms == {"base_model": [9.0] * 3, "total": [10.0, 12.0, 12.0], "correction": [2.0, 2.0]}
    assert queue.model_ms == 34.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.full((5, 7), np.nan), "returned nan at step 0, dim 0"),
        (np.zeros((5, 6)), r"corrected 5 actions to an array of shape \(5, 6\)"),
        (np.zeros((6, 7)), r"corrected 5 actions to an array of shape \(6, 7\)"),
    ],
)
def test_a_broken_correction_is_refused(answer, message):
    class Broken(CorrectingPolicy):
        def correct(self, request):
            return [Chunk(answer, num_steps=len(answer))]

    queue = Queue(Broken(), seed=0, clock=Corrected(delay=3))
    with pytest.raises(ActionError, match=message):
        for _ in range(12):
            queue.next(SEEN)


def test_a_decoding_that_holds_its_last_action_goes_on_so_long():
    """Ten steps of a chunk of eight, the last one three times; what is over of the next are two of the ten."""
    policy = NumberingPolicy(num_steps=10, length=10)
    queue = Queue(policy, seed=0, clock=Naive(delay=2))
    steps = [told(queue.next(SEEN)) for _ in range(22)]
    assert steps == "-- -- 00 01 02 03 04 05 06 07 08 09 12 13 14 15 16 17 18 19 22 23".split()


def test_what_is_held_is_the_corrected_last_action():
    class Held(CorrectingPolicy):
        def predict(self, requests):
            (answer,) = super().predict(requests)
            if not requests[0].corrects:  # of eight actions, the last two more times
                answer.actions = np.concatenate([answer.actions, np.repeat(answer.actions[-1:], 2, axis=0)])
                answer.num_steps = 10
            return [answer]

    queue = Queue(Held(), seed=0, clock=Corrected(delay=2))
    actions = [queue.next(SEEN) for _ in range(20)]
    assert [told(one) for one in actions[12:]] == "12 13 14 15 16 17 17 17".split()
    assert [one[4] for one in actions[11:]] == [0.0] + [0.25] * 8


@pytest.mark.parametrize(
    ("clock", "length", "message"),
    [
        (Clock(delay=9), 8, r"delay=9 with async=none, but a chunk has 8 actions, which are fewer; set delay to 8"),
        (Naive(delay=8), 8, r"delay=8 with async=naive, but a chunk has 8 actions, of which nothing is left when it"),
        (Naive(delay=1), 1, r"delay=1 with async=naive, but a chunk has 1 actions, .* set delay to 0 or less"),
    ],
)
def test_a_delay_longer_than_the_chunk_is_refused_with_both_numbers(clock, length, message):
    with pytest.raises(DelayError, match=message):
        clock.check(length)
    with pytest.raises(DelayError, match=message):
        Queue(NumberingPolicy(num_steps=1, length=length), seed=0, clock=clock).next(SEEN)


@pytest.mark.parametrize("kind", [Clock, Naive])
@pytest.mark.parametrize("delay", [-1, 1.5, "2", True, None])
def test_a_delay_is_a_whole_number_of_steps(kind, delay):
    with pytest.raises(SettingError, match=r"delay is .*, expected a whole number of at least 0"):
        kind(delay=delay)


def test_real_time_chunking_is_refused_by_name():
    with pytest.raises(SettingError, match=r"async=rtc is real-time chunking.*L1 head.*use async=none.*async=naive"):
        refuse_rtc(delay=2)


def evaluated(run_dir, clock):
    """A run folder of two episodes, one of them recorded, with its plan."""
    policy = {"model": "seeing", "num_open_loop_steps": 8, "clock": clock.to_json()}
    plan = plan_of(point_mass_tasks(num_tasks=1), num_trials=2, save_videos=1, policy=policy)
    keep_plan(run_dir, plan)
    done = resume_results(run_dir, plan.episodes, plan.tasks)
    recording = Recording(run_dir, clock=clock)
    make_env = SimpleNamespace(env=lambda task_id: PointMassEnv(task_id=task_id, image_size=64)).env
    return plan, list(
        evaluate(make_env=make_env, policy=SeeingPolicy(), plan=plan.episodes, done=done, recording=recording)
    )


def test_plan_report_and_trace_tell_of_the_delay(tmp_path):
    plan, results = evaluated(tmp_path, Clock(delay=2))
    assert read_plan_file(tmp_path / "plan.json").policy.clock == {"delay": 2, "async": "none"}
    report = build_report(results, plan=plan, config=None, provenance=None)
    assert [one["title"] for one in report["caveats"]] == ["Delay: 2 control steps, async=none."]
    late, num_steps = report["delay"], sum(one.num_steps for one in results)
    assert late["num_still"] == sum(one.num_still for one in results) > 0 and late["num_steps"] == num_steps
    assert late["age_max"] == 9 and 2 <= late["age_mean"] <= 5.5
    assert sum(sum(one.action_ages) for one in results) + late["num_still"] == num_steps
    metrics = flat_metrics(report)
    assert metrics["action_age_mean"] == late["age_mean"] and metrics["still_share"] == late["still_share"] > 0
    (recorded,) = [one for one in results if one.trace]
    chunks = json.loads((tmp_path / recorded.trace).read_text())["chunks"]
    assert [(chunk["step"], chunk["first"], chunk["age"], chunk["num_still"]) for chunk in chunks[:2]] == [
        (0, 0, 2, 2), (10, 0, 2, 2)
    ]  # fmt: skip
    assert sum(chunk["num_executed"] + chunk["num_still"] for chunk in chunks) == recorded.num_steps


def test_a_trace_says_which_actions_of_a_chunk_were_stale():
    episode, _, _ = run(Naive(delay=3), 8, 18, record=True)
    kept = [[chunk[name] for name in ("step", "first", "age", "num_executed", "num_still")] for chunk in episode.chunks]
    assert kept == [[0, 0, 3, 8, 3], [8, 3, 3, 5, 0], [13, 3, 3, 2, 0]]
    assert [chunk["corrected_actions"] for chunk in episode.chunks] == [None] * 3


def test_a_trace_says_what_was_executed_of_a_chunk_that_was_corrected():
    env, policy = TimedEnv(max_steps=16, image_size=16), CorrectingPolicy(8)
    episode = Episode(env, policy, clock=Corrected(delay=3), record=True)
    episode.run(init_state_id=0, seed=7)
    waited, late, coming = episode.chunks
    assert waited["corrected_actions"] is None and coming["corrected_actions"] is None  # it has not come yet
    executed = late["corrected_actions"][3:]
    assert executed == np.round(env.actions[11:16], 5).tolist() != late["actions"][3:]
    assert late["corrected_actions"][:3] == late["actions"][:3]


def test_a_run_is_not_continued_with_another_delay(tmp_path):
    plan, _ = evaluated(tmp_path, Naive(delay=2))
    keep_plan(tmp_path, plan)
    for clock in (Naive(delay=1), Clock(delay=2), Clock()):
        other = dataclasses.replace(plan, policy=dataclasses.replace(plan.policy, clock=clock.to_json()))
        with pytest.raises(PlanError, match=r"planned otherwise: policy\.clock"):
            keep_plan(tmp_path, other)


def test_without_a_delay_a_plan_says_nothing_of_it():
    """So it is that of a version without a clock; naive without a delay is the same run."""
    assert Clock().to_json() is None and Naive(delay=0).to_json() is None


def test_ages_that_were_not_recorded_are_not_known():
    old = EpisodeResult("suite", 0, "words", 0, 1, success=True, num_steps=5)
    new = dataclasses.replace(old, init_state_id=1, num_still=1, action_ages=[1, 2, 1])
    assert summarize_delay([new]) == {
        "num_steps": 5, "num_still": 1, "still_share": 0.2, "age_mean": 1.0, "age_max": 2,
    }  # fmt: skip
    assert summarize_delay([old, new])["age_mean"] is None and summarize_delay([])["still_share"] is None
