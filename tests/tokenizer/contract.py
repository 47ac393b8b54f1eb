"""What every action tokenizer must do; a test class inherits this and provides `tokenizer`."""

import pytest
import torch


def random_chunks(count: int, chunk_length: int, seed: int = 0) -> torch.Tensor:
    """Normalised chunks with smooth poses and a gripper of 0 and 1, [count, T, 7]."""
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn(count, chunk_length, 7, generator=generator).cumsum(dim=1) * 0.15
    chunks = (walk + torch.rand(count, 1, 7, generator=generator) - 0.5).clamp(-1, 1)
    chunks[..., 6] = (chunks[..., 6] > 0).float()
    return chunks


class TokenizerContract:
    """Laws 1 and 5 of a tokenizer, its bounds and its errors."""

    @pytest.fixture
    def chunks(self, tokenizer):
        return random_chunks(64, tokenizer.code_shape.chunk_length, seed=1)

    def test_forward_is_the_decoded_code_for_every_prefix(self, tokenizer, chunks):
        indices = tokenizer.encode(chunks)
        assert torch.equal(tokenizer.decode(indices), tokenizer(chunks))
        for depth in range(1, tokenizer.code_shape.num_stages + 1):
            assert torch.equal(tokenizer.decode(indices[..., :depth]), tokenizer(chunks, depth))

    def test_decoding_needs_the_integers_alone(self, tokenizer, chunks):
        indices = tokenizer.encode(chunks)
        one_by_one = torch.cat([tokenizer.decode(row[None].clone()) for row in indices])
        assert torch.allclose(one_by_one, tokenizer.decode(indices), atol=1e-6)

    def test_code_shape_is_what_encode_returns(self, tokenizer, chunks):
        indices, shape = tokenizer.encode(chunks), tokenizer.code_shape
        levels = torch.tensor(shape.levels)
        assert tuple(indices.shape) == (64, *levels.shape) and indices.dtype == torch.int64
        assert ((indices >= 0) & (indices < levels)).all()
        assert shape.num_levels == levels.max()
        assert shape.tokens_per_stage == (levels > 1).sum(dim=(0, 1)).tolist()

    def test_prefix_stays_and_the_rest_describes_its_residual(self, tokenizer, chunks):
        indices = tokenizer.encode(chunks)
        for depth in range(tokenizer.code_shape.num_stages + 1):
            assert torch.equal(tokenizer.encode(chunks, indices[..., :depth]), indices)
        levels = torch.tensor(tokenizer.code_shape.levels)
        wrong = (indices[..., :1] + 1).minimum(levels[..., :1] - 1)
        assert torch.equal(tokenizer.encode(chunks, wrong)[..., :1], wrong)

    def test_later_stages_stay_within_the_bound(self, tokenizer, chunks):
        indices = tokenizer.encode(chunks)
        levels = torch.tensor(tokenizer.code_shape.levels)
        generator = torch.Generator().manual_seed(3)
        for depth in range(1, tokenizer.code_shape.num_stages + 1):
            other = (torch.rand(indices.shape, generator=generator) * levels).long().minimum(levels - 1)
            other[..., :depth] = indices[..., :depth]
            moved = (tokenizer.decode(other) - tokenizer.decode(indices[..., :depth])).abs().amax(dim=0)
            assert (moved <= tokenizer.action_bound(depth) + 1e-5).all()

    def test_wrong_shapes_and_values_are_named(self, tokenizer, chunks):
        with pytest.raises(ValueError, match="expected"):
            tokenizer.encode(chunks[:, :-1])
        broken = chunks.clone()
        broken[0, 0, 0] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            tokenizer.encode(broken)
        indices = tokenizer.encode(chunks)
        with pytest.raises(ValueError, match="another tokenizer"):
            tokenizer.decode(torch.cat([indices, indices], dim=-1))
        with pytest.raises(ValueError, match="another tokenizer"):
            tokenizer.decode(indices[:, :, :-1])
