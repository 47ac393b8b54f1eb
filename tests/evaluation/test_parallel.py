"""Several simulator processes and one policy: the same outcomes, dead workers replaced, failures charged rightly."""

import os
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rsd.evaluation.evaluate import ERRORS_FILE, Recording, evaluate, resume_results
from rsd.evaluation.parallel import PolicyThreads, SetupError, answers, evaluate_parallel, next_episode
from rsd.evaluation.plan import plan_episodes
from rsd.evaluation.results import RESULTS_FILE, episode_id, read_results
from rsd.evaluation.sequential import in_random_order
from rsd.types import Request
from tests.evaluation.policies import CHUNK_LENGTH, SeeingPolicy
from tests.fakes import PointMassEnv, point_mass_tasks


class DeadlyEnv(PointMassEnv):
    """Kills its process in the middle of task 1's episode 0, as often as there are no marks in a folder yet."""

    def __init__(self, *, marks: Path, deaths: int, **options):
        super().__init__(**options)
        self._marks, self._deaths = marks, deaths

    def reset(self, init_state_id):
        self._doomed = (self.task.task_id, init_state_id) == (1, 0)
        return super().reset(init_state_id)

    def step(self, action, observe=True):
        died = len(list(self._marks.iterdir()))
        if self._doomed and self._position[0] > 0.4 and died < self._deaths:
            (self._marks / f"{died}").touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().step(action, observe)


class HangingEnv(PointMassEnv):
    """Stops answering in task 1's episode 0: for ever by SIGSTOP, or, where there is nobody else, in a sleep."""

    def __init__(self, *, marks: Path, hangs: int, stop: bool, **options):
        super().__init__(**options)
        self._marks, self._hangs, self._stop = marks, hangs, stop

    def reset(self, init_state_id):
        self._doomed = (self.task.task_id, init_state_id) == (1, 0)
        return super().reset(init_state_id)

    def step(self, action, observe=True):
        hung = len(list(self._marks.iterdir()))
        if self._doomed and hung < self._hangs:
            (self._marks / f"{hung}").touch()
            if self._stop:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        return super().step(action, observe)


class Unbuildable(PointMassEnv):
    """Task 2 has no scene."""

    def __init__(self, *, task_id: int, **options):
        if task_id == 2:
            raise FileNotFoundError("scene of task 2")
        super().__init__(task_id=task_id, **options)


class MovedPolicy(SeeingPolicy):
    """Raises for observations of task 1, and remembers the sizes of its batches."""

    def __init__(self, **options):
        super().__init__(**options)
        self.batches: list[int] = []

    def predict(self, requests):
        self.batches.append(len(requests))
        if any("goal 1" in request.observation.instruction for request in requests):
            raise ValueError("the calibration of goal 1 is missing")
        return super().predict(requests)


def plan(**values):
    request = {"num_tasks": 3, "num_init_states": 5, "tasks": None, "num_trials": 3, "seed": 7, "save_videos": 0}
    return plan_episodes(**(request | values))


def run(run_dir: Path, *, make_env=PointMassEnv, policies=None, num_workers=2, max_batch=1, episodes=None, **others):
    episodes = episodes or plan()
    return list(
        evaluate_parallel(
            make_env=partial(make_env, image_size=64),
            policies=policies or [SeeingPolicy()],
            max_batch=max_batch,
            plan=episodes,
            done=resume_results(run_dir, episodes, point_mass_tasks(num_tasks=3)),
            recording=Recording(run_dir),
            num_workers=num_workers,
            suite="point_mass",
            **others,
        )
    )


def outcomes(results):
    names = ("success", "num_steps", "seed", "error", "stats")
    return {episode_id(one): tuple(getattr(one, name) for name in names) for one in results}


@pytest.mark.slow
def test_outcomes_are_those_of_one_process_however_many_workers_and_policies(tmp_path):
    folders = [tmp_path / name for name in ("alone", "two", "three")]
    for folder in folders:
        folder.mkdir()
    alone = evaluate(
        make_env=partial(PointMassEnv, image_size=64),
        policy=SeeingPolicy(),
        plan=plan(),
        done=resume_results(folders[0], plan(), point_mass_tasks(num_tasks=3)),
        recording=Recording(folders[0]),
    )
    expected = outcomes(alone)
    assert len(expected) == 9 and all(success for success, *_ in expected.values())
    assert outcomes(run(folders[1], num_workers=2)) == expected
    several = [SeeingPolicy(delay_s=0.01), SeeingPolicy(delay_s=0.01)]
    assert outcomes(run(folders[2], num_workers=3, max_batch=8, policies=several)) == expected
    assert several[0].seen and several[1].seen  # both policies have worked


@pytest.mark.slow
def test_an_episode_that_kills_every_worker_is_an_error_and_the_rest_goes_on(tmp_path, caplog):
    marks = tmp_path / "marks"
    marks.mkdir()
    results = run(tmp_path, make_env=partial(DeadlyEnv, marks=marks, deaths=99))
    assert caplog.text.count("a worker died (signal SIGSEGV) in task 1, init state 0; the episode is run again") == 2
    (crashed,) = [result for result in results if result.error]
    assert (crashed.task_id, crashed.init_state_id, crashed.suite) == (1, 0, "point_mass")
    assert crashed.error == "WorkerDiedError: 3 workers died in this episode, the last of signal SIGSEGV"
    assert sum(result.success for result in results) == 8 and len(list(marks.iterdir())) == 3
    assert "try fewer num_workers" in (tmp_path / ERRORS_FILE).read_text()
    assert len(read_results(tmp_path / RESULTS_FILE)[0]) == 9


