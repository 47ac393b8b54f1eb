"""A policy in the expert's place: its chunks, step by step."""

from types import SimpleNamespace

import numpy as np
import pytest

from rsd.clock import Clock
from rsd.demos.policy_demonstrator import PolicyDemonstrator
from rsd.types import Chunk
from tests.fakes import PointMassEnv


class CountingPolicy:
    """Step t of chunk n is n/10 + t/100 in the first dim; the second dim is far out of range."""

    num_open_loop_steps = 3

    def __init__(self):
        self.seen = []

    def predict(self, requests):
        self.seen += [request.observation for request in requests]
        actions = np.zeros((8, 7))
        actions[:, 0] = len(self.seen) / 10 + np.arange(8) / 100
        actions[:, 1] = -5.0
        return [Chunk(actions, num_steps=3)]


class Demonstrator(PolicyDemonstrator):
    """Without a simulator's scene, of which a policy's demonstrator reads nothing when it acts."""

    def __init__(self, policy, **options):
        goals = [["on", "bowl_1", "plate_1"]]
        domain = SimpleNamespace(
            parsed_problem={"goal_state": goals}, object_sites_dict={}, fixtures_dict={}, objects_dict={}
        )
        env = SimpleNamespace(simulator=SimpleNamespace(env=domain))
        super().__init__(env, make_policy=lambda: policy, **options)
        self._skill = SimpleNamespace(begin=lambda: None)


def test_actions_come_from_the_first_steps_of_each_chunk_clipped():
    observation, policy = PointMassEnv(image_size=16).reset(0), CountingPolicy()
    demonstrator = Demonstrator(policy)
    demonstrator.begin()
    steps = [demonstrator.act(observation) for _ in range(4)]
    assert [action[0] for action, _ in steps] == pytest.approx([0.10, 0.11, 0.12, 0.20])
    assert all(action[1] == -1.0 and harmless for action, harmless in steps) and len(policy.seen) == 2
    demonstrator.begin()  # a new episode begins with a new chunk
    assert demonstrator.act(observation)[0][0] == pytest.approx(0.30)


def test_a_demonstrator_whose_chunks_are_late_stands_still_undisturbed():
    observation = PointMassEnv(image_size=16).reset(0)
    demonstrator = Demonstrator(CountingPolicy(), clock=Clock(delay=2))
    for _ in range(2):  # the second episode waits again
        demonstrator.begin()
        steps = [demonstrator.act(observation) for _ in range(6)]
        assert [harmless for _, harmless in steps] == [False, False, True, True, True, False]
        assert [action[6] for action, _ in steps] == [-1, -1, 0, 0, 0, 0]
        assert not steps[0][0][:6].any() and not steps[5][0][:6].any()


def test_without_pictures_it_says_so():
    with pytest.raises(ValueError, match="a policy needs pictures, and dry_run=true renders none"):
        Demonstrator(CountingPolicy()).act(None)
