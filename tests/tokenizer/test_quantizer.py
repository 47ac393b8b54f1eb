"""Scalar and residual quantisation against integers worked out by hand."""

import pytest
import torch

from rsd.tokenizer.quantizer import ResidualQuantizer, dequantize, quantize


def test_scalar_quantizer_table():
    step, levels = torch.tensor(0.5), torch.tensor(7)  # values -1.5, -1, ..., 1.5
    values = torch.tensor([-9.0, -1.5, -0.6, -0.2, 0.0, 0.3, 1.26, 1.5, 9.0])
    indices = quantize(values, step, levels)
    assert indices.tolist() == [0, 0, 2, 3, 3, 4, 6, 6, 6]
    assert dequantize(indices, step, levels).tolist() == [-1.5, -1.5, -0.5, 0.0, 0.0, 0.5, 1.5, 1.5, 1.5]


def test_two_levels_and_one_level():
    values = torch.tensor([-0.5, 0.5])
    assert quantize(values, torch.tensor(1.0), torch.tensor(2)).tolist() == [0, 1]
    assert dequantize(torch.tensor([0, 1]), torch.tensor(1.0), torch.tensor(2)).tolist() == [-0.5, 0.5]
    assert quantize(values, torch.tensor(1.0), torch.tensor(1)).tolist() == [0, 0]
    assert dequantize(torch.tensor([0]), torch.tensor(1.0), torch.tensor(1)).tolist() == [0.0]


def test_residual_digits_by_hand():
    levels = torch.full((1, 1, 3), 3)
    quantizer = ResidualQuantizer(levels, torch.tensor([9.0, 3.0, 1.0]))
    # 7 = 9 - 3 + 1; 13 saturates at 9 + 3 + 1; -4 = 0 - 3 - 1
    latents = torch.tensor([7.0, 13.0, -4.0]).reshape(3, 1, 1)
    indices = quantizer.encode(latents)
    assert indices[:, 0, 0].tolist() == [[2, 0, 2], [2, 2, 2], [1, 0, 0]]
    assert torch.allclose(quantizer.decode(indices)[:, 0, 0], torch.tensor([7.0, 13.0, -4.0]), atol=1e-5)
    assert torch.allclose(quantizer.reach(1), torch.tensor([[4.0]]), atol=1e-5)


def test_a_wrong_prefix_is_repaired_by_later_stages():
    levels = torch.full((1, 1, 3), 7)
    quantizer = ResidualQuantizer(levels, torch.tensor([7.0, 3.0, 1.0]))  # hand-over ratio L/3: room for a carry
    latents = torch.arange(-20.0, 21.0).reshape(-1, 1, 1)
    digits = quantizer.encode(latents)
    for shift in (-1, 1):
        prefix = (digits[..., :1] + shift).clamp(0, 6)
        repaired = quantizer.encode(latents, prefix)
        assert torch.equal(repaired[..., :1], prefix)
        assert torch.allclose(quantizer.decode(repaired), latents, atol=1e-4)


def test_a_fixed_grid_would_carry_nothing_after_the_first_stage():
    """Why stages need their own steps: with one step for all, every residual rounds to zero."""
    levels = torch.full((1, 1, 3), 7)
    quantizer = ResidualQuantizer(levels, torch.tensor([1.0, 1.0, 1.0]))
    indices = quantizer.encode(torch.linspace(-3, 3, 100).reshape(-1, 1, 1))
    assert (indices[..., 1:] == 3).all()


def stage_by_stage(quantizer, latents, digits):
    """The definition of `ResidualQuantizer.encode`, with integers."""
    steps, levels = quantizer.steps(), quantizer.levels
    residual = latents - sum(
        dequantize(digit, steps[..., stage], levels[..., stage]) for stage, digit in enumerate(digits)
    )
    for stage in range(len(digits), quantizer.num_stages):
        digits = [*digits, quantize(residual, steps[..., stage], levels[..., stage])]
        residual = residual - dequantize(digits[-1], steps[..., stage], levels[..., stage])
    return torch.stack(digits, dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_stages", [1, 3, 5, 9])
def test_the_fast_way_is_bit_for_bit_the_plain_one(num_stages, dtype):
    draw = torch.Generator().manual_seed(num_stages)
    levels = torch.randint(1, 12, (8, 7, num_stages), generator=draw)
    steps = (0.1 + torch.rand(levels.shape, generator=draw)) * 5.0 ** -torch.arange(num_stages)
    quantizer = ResidualQuantizer(levels, steps)
    latents = (2 * torch.randn(33, 8, 7, generator=draw)).to(dtype)
    indices = quantizer.encode(latents)
    assert torch.equal(indices, stage_by_stage(quantizer, latents, []))
    for depth in range(num_stages + 1):
        plain = dequantize(indices[..., :depth], quantizer.steps()[..., :depth], levels[..., :depth]).sum(dim=-1)
        assert torch.equal(quantizer.decode(indices[..., :depth]), plain)
    drafted = (indices[..., :1] + 1).minimum(levels[..., :1] - 1)
    continued = quantizer.encode(latents, drafted)
    assert torch.equal(continued, stage_by_stage(quantizer, latents, [drafted[..., 0]]))
    assert continued.is_contiguous() and continued.dtype == torch.int64


def test_what_is_no_number_has_the_first_level():
    quantizer = ResidualQuantizer(torch.full((1, 1, 2), 7), torch.tensor([7.0, 1.0]))
    assert quantizer.encode(torch.full((1, 1, 1), torch.nan)).tolist() == [[[[0, 0]]]]
