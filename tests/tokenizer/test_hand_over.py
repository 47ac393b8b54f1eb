"""The tail bound and the carry-tolerant hand-over, held to over many drawn prefixes."""

from __future__ import annotations

import pytest
import torch

from rsd.errors import SettingError
from rsd.tokenizer.quantizer import ResidualQuantizer
from rsd.tokenizer.rfsq import RFSQTokenizer
from rsd.tokenizer.transform import TransformTokenizer

N, T, A, Q, L = 400, 4, 3, 3, 7
SLACK = 1e-5  # of float32


def tokenizer(ratio: float) -> TransformTokenizer:
    made = TransformTokenizer(chunk_length=T, action_dim=A, num_stages=Q, num_levels=L, ratio=ratio, margin=1.0)
    made.fit(chunks(seed=0))
    return made


def chunks(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pose = torch.rand(N, T, A - 1, generator=generator) * 2 - 1
    return torch.cat([pose, torch.randint(0, 2, (N, T, 1), generator=generator).float()], dim=-1)


def disturbed(digits: torch.Tensor, levels: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    moved = digits + torch.randint(-1, 2, digits.shape, generator=generator)
    return moved.clamp_min(0).minimum(levels[..., : digits.shape[-1]] - 1)


def test_captured_is_half_the_grid_of_the_next_stage_that_has_a_token() -> None:
    levels = torch.tensor([[[3, 3], [1, 3], [2, 1]]])  # an entry from stage 1, one from stage 2, a gripper
    steps = torch.tensor([[[0.9, 0.3], [0.9, 0.3], [1.0, 1.0]]])
    quantizer = ResidualQuantizer(levels, steps)
    torch.testing.assert_close(quantizer.captured(0), torch.tensor([[1.35, 0.45, 1.0]]))
    torch.testing.assert_close(quantizer.captured(1), torch.tensor([[0.45, 0.45, 0.5]]))
    torch.testing.assert_close(quantizer.captured(2), torch.tensor([[0.15, 0.15, 0.5]]))


@pytest.mark.parametrize("ratio", [L / 3, 4.0, float(L)])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_captured_ends_within_half_the_last_step_and_an_exact_gripper(ratio: float, depth: int) -> None:
    made = tokenizer(ratio)
    actions = chunks(seed=0)  # those of the fit: all within the grid of stage 1
    latents = made.to_latents(actions)
    prefix = disturbed(made.encode(actions)[..., :depth], made.quantizer.levels, seed=depth)
    error = (latents - made.quantizer.decode(prefix)).abs()
    captured = error <= made.quantizer.captured(depth) * (1 - SLACK)
    indices = made.encode(actions, prefix)
    left = (latents - made.quantizer.decode(indices)).abs()
    assert captured[..., :-1].any()
    assert (left <= made.quantizer.steps()[..., -1] / 2 + SLACK)[captured].all()
    assert (left[..., -1][captured[..., -1]] <= SLACK).all()  # the gripper
    whole = captured.flatten(1).all(dim=1)
    moved = (made.decode(indices) - actions).abs()
    assert (moved <= made.hand_over_bound() + SLACK)[whole].all()


def test_at_ratio_l_over_3_every_digit_that_is_off_by_one_is_repaired() -> None:
    made = tokenizer(L / 3)
    actions = chunks(seed=0)
    latents = made.to_latents(actions)
    prefix = made.encode(actions)[..., :1]
    prefix[..., :-1, :] = disturbed(prefix, made.quantizer.levels, seed=3)[..., :-1, :]  # all but the gripper
    left = (latents - made.quantizer.decode(made.encode(actions, prefix))).abs()
    assert (left <= made.quantizer.steps()[..., -1] / 2 + SLACK).all()


@pytest.mark.parametrize("depth", range(Q + 1))
def test_later_digits_never_move_an_action_entry_further_than_the_bound(depth: int) -> None:
    made = tokenizer(4.0)
    drawn = torch.rand(N, T, A, Q, generator=torch.Generator().manual_seed(depth))
    indices = (drawn * made.quantizer.levels).long()
    moved = (made.decode(indices) - made.decode(indices[..., :depth])).abs()
    assert (moved <= made.action_bound(depth) + SLACK).all()


def test_a_gap_between_stages_is_refused() -> None:
    quantizer = ResidualQuantizer(torch.full((1, 1, 2), 3), torch.tensor([1.0, 0.3]))  # 1 > 3 * 0.3
    with pytest.raises(SettingError, match="stage 1 of the tokenizer leaves more than the later ones can refine"):
        quantizer.captured(0)


def test_refined_is_half_the_last_step_and_what_later_stages_leave_of_digits_that_are_off() -> None:
    levels = torch.tensor([[[3, 3], [1, 3], [2, 1]]])  # an entry from stage 1, one from stage 2, a gripper
    quantizer = ResidualQuantizer(levels, torch.tensor([[[0.9, 0.3], [0.9, 0.3], [1.0, 1.0]]]))
    torch.testing.assert_close(quantizer.refined(torch.zeros(1, 3, 2)), torch.tensor([[0.15, 0.15, 0.5]]))
    off = torch.tensor([[[[1, 0], [0, 0], [0, 0]]], [[[0, 2], [0, 0], [0, 0]]]])  # of two chunks
    # 0.45 after stage 1 and 0.9 for the wrong digit; the last level of stage 2 takes 0.3 of it
    torch.testing.assert_close(quantizer.refined(off), torch.tensor([[[1.05, 0.15, 0.5]], [[0.75, 0.15, 0.5]]]))


def test_a_learned_decoder_has_a_bound_through_its_layers() -> None:
    """Loose, but never passed: latents that are off by half the last step at most."""
    torch.manual_seed(0)
    made = RFSQTokenizer(chunk_length=T, action_dim=A, latent_dim=4, hidden_dim=8, num_stages=2, num_levels=7)
    latents = torch.rand(N, T, 4) * 2 - 1
    half = made.quantizer.steps()[..., -1] / 2
    with torch.no_grad():
        moved = (made.to_actions(latents + (2 * torch.rand(N, T, 4) - 1) * half) - made.to_actions(latents)).abs()
        assert (moved <= made.hand_over_bound() + SLACK).all() and (moved > 0).any()
