"""What a policy that many threads share makes of wrong answers and settings; its batches are in test_rest.py."""

import pytest

from rsd.errors import SettingError
from rsd.serving.batching import Batched
from rsd.serving.limits import Limits
from rsd.types import Request
from tests.serving.policies import TellingPolicy


class Silent(TellingPolicy):
    def predict(self, requests):
        return []


def test_a_policy_that_leaves_out_an_answer_leaves_nobody_waiting():
    with pytest.raises(RuntimeError, match="the policy gave 0 chunks for 1 observations"):
        Batched(Silent(), max_batch=2).predict([Request(None, 0)])


class Counting(TellingPolicy):
    asked = 0

    def check_instructions(self, instructions, where=None):
        self.asked += len(instructions)


def test_an_instruction_is_checked_once():
    policy = Counting()
    shared = Batched(policy, max_batch=2)
    for _ in range(2):
        shared.check_instructions(["reach", "lift"])
    assert policy.asked == 2
    Batched(TellingPolicy(), max_batch=2).check_instructions(["whatever"])  # which reads none


@pytest.mark.parametrize("wrong", [{"sessions": 0}, {"body_bytes": 1.5}, {"idle_s": 0}, {"instruction": "long"}])
def test_limits_are_held_to_their_types(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        Limits(**wrong)
    with pytest.raises(SettingError, match="max_batch"):
        Batched(TellingPolicy(), max_batch=0)
