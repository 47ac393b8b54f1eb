"""What every policy must do; a test class inherits this and provides `policy`, `requests` and `failing`.

class TestMyPolicy(PolicyContract):
    @pytest.fixture
    def policy(self): ...
    @pytest.fixture
    def requests(self): ...
    @pytest.fixture
    def failing(self): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rsd.types import Chunk, Policy, Request


class PolicyContract:
    """Attributes:
    shape: [T, A] of the chunks.
    is_random: Whether the actions depend on the seed.
    close: Largest difference of actions in batches of different sizes.
    """

    shape = (8, 7)
    is_random = False
    close = 1e-5

    @pytest.fixture
    def policy(self) -> Policy:
        raise NotImplementedError

    @pytest.fixture
    def requests(self) -> list[Request]:
        """Three, with different observations and seeds."""
        raise NotImplementedError

    @pytest.fixture
    def failing(self) -> tuple[Policy, list[Request]]:
        """A policy whose model raises RuntimeError("CUDA error: …") at these requests."""
        raise NotImplementedError

    def assert_equal(self, chunks: Sequence[Chunk], others: Sequence[Chunk], close: float = 0.0) -> None:
        """The same actions, depths and accounts; how long it took is another matter."""
        for chunk, other in zip(chunks, others, strict=True):
            np.testing.assert_allclose(chunk.actions, other.actions, atol=close, rtol=0)
            assert (chunk.num_steps, chunk.depth, chunk.work) == (other.num_steps, other.depth, other.work)

    def test_a_chunk_a_request_within_its_shape(self, policy, requests):
        for count in (1, 3):
            chunks = policy.predict(requests[:count])
            assert len(chunks) == count
            for chunk in chunks:
                assert chunk.actions.shape == self.shape and chunk.actions.dtype == np.float64
                assert np.isfinite(chunk.actions).all()
                assert 1 <= chunk.num_steps <= self.shape[0]
                assert chunk.bound is None or chunk.bound.shape == self.shape[1:]
                assert chunk.draft_actions is None  # nobody has asked for an explanation
        assert 1 <= policy.num_open_loop_steps <= self.shape[0]

    def test_no_request_no_chunk(self, policy):
        assert policy.predict([]) == []

    def test_an_explanation_changes_nothing(self, policy, requests):
        explained = policy.predict([replace(request, explain=True) for request in requests])
        self.assert_equal(explained, policy.predict(requests))
        assert all(one.draft_actions is None or one.draft_actions.shape == self.shape for one in explained)

    def test_it_remembers_nothing(self, policy, requests):
        """The same request gives the same chunk, whatever was asked in between."""
        first = policy.predict(requests[:1])
        policy.predict(requests[1:])
        self.assert_equal(policy.predict(requests[:1]), first)

    def test_rows_do_not_know_of_each_other(self, policy, requests):
        together = policy.predict(requests)
        for row, request in enumerate(requests):
            self.assert_equal(policy.predict([request]), [together[row]], self.close)
        self.assert_equal(policy.predict(requests[::-1])[::-1], together, self.close)
        assert not np.array_equal(together[0].actions, together[1].actions)

    def test_chance_comes_from_the_seed_whatever_the_batch(self, policy, requests):
        first = requests[0]
        other = replace(first, seed=first.seed + 1000)
        alone, among = policy.predict([first])[0], policy.predict([other, requests[1], first])
        np.testing.assert_allclose(among[2].actions, alone.actions, atol=self.close, rtol=0)
        assert np.allclose(among[0].actions, alone.actions, atol=self.close, rtol=0) != self.is_random

    def test_the_callers_random_numbers_are_not_touched(self, policy, requests):
        np.random.seed(1)  # noqa: NPY002
        expected = np.random.random()  # noqa: NPY002
        np.random.seed(1)  # noqa: NPY002
        policy.predict(requests)
        assert np.random.random() == expected  # noqa: NPY002

    def test_requests_are_left_alone(self, policy, requests):
        copies = [
            ({view: picture.copy() for view, picture in one.observation.images.items()}, one.observation.proprio.copy())
            for one in requests
        ]
        policy.predict(requests)
        for request, (images, proprio) in zip(requests, copies, strict=True):
            np.testing.assert_array_equal(request.observation.proprio, proprio)
            for view, picture in images.items():
                np.testing.assert_array_equal(request.observation.images[view], picture)

    def test_times_are_not_negative(self, policy, requests):
        for chunk in policy.predict(requests):
            assert chunk.model_ms >= 0 and all(value >= 0 for value in chunk.latency_ms.values())

    def test_what_the_model_raises_is_raised(self, failing):
        policy, requests = failing
        with pytest.raises(RuntimeError, match="CUDA error"):
            policy.predict(requests)
