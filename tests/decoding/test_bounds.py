"""The tail bound and the carry-tolerant hand-over as properties, of any tokenizer, chunk and draft."""

from __future__ import annotations

from typing import Any, NamedTuple

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

from rsd.decoding import Certificate, Levels, Noise, Speculative
from rsd.stages.base_chunk import ChunkLogits, executed
from rsd.tokenizer.transform import TransformTokenizer
from rsd.types import Code
from tests.decoding.tables import Function

SLACK = 1e-4  # of float32, in latents of 1 or so
B = 6
PROPERTY = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)


class Case(NamedTuple):
    tokenizer: TransformTokenizer
    chunks: Tensor  # [B, T, A], as a continuous head says them; some outside of the tokenizer's grid
    generator: torch.Generator


@st.composite
def cases(draw: Any, ratio: float | None = None) -> Case:
    levels, stages = draw(st.integers(3, 9)), draw(st.integers(1, 4))
    if ratio is not None:
        levels = max(levels, 4)  # a third of it is a ratio above 1
    length, dims = draw(st.integers(1, 8)), draw(st.integers(2, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokenizer = TransformTokenizer(
        chunk_length=length,
        action_dim=dims,
        num_stages=stages,
        num_levels=levels,
        ratio=levels * (draw(st.floats(0.35, 1.0)) if ratio is None else ratio),
        margin=draw(st.floats(0.8, 1.2)),
    )
    pose = torch.rand(B, length, dims - 1, generator=generator) * 2 - 1
    gripper = torch.randint(0, 2, (B, length, 1), generator=generator).float()
    scale = torch.logspace(0, -2, dims - 1)[torch.randperm(dims - 1, generator=generator)]  # some are seen late
    tokenizer.fit(torch.cat([pose * scale, gripper], dim=-1))
    reach = draw(st.floats(0.1, 1.5))
    moved = pose * scale * reach, gripper + 0.4 * torch.rand(gripper.shape, generator=generator) - 0.2
    return Case(tokenizer, torch.cat(moved, dim=-1), generator)


def drawn(case: Case, depth: int) -> Tensor:
    """Any digits of the first stages, [B, T, D, depth]."""
    levels = case.tokenizer.quantizer.levels[..., :depth]
    return (torch.rand(B, *levels.shape, generator=case.generator) * levels).long()


def one_hot(digits: Tensor, num_levels: int) -> Function:
    """A draft that says these digits, whatever is known, [B, T, D, Q]."""
    logits = torch.nn.functional.one_hot(digits, num_levels).float().log()
    return Function(lambda known, start, stop: logits[..., start:stop, :])


def speculated(case: Case, accept: Any, nearness: float, stages: int) -> Code:
    """A draft that is off by one level, or by any number of them, held to the chunks."""
    levels = case.tokenizer.quantizer.levels
    own = case.tokenizer.encode(executed(case.chunks))
    near = (own + torch.randint(-1, 2, own.shape, generator=case.generator)).clamp_min(0).minimum(levels - 1)
    mixed = torch.where(torch.rand(own.shape, generator=case.generator) < nearness, near, drawn(case, own.shape[-1]))
    draft = one_hot(mixed, case.tokenizer.code_shape.num_levels)
    options = Speculative(num_draft_stages=stages, accept=accept)
    return options.run(ChunkLogits(case.tokenizer, case.chunks), draft, levels, Noise(range(B)))


def errors(case: Case, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Of the latents [B, T, D] and of the actions [B, T, A], against what is executed of the chunks."""
    wanted = executed(case.chunks)
    latents = case.tokenizer.to_latents(wanted) - case.tokenizer.quantizer.decode(indices)
    return latents.abs(), (case.tokenizer.decode(indices) - wanted).abs()


@PROPERTY
@hypothesis.given(cases(), st.data())
def test_the_tail_bound_holds_whatever_the_later_digits_say(case: Case, data: Any) -> None:
    tokenizer, digits = case.tokenizer, drawn(case, case.tokenizer.quantizer.num_stages)
    depth = data.draw(st.integers(0, digits.shape[-1]))
    moved = tokenizer.quantizer.decode(digits) - tokenizer.quantizer.decode(digits[..., :depth])
    assert (moved.abs() <= tokenizer.quantizer.reach(depth) + SLACK).all()
    moved = tokenizer.decode(digits) - tokenizer.decode(digits[..., :depth])
    assert (moved.abs() <= tokenizer.action_bound(depth) + SLACK).all()


@PROPERTY
@hypothesis.given(cases(), st.data())
def test_what_is_captured_ends_within_half_the_last_step(case: Case, data: Any) -> None:
    quantizer = case.tokenizer.quantizer
    prefix = drawn(case, data.draw(st.integers(0, quantizer.num_stages)))
    where = torch.rand(B, *quantizer.levels.shape[:2], generator=case.generator) * 2 - 1
    latents = quantizer.decode(prefix) + where * quantizer.captured(prefix.shape[-1])
    left = (latents - quantizer.decode(quantizer.encode(latents, prefix))).abs()
    assert (left <= quantizer.steps()[..., -1] / 2 + SLACK).all()


@PROPERTY
@hypothesis.given(cases(ratio=1 / 3))
def test_at_a_ratio_of_a_third_of_the_levels_every_digit_that_is_off_by_one_is_repaired(case: Case) -> None:
    quantizer = case.tokenizer.quantizer
    half = quantizer.steps()[..., 0] * quantizer.levels[..., 0] / 2  # the grid of the first stage
    latents = (torch.rand(B, *half.shape, generator=case.generator) * 2 - 1) * half
    away = torch.randint(-1, 2, half.shape, generator=case.generator) * (quantizer.levels[..., 0] > 2)
    first = (quantizer.encode(latents)[..., 0] + away).clamp_min(0).minimum(quantizer.levels[..., 0] - 1)
    repaired = quantizer.encode(latents, first[..., None])
    seen = (quantizer.levels[..., 0] > 2) & (quantizer.levels[..., 1:] > 1).any(dim=-1)  # and have a later digit
    left = (latents - quantizer.decode(repaired)).abs()
    assert (left <= quantizer.steps()[..., -1] / 2 + SLACK)[:, seen].all()


@PROPERTY
@hypothesis.given(cases(), st.floats(0, 1), st.data())
def test_a_certificate_means_an_error_of_half_the_last_step_and_an_exact_gripper(
    case: Case, nearness: float, data: Any
) -> None:
    quantizer = case.tokenizer.quantizer
    code = speculated(case, Certificate(), nearness, data.draw(st.integers(1, quantizer.num_stages)))
    latents, actions = errors(case, code.indices)
    assert code.bound is not None
    certified = code.bound.isfinite().all(dim=1)  # [B]
    hypothesis.target(certified.float().mean().item())
    assert (latents <= quantizer.steps()[..., -1] / 2 + SLACK)[certified].all()
    assert (actions <= code.bound[:, None] + SLACK).all()
    assert (actions[..., -1] < SLACK).all()  # whether certified or not
    assert (code.bound[certified][:, -1] == 0).all()


@PROPERTY
@hypothesis.given(cases(), st.floats(0, 1), st.integers(1, 3), st.data())
def test_within_levels_the_error_stays_within_its_bound_and_the_gripper_is_exact(
    case: Case, nearness: float, r: int, data: Any
) -> None:
    stages = data.draw(st.integers(1, case.tokenizer.quantizer.num_stages))
    code = speculated(case, Levels(r=r), nearness, stages)
    _, actions = errors(case, code.indices)
    assert code.bound is not None
    assert (actions <= code.bound[:, None] + SLACK).all()
    assert (actions[..., -1] < SLACK).all()


@PROPERTY
@hypothesis.given(cases())
def test_whoever_is_always_right_is_certified_wherever_the_grid_reaches(case: Case) -> None:
    """And nowhere else: a chunk outside of the grid has an infinite bound, since its digits may be anywhere."""
    code = speculated(case, Certificate(), 1.0, 1)
    latents = case.tokenizer.to_latents(executed(case.chunks))
    within = (latents.abs() <= case.tokenizer.quantizer.captured(0)).flatten(1).all(dim=1)
    assert code.bound is not None and torch.equal(code.bound.isfinite().all(dim=1), within)
