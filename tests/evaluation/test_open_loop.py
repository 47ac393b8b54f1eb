"""A policy's queue in recorded episodes, and how far apart two of them are."""

from dataclasses import dataclass

import numpy as np
import pytest

from rsd.clock import Clock, Naive
from rsd.evaluation.open_loop import DEGREES_PER_UNIT, apart, executed, keep_executed, observed, read_executed
from rsd.queue import Queue
from rsd.types import Chunk, Observation


@dataclass
class Says:
    """A policy whose action n of a chunk is 0.1 n in the first dim, and the picture's number, in hundredths, in the
    second."""

    num_open_loop_steps: int
    calls: int = 0

    def predict(self, requests):
        self.calls += 1
        chunks = []
        for one in requests:
            actions = np.zeros((8, 7))
            actions[:, 0] = 0.1 * np.arange(8)
            actions[:, 1] = one.observation.proprio[0] / 100
            chunks.append(Chunk(actions, self.num_open_loop_steps, {}, {}, 0.0))
        return chunks


def episode(length: int) -> list[Observation]:
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    return [Observation({"image": picture}, np.array([float(step)]), "go") for step in range(length)]


@pytest.mark.parametrize("clock", [Clock(), Clock(delay=3), Naive(delay=2)])
@pytest.mark.parametrize("num_steps", [4, 8])
def test_it_is_what_a_queue_executes_that_is_asked_alone(clock, num_steps):
    episodes = [episode(21), episode(9), episode(1)]
    found = executed(Says(num_steps), episodes, clock=clock, seed=0, max_batch=2)
    for recorded, actions in zip(episodes, found, strict=True):
        queue, expected = Queue(Says(num_steps), seed=0, clock=clock), []
        for one in recorded:
            action = queue.next(one)
            expected.append(action if queue.executed is not None else np.full(7, np.nan))
        assert np.array_equal(actions, np.array(expected), equal_nan=True)


def test_observations_share_calls():
    policy = Says(8)
    executed(policy, [episode(16)] * 5, clock=Clock(), seed=0, max_batch=5)
    assert policy.calls == 2
    assert executed(policy, [], clock=Clock(), seed=0, max_batch=5) == []


def test_distances_by_hand():
    reference, mine = np.zeros((10, 7)), np.zeros((10, 7))
    reference[:, 6] = mine[:, 6] = 1
    mine[:, 0] = [0.3, -0.3] * 5  # 15 mm a step, which cancels over eight steps
    mine[3, 5] = 0.1
    mine[4, 6] = -1
    mine[9] = np.nan  # it stands still
    found = apart(mine, reference)
    assert found["translation_mm"] == (pytest.approx(9 * 15), 9) and found["far"] == (9, 9)
    assert found["rotation_deg"] == (pytest.approx(0.1 * DEGREES_PER_UNIT), 9) and found["gripper"] == (1, 9)
    assert found["drift_mm"] == (pytest.approx(0, abs=1e-9), 2)
    mine[:, 0] = 0.1
    assert apart(mine, reference)["drift_mm"] == (pytest.approx(2 * 8 * 5), 2)
    assert apart(mine[:5], reference[:5])["drift_mm"] == (0, 0)  # shorter than a chunk


def test_actions_are_kept_by_the_number_of_their_episode(tmp_path):
    keep_executed(tmp_path / "open_loop.npz", {3: np.ones((2, 7)), 11: np.full((1, 7), np.nan)})
    found = read_executed(tmp_path / "open_loop.npz")
    assert list(found) == [3, 11] and (found[3] == 1).all() and np.isnan(found[11]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["open_loop.npz"]


def test_observations_are_read_when_they_are_asked_for():
    read = []

    class Frames:
        episode = np.array([3, 4, 4, 4, 5])

        def __getitem__(self, row):
            read.append(row)
            return {"observation": episode(9)[row]}

    found = observed(Frames(), 4)
    assert len(found) == 3 and len(found[::2]) == 2 and not read
    assert found[1].proprio == [2.0] and found[::2][1].proprio == [3.0] and read == [2, 3]
