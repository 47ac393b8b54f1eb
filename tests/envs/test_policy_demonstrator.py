"""A policy in the expert's place: its chunks, step by step."""

import numpy as np
import pytest

from rsd.envs.policy_demonstrator import ChunkQueue
from rsd.types import ChunkPrediction
from tests.fakes import PointMassEnv


class CountingPolicy:
    """Step t of chunk n is n/10 + t/100 in the first dim; the second dim is far out of range."""

    num_open_loop_steps = 3

    def __init__(self):
        self.seen = []

    def predict(self, observations, seeds):
        self.seen += observations
        actions = np.zeros((8, 7))
        actions[:, 0] = len(self.seen) / 10 + np.arange(8) / 100
        actions[:, 1] = -5.0
        return [ChunkPrediction(actions)]


def test_actions_come_from_the_first_steps_of_each_chunk_clipped():
    env, policy = PointMassEnv(image_size=16), CountingPolicy()
    queue, observation = ChunkQueue(policy), env.reset(0)
    actions = [queue.next(observation) for _ in range(4)]
    assert [action[0] for action in actions] == pytest.approx([0.10, 0.11, 0.12, 0.20])
    assert all(action[1] == -1.0 for action in actions) and len(policy.seen) == 2
    queue.clear()
    assert queue.next(observation)[0] == pytest.approx(0.30)


def test_without_pictures_it_says_so():
    with pytest.raises(ValueError, match="a policy needs pictures, and dry_run=true renders none"):
        ChunkQueue(CountingPolicy()).next(None)
