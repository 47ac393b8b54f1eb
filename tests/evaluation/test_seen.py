"""What an episode began with is kept as digests, which tell whether two runs saw the same."""

import dataclasses

import numpy as np

from rsd.envs.ablations import BlackPictures
from rsd.evaluation.seen import digest, seen_first, told_inputs
from tests.evaluation.folders import make_run
from tests.evaluation.policies import SeeingPolicy, StillPolicy
from tests.fakes import PointMassEnv


def seen_in(env, init_state_id):
    return seen_first(env, init_state_id, env.reset(init_state_id))


def test_a_digest_is_of_type_shape_and_numbers():
    zeros = np.zeros((2, 3), dtype=np.uint8)
    others = [zeros.reshape(3, 2), zeros.astype(np.int8), zeros + np.uint8(1)]
    assert digest(zeros) == digest(zeros.copy()) == digest(np.asfortranarray(zeros))
    assert len({digest(zeros), *map(digest, others)}) == 4


def test_the_same_init_state_gives_the_same_digests_and_another_one_others():
    one, again, other = seen_in(PointMassEnv(), 1), seen_in(PointMassEnv(), 1), seen_in(PointMassEnv(), 2)
    assert one == again and one.keys() == {"init_state", "image", "wrist_image", "proprio"}
    assert all(one[name] != other[name] for name in one)


def test_an_ablation_shows_other_pictures_of_the_same_init_state():
    plain, black = seen_in(PointMassEnv(), 1), seen_in(BlackPictures(make=PointMassEnv, task_id=0), 1)
    assert black["image"] == black["wrist_image"] != plain["image"]
    assert (black["init_state"], black["proprio"]) == (plain["init_state"], plain["proprio"])


def test_runs_of_two_policies_saw_the_same(tmp_path):
    first = make_run(tmp_path / "a", SeeingPolicy(num_open_loop_steps=3), num_trials=2)
    second = make_run(tmp_path / "b", StillPolicy(), num_trials=2)
    pairs = list(zip(first, second, strict=True))
    assert all(len(result.seen) == 4 for result in first)
    assert told_inputs(pairs, ("A", "B")) == [
        "A and B began with the same init states, first pictures and proprio in 6 pairs."
    ]
    changed = dataclasses.replace(second[0], seen={**second[0].seen, "image": "0"})
    assert told_inputs([(first[0], changed), *pairs[1:]], ("A", "B")) == [
        "A and B did not begin with the same, of 6 pairs: other image in 1."
    ]
    assert told_inputs([(first[0], dataclasses.replace(second[0], seen={}))], ("A", "B")) == []
