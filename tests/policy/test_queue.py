"""The queue: the only place where chunks become steps."""

import numpy as np
import pytest

from rsd.errors import SettingError
from rsd.queue import ActionError, Queue, chunk_seed, executed_actions
from rsd.types import Chunk, Memory, Observation

SEEN = Observation({}, np.zeros(8), "nothing to do")


class NumberingPolicy:
    """Step t of chunk n is n + t/100 in the first dim; it keeps what it is asked."""

    num_open_loop_steps = 3

    def __init__(self, **answer):
        self.requests, self.answer = [], answer

    def predict(self, requests):
        self.requests += requests
        number = len(self.requests)
        actions = np.zeros((8, 7))
        actions[:, 0] = number + np.arange(8) / 100
        options = {"num_steps": 3, "work": {"target_passes": number, "accept_counts": [1, 0]}, "model_ms": 2.0}
        options |= {"latency_ms": {"total": 10.0 * number}, "memory": Memory(np.full((8, 7), float(number)))}
        return [Chunk(actions, **(options | self.answer))]


def test_the_first_actions_of_each_chunk_are_handed_out_and_the_account_is_kept():
    policy = NumberingPolicy()
    queue = Queue(policy, seed=7, limits=(-10.0, 10.0))
    assert queue.needs_observation and queue.chunk is None
    actions = []
    for step in range(7):
        actions.append(float(queue.next(SEEN if step % 3 == 0 else None)[0]))  # between chunks nobody has to look
        assert queue.needs_observation == (step % 3 == 2)
    assert actions == pytest.approx([1.0, 1.01, 1.02, 2.0, 2.01, 2.02, 3.0])
    assert queue.num_chunks == 3 and queue.model_ms == 6.0
    assert queue.work == {"num_chunks": 3, "target_passes": 1 + 2 + 3, "accept_counts": [3, 0]}
    assert queue.latency_ms == {"total": [10.0, 20.0, 30.0]}
    assert [request.seed for request in policy.requests] == [chunk_seed(7, number) for number in range(3)]


def test_the_bound_of_every_chunk_is_kept():
    queue = Queue(NumberingPolicy(bound=np.array([0.25, 1 / 3], dtype=np.float32)), seed=0, limits=(-10.0, 10.0))
    assert queue.bounds == []
    for _ in range(4):
        queue.next(SEEN)
    assert queue.bounds == [[0.25, 0.333333]] * 2
    other = Queue(NumberingPolicy(), seed=0, limits=(-10.0, 10.0))
    other.next(SEEN)
    assert other.bounds == [None]


def test_a_chunks_memory_travels_with_the_next_request_and_says_what_was_executed():
    policy = NumberingPolicy()
    queue = Queue(policy, seed=0, limits=(-10.0, 10.0))
    for _ in range(7):
        queue.next(SEEN)
    first, second, third = policy.requests
    assert first.memory is None
    assert (second.memory.chunk[0, 0], second.memory.num_executed) == (1.0, 3)
    assert (third.memory.chunk[0, 0], third.memory.num_executed) == (2.0, 3)
    assert queue.chunk.memory.num_executed == 0  # the policy's own record stays as it was


@pytest.mark.parametrize("explain", [True, False])
def test_it_asks_to_explain_when_it_is_told_to(explain):
    policy = NumberingPolicy()
    Queue(policy, seed=0, explain=explain).next(SEEN)
    assert policy.requests[0].explain is explain


def test_a_policy_without_memory_is_asked_without():
    policy = NumberingPolicy(memory=None)
    queue = Queue(policy, seed=0)
    for _ in range(4):
        queue.next(SEEN)
    assert policy.requests[1].memory is None


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_a_seed_is_an_integer_of_0_or_more(seed):
    with pytest.raises(SettingError, match=rf"seed {seed}, expected an integer of 0 or more"):
        Queue(NumberingPolicy(), seed=seed)
    Queue(NumberingPolicy(), seed=np.int64(2**63 - 1)).next(SEEN)


def test_without_anything_to_see_there_is_no_action():
    with pytest.raises(ActionError, match="the action queue is empty and there is no observation"):
        Queue(NumberingPolicy(), seed=0).next(None)


def test_actions_are_clipped_to_the_limits_or_refused():
    actions = np.zeros((8, 7))
    actions[3, 2] = -1.75
    chunk = Chunk(actions, num_steps=5)
    clipped = executed_actions(chunk, clip=True)
    assert clipped.shape == (5, 7) and clipped[3, 2] == -1.0 and actions[3, 2] == -1.75
    assert executed_actions(chunk, clip=True, limits=(-2.0, 0.5))[3, 2] == -1.75
    with pytest.raises(
        ActionError, match=r"returned -1\.75 at step 3, dim 2 of its chunk; expected actions in \[-1, 1\]"
    ):
        executed_actions(chunk, clip=False)
    assert executed_actions(chunk, clip=False, limits=(-2.0, 2.0))[3, 2] == -1.75


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.full((8, 7), np.nan), "returned nan at step 0, dim 0 of its chunk; expected finite actions"),
        (np.full((8, 7), -np.inf), "returned -inf at step 0, dim 0"),
        (np.zeros(7), r"shape \(7,\); expected \[T, A\]"),
        (np.zeros((4, 7)), "returned 4 actions, fewer than num_open_loop_steps=8"),
    ],
)
@pytest.mark.parametrize("clip", [True, False])
def test_a_broken_chunk_is_refused(actions, message, clip):
    with pytest.raises(ActionError, match=message):
        executed_actions(Chunk(actions, num_steps=8), clip=clip)


def test_chunk_seeds_differ_between_chunks_and_episodes():
    seeds = {chunk_seed(episode, number) for episode in range(30) for number in range(30)}
    assert len(seeds) == 900 and all(0 <= seed < 2**63 for seed in seeds)
    assert chunk_seed(7, 3) == chunk_seed(7, 3)
