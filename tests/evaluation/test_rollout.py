"""One episode: the action queue, what is rendered, and what is held against the policy."""

import numpy as np
import pytest

from rsd.evaluation.rollout import Episode, jerk
from tests.evaluation.policies import BrokenPolicy, EarlyExitPolicy, SeeingPolicy, StillPolicy
from tests.fakes import PointMassEnv


class CountingPolicy(StillPolicy):
    """Actions that say where they come from: chunk n, step t gives n/10 + t/100 in the first dim of rotation."""

    def predict(self, requests):
        self.seen.append(requests[0].observation)
        actions = np.zeros((8, 7))
        actions[:, 3] = len(self.seen) / 10 + np.arange(8) / 100
        work = {"target_passes": 2, "accept_counts": [0, 1]}
        return [self._chunk(actions, work=work, latency_ms={"total": 5.0}, model_ms=2.5)]


class RecordingEnv(PointMassEnv):
    """Keeps the actions that it was given."""

    def reset(self, init_state_id):
        self.actions, self.moves = [], []
        return super().reset(init_state_id)

    def step(self, action, observe=True):
        self.actions.append(float(action[3]))
        self.moves.append(action)
        return super().step(action, observe)


def test_the_seeing_policy_succeeds_everywhere():
    for init_state_id in range(5):
        episode = Episode(PointMassEnv(image_size=64), SeeingPolicy())
        episode.run(init_state_id=init_state_id, seed=0)
        assert episode.success and episode.num_steps < 25


def test_the_first_actions_of_each_chunk_are_executed():
    env, policy = RecordingEnv(max_steps=7, image_size=16), CountingPolicy(num_open_loop_steps=3)
    episode = Episode(env, policy)
    episode.run(init_state_id=0, seed=0)
    assert env.actions == pytest.approx([0.10, 0.11, 0.12, 0.20, 0.21, 0.22, 0.30])
    assert episode.num_steps == 7 and not episode.success
    assert episode.queue.work == {"num_chunks": 3, "target_passes": 6, "accept_counts": [0, 3]}
    assert episode.queue.latency_ms == {"total": [5.0, 5.0, 5.0]} and episode.queue.model_ms == 7.5


@pytest.mark.parametrize(("record", "every_step", "pictures"), [(False, False, 3), (True, False, 4), (True, True, 21)])
def test_only_what_is_looked_at_is_rendered(record, every_step, pictures):
    env = PointMassEnv(max_steps=20, image_size=16)
    episode = Episode(env, CountingPolicy(), record=record, record_every_step=every_step)
    episode.run(init_state_id=0, seed=0)
    assert (
        env.num_renders == 2 * pictures
    )  # two views: after the reset, before each further chunk, and the last for a video
    assert len(episode.frames) == (pictures if record else 0)
    assert all(frame.shape == (16, 32, 3) for frame in episode.frames)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.full((8, 7), np.nan), "returned nan at step 0, dim 0"),
        (np.zeros((8, 6)), r"shape \(6,\)"),
        (np.zeros(7), r"shape \(7,\); expected \[T, A\]"),
        (np.zeros((4, 7)), "fewer than num_open_loop_steps=8"),
    ],
)
def test_a_broken_chunk_raises(actions, message):
    with pytest.raises(ValueError, match=message):
        Episode(PointMassEnv(image_size=16), BrokenPolicy(actions)).run(init_state_id=0, seed=0)


def test_out_of_range_actions_are_clipped_or_refused_as_the_protocol_says():
    chunk = np.zeros((8, 7))
    chunk[3, 2] = -1.75
    env = RecordingEnv(image_size=16, max_steps=8)
    Episode(env, BrokenPolicy(chunk)).run(init_state_id=0, seed=0)
    assert env.moves[3].tolist() == [0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0] and chunk[3, 2] == -1.75
    with pytest.raises(
        ValueError, match=r"returned -1.75 at step 3, dim 2 of its chunk; expected actions in \[-1, 1\]"
    ):
        Episode(PointMassEnv(image_size=16), BrokenPolicy(chunk), clip_actions=False).run(init_state_id=0, seed=0)


def test_an_episode_says_where_its_time_went_and_what_it_ran_on():
    env = PointMassEnv(image_size=64)
    episode = Episode(env, SeeingPolicy(delay_s=0.01))
    episode.run(init_state_id=0, seed=0)
    result = episode.result(init_state_id=0, seed=0, wall_s=9.0, error=None, video=None, trace=None)
    assert result.protocol == "point_mass-1" and result.versions == {"point_mass": "1"}
    assert set(result.time_s) == {"reset", "physics", "rendering", "policy"}
    assert episode.time_s["policy"] >= 0.01 * episode.queue.num_chunks
    assert episode.time_s["rendering"] > env.reset_rendering_s > 0 and min(episode.time_s.values()) >= 0


def test_a_recorded_episode_keeps_its_chunks_and_another_does_not():
    for record in (True, False):
        episode = Episode(PointMassEnv(image_size=16, max_steps=20), CountingPolicy(), record=record)
        episode.run(init_state_id=0, seed=0)
        assert len(episode.chunks) == (3 if record else 0)
        if record:
            assert [(chunk["step"], chunk["frame"], chunk["num_executed"]) for chunk in episode.chunks] == [
                (0, 0, 8), (8, 1, 8), (16, 2, 4)
            ]  # fmt: skip
            assert episode.chunks[1]["actions"][2][3] == 0.22 and episode.chunks[1]["draft_actions"] is None


def test_only_a_recorded_episode_asks_what_the_draft_proposed():
    for record in (True, False):
        policy = SeeingPolicy()
        episode = Episode(PointMassEnv(image_size=64), policy, record=record)
        episode.run(init_state_id=0, seed=0)
        assert (episode.queue.chunk.draft_actions is not None) == record
        assert all(np.shape(chunk["draft_actions"]) == (8, 7) for chunk in episode.chunks)


def test_jerk_is_that_of_the_executed_motions_without_the_gripper():
    names = ("x", "y", "gripper")
    speeds = [0.0, 1.0, 3.0, 3.0]  # second differences 1 and -2; y stands still
    assert jerk([np.array([speed, 0.5, (-1) ** n]) for n, speed in enumerate(speeds)], names) == 3 / 4
    assert jerk([np.zeros(3)] * 2, names) is None


def test_an_episode_keeps_when_it_asked_and_where_that_ended_early():
    env, policy = RecordingEnv(max_steps=8, image_size=16), CountingPolicy(num_open_loop_steps=3)
    episode = Episode(env, policy)
    episode.run(init_state_id=0, seed=0)
    found = episode.result(init_state_id=0, seed=0, wall_s=0.0, error=None, video=None, trace=None)
    assert found.chunk_steps == [0, 3, 6] and found.exit_steps == []
    moves = np.array(env.moves)
    assert found.jerk == pytest.approx(np.abs(np.diff(moves[:, :6], 2, axis=0)).mean(), abs=1e-6) and found.jerk > 0
    early = Episode(PointMassEnv(max_steps=17, image_size=16), EarlyExitPolicy())
    early.run(init_state_id=0, seed=0)
    assert early.chunk_steps == [0, 8, 16] and len(early.exit_steps) == early.queue.work["early_exits"] > 0