@pytest.mark.slow
def test_a_simulator_that_stops_answering_is_replaced_and_its_episode_run_again(tmp_path, caplog):
    marks = tmp_path / "marks"
    marks.mkdir()
    make_env = partial(HangingEnv, marks=marks, hangs=1, stop=True)
    results = run(tmp_path, make_env=make_env, patience_s=4.0)
    assert "a worker died (no answer for 4 s) in task 1, init state 0; the episode is run again" in caplog.text
    assert len(results) == 9 and all(result.success for result in results)


@pytest.mark.long
def test_an_episode_in_which_every_simulator_stops_answering_is_an_error(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    make_env = partial(HangingEnv, marks=marks, hangs=99, stop=True)
    results = run(tmp_path, make_env=make_env, patience_s=4.0)
    (crashed,) = [result for result in results if result.error]
    assert crashed.error == "WorkerDiedError: 3 workers died in this episode, the last of no answer for 4 s"
    assert sum(result.success for result in results) == 8 and len(list(marks.iterdir())) == 3


def test_with_one_process_a_simulator_that_does_not_answer_is_an_error_of_its_episode(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    make_env = partial(HangingEnv, marks=marks, hangs=1, stop=False)
    results = run(tmp_path, make_env=make_env, num_workers=1, patience_s=2.0)
    (crashed,) = [result for result in results if result.error]
    assert (crashed.task_id, crashed.init_state_id) == (1, 0)
    assert crashed.error.startswith("SilentSimulatorError: no answer for 2 s") and len(results) == 9


@pytest.mark.slow
def test_an_environment_that_cannot_be_built_ends_the_run(tmp_path):
    with pytest.raises(SetupError, match="point_mass task 2 cannot be set up: FileNotFoundError: scene of task 2"):
        run(tmp_path, make_env=Unbuildable)


def test_a_policy_that_raises_is_charged_to_the_episode_that_it_raised_for(tmp_path):
    policy = MovedPolicy()
    results = run(tmp_path, policies=[policy], num_workers=3, max_batch=3)
    errors = {(result.task_id, result.error) for result in results}
    assert errors == {(0, None), (1, "ValueError: the calibration of goal 1 is missing"), (2, None)}
    log = (tmp_path / ERRORS_FILE).read_text()
    assert log.count("in predict") >= 3 and "calibration of goal 1" in log


class Mailbox:
    """A worker's end that keeps what it is sent."""

    def __init__(self):
        self.received = threading.Event()

    def send(self, answer):
        self.answer = answer
        self.received.set()


def test_what_waits_is_answered_in_one_batch_up_to_the_limit():
    env = PointMassEnv(image_size=64)
    requests = [Request(env.reset(number % 5), seed=number) for number in range(5)]
    policy, boxes = MovedPolicy(), [Mailbox() for _ in requests]
    threads = PolicyThreads([policy], max_batch=4)
    for box, request in zip(boxes, requests, strict=True):
        threads.ask(box, request)
    threads.start()
    for box in boxes:
        assert box.received.wait(10)
    threads.stop()
    assert policy.batches == [4, 1]
    for box, request in zip(boxes, requests, strict=True):
        (alone,) = answers(SeeingPolicy(), [request])
        np.testing.assert_array_equal(box.answer.actions, alone.actions)
        assert box.answer.actions.shape == (CHUNK_LENGTH, 7) and box.answer.work == alone.work


def test_workers_stay_on_their_task_and_then_help_where_most_is_left():
    waiting = [one for one in plan(num_trials=5) if one.task_id < 2][3:]  # two of task 0, five of task 1
    first = {task: next(one for one in waiting if one.task_id == task) for task in (0, 1)}
    assert next_episode(0, waiting, Counter({0: 1, 1: 3}), in_order=False) == first[0]
    assert next_episode(2, waiting, Counter({0: 1, 1: 1}), in_order=False) == first[1]
    assert next_episode(None, waiting, Counter({1: 3}), in_order=False) == first[0]


def test_in_order_means_close_to_the_plans_order():
    waiting = in_random_order(plan(), seed=0)
    wanted = waiting[3].task_id  # a round has one episode of each of the three tasks
    assert next_episode(None, waiting, Counter(), in_order=True) == waiting[0]
    assert next_episode(wanted, waiting, Counter({0: 1}), in_order=True) in waiting[:2]
    own = next_episode(wanted, waiting, Counter({0: 2}), in_order=True)
    assert own.task_id == wanted and own in waiting[:3]


class ShortPolicy(SeeingPolicy):
    """Forgets the last observation of its batch."""

    def predict(self, requests):
        return super().predict(requests)[:-1]


def test_a_policy_that_answers_too_little_is_an_error_of_the_episodes(tmp_path):
    results = run(tmp_path, policies=[ShortPolicy()])
    assert {result.error for result in results} == {"ValueError: the policy returned 0 chunks for 1 observations"}


def test_several_devices_for_one_worker_are_refused(tmp_path):
    with pytest.raises(ValueError, match="device names 2 devices, but num_workers=1 uses one"):
        run(tmp_path, policies=[SeeingPolicy(), SeeingPolicy()], num_workers=1)


class LockPolicy(SeeingPolicy):
    """Its answers hold something that cannot travel to another process."""

    def predict(self, requests):
        chunks = super().predict(requests)
        for chunk in chunks:
            chunk.work["lock"] = threading.Lock()
        return chunks


def test_an_answer_that_cannot_travel_is_an_error_of_its_episode_and_nothing_hangs(tmp_path):
    results = run(tmp_path, policies=[LockPolicy()])
    assert len(results) == 9
    assert all(result.error.startswith("TypeError: cannot pickle") for result in results)
