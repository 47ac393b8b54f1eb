"""Recorded episodes through a tokenizer: chunks one after the other, nothing made up, nothing lost."""

import numpy as np
import pytest
import torch

from rsd.space import Space, SpaceError
from rsd.tokenizer import BinTokenizer
from rsd.tokenizer.round_trip import in_chunks, joined, normalised, round_trip

ENTRY = {"q01": [-0.5, 0.0], "q99": [0.5, 1.0], "min": [-1.0, 0.0], "max": [1.0, 1.0], "mask": [True, False]}
SPACE = Space.from_statistics("toy", {"action": ENTRY})


@pytest.mark.parametrize(("length", "starts"), [(8, [0, 4]), (10, [0, 4, 6]), (4, [0]), (3, [0])])
def test_the_last_chunk_ends_with_the_episode(length, starts):
    actions = np.arange(2.0 * length).reshape(length, 2)
    chunks, found = in_chunks(actions, 4)
    assert found == starts and chunks.shape == (len(starts), 4, 2)
    np.testing.assert_array_equal(joined(chunks, found, length), actions)


def test_where_chunks_overlap_the_earlier_one_counts():
    chunks = np.array([[[1.0]] * 4, [[2.0]] * 4])
    assert joined(chunks, [0, 2], 6)[:, 0].tolist() == [1, 1, 1, 1, 2, 2]


def test_normalising_cuts_off_what_is_beyond_the_bounds():
    assert normalised(np.array([[0.7, 1.0], [-0.2, 0.0]]), SPACE) == pytest.approx(np.array([[0.5, 1.0], [-0.2, 0.0]]))
    with pytest.raises(SpaceError, match="actions have 3 dims, 'toy' of the tokenizer 2; give one that"):
        normalised(np.zeros((1, 3)), SPACE)


def test_what_comes_back_is_what_the_code_says():
    tokenizer = BinTokenizer(chunk_length=4, action_dim=2, num_bins=256)
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 2)).astype(np.float32)
    actions[:, 1] = actions[:, 1] > 0
    found = round_trip(actions, tokenizer, SPACE, depth=1)
    assert np.abs(found - actions).max() < 0.01
    first = tokenizer.decode(tokenizer.encode(torch.from_numpy(SPACE.to_model(actions[None, :4]))))[0].numpy()
    np.testing.assert_allclose(found[:4], SPACE.action.unnormalize(first))
