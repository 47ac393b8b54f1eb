"""Relaxed acceptance: what is kept, what a gripper is held to, and what the certificate promises of the result."""

from __future__ import annotations

import pytest
import torch

from rsd.decoding import (
    L1,
    Certificate,
    EarlyExit,
    Levels,
    MeanLogProb,
    Noise,
    Speculative,
    from_json,
    relaxed,
    to_json,
)
from rsd.errors import SettingError
from rsd.policy.assemble import check_relaxed
from rsd.policy.contract import PolicyError
from rsd.stages.base_chunk import ChunkLogits
from rsd.tokenizer.bins import BinTokenizer
from rsd.tokenizer.transform import TransformTokenizer
from rsd.types import Code
from tests.decoding.tables import TableModel, run

B, T, A, Q, L = 200, 4, 3, 3, 7


@pytest.fixture(scope="module")
def tokenizer() -> TransformTokenizer:
    made = TransformTokenizer(chunk_length=T, action_dim=A, num_stages=Q, num_levels=L, ratio=L / 3, margin=1.0)
    made.fit(_chunks())
    return made


def _chunks() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pose = torch.rand(B, T, A - 1, generator=generator) * 2 - 1
    return torch.cat([pose, torch.randint(0, 2, (B, T, 1), generator=generator).float()], dim=-1)


def _run(tokenizer: TransformTokenizer, accept: object, scale: float) -> Code:
    """Hold a draft that speaks of slightly other chunks to the true ones."""
    moved = _chunks() + scale * torch.randn(B, T, A, generator=torch.Generator().manual_seed(1))
    target, draft = ChunkLogits(tokenizer, _chunks()), ChunkLogits(tokenizer, moved)
    options = Speculative(num_draft_stages=2, accept=accept)  # type: ignore[arg-type]
    return options.run(target, draft, tokenizer.quantizer.levels, Noise(range(B)))


def test_levels_keep_what_is_near_and_never_another_bit_of_the_gripper() -> None:
    target = torch.nn.functional.one_hot(torch.tensor([3, 3, 3, 0]), L).float()
    proposal, levels = torch.tensor([3, 4, 5, 1]), torch.tensor([L, L, L, 2])
    tokens, kept = Levels(r=1)(proposal, target, target, None, levels, torch.zeros(4, dtype=torch.bool))
    assert tokens.tolist() == [3, 4, 3, 0] and kept.tolist() == [True, True, False, False]


def test_certificate_keeps_what_the_next_stage_repairs_and_never_another_bit_of_the_gripper() -> None:
    target = torch.nn.functional.one_hot(torch.tensor([3, 3, 3, 0]), L).float()
    proposal, levels = torch.tensor([3, 4, 5, 1]), torch.tensor([L, L, L, 2])
    repairable = torch.tensor([False, True, False, True])
    tokens, kept = Certificate()(proposal, target, target, None, levels, repairable)
    assert tokens.tolist() == [3, 4, 3, 0] and kept.tolist() == [True, True, False, False]


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
def test_by_certificate_the_error_ends_within_half_the_last_step(tokenizer: TransformTokenizer, scale: float) -> None:
    code = _run(tokenizer, Certificate(), scale)
    latents = tokenizer.to_latents(_chunks())
    left = (latents - tokenizer.quantizer.decode(code.indices)).abs()
    assert (left <= tokenizer.quantizer.steps()[..., -1] / 2 + 1e-5).all()
    error = (tokenizer.decode(code.indices) - _chunks()).abs()
    assert (error <= tokenizer.hand_over_bound() + 1e-5).all()
    assert (error[..., -1] == 0).all()
    assert (code.work.target_passes <= Q).all()


def test_relaxed_rules_keep_more_than_the_exact_one(tokenizer: TransformTokenizer) -> None:
    accept = Speculative(num_draft_stages=2).accept
    exact, levels, certificate = (
        int(_run(tokenizer, rule, 0.1).work.accepted_tokens.sum()) for rule in (accept, Levels(r=1), Certificate())
    )
    assert exact < levels and exact < certificate


@pytest.mark.parametrize("rule", [Levels(r=1), Certificate()])
def test_a_temperature_is_refused(rule: object) -> None:
    with pytest.raises(SettingError, match=r"temperature 0.5 with accept .*, expected 0"):
        Speculative(num_draft_stages=2, temperature=0.5, accept=rule)  # type: ignore[arg-type]


def test_r_is_a_count() -> None:
    with pytest.raises(SettingError, match="r is 0, expected a whole number of at least 1"):
        Levels(r=0)


def test_a_record_whose_accept_is_no_rule_is_refused() -> None:
    with pytest.raises(SettingError, match=r"accept L1\(\), expected a rule such as Levels or Certificate"):
        from_json({"kind": "Speculative", "num_draft_stages": 2, "accept": {"kind": "L1"}})


@pytest.mark.parametrize("rule", [Levels(r=2), Certificate()])
def test_a_relaxed_decoding_is_written_down_read_again_and_found_inside_of_another(rule: object) -> None:
    inner = Speculative(num_draft_stages=2, accept=rule)  # type: ignore[arg-type]
    outer = EarlyExit(gate=MeanLogProb(threshold=0.0), full=inner, num_draft_stages=2)
    assert from_json(to_json(outer)) == outer
    assert relaxed(outer) == rule and relaxed(Speculative(num_draft_stages=2)) is None and relaxed(L1()) is None


def test_a_tokenizer_without_a_bit_for_the_gripper_is_refused(tokenizer: TransformTokenizer) -> None:
    check_relaxed(Levels(r=1), tokenizer)
    check_relaxed(Certificate(), tokenizer)
    bins = BinTokenizer(chunk_length=T, action_dim=A, num_bins=16)
    with pytest.raises(PolicyError, match="tokenizer BinTokenizer has no bit of its own"):
        check_relaxed(Levels(r=1), bins)
    with pytest.raises(PolicyError, match="tokenizer BinTokenizer has no bit of its own"):
        check_relaxed(Certificate(), bins)


@pytest.mark.parametrize("rule", [Levels(r=1), Certificate()])
def test_a_target_that_is_no_chunk_of_numbers_certifies_nothing(rule: object) -> None:
    options = Speculative(num_draft_stages=2, accept=rule)  # type: ignore[arg-type]
    code = run(options, TableModel(seed=1), TableModel(seed=2, agree_with=TableModel(seed=1), rate=0.9), range(3))
    assert code.bound is not None and code.bound.tolist() == [[float("inf")]] * 3
    assert run(Speculative(num_draft_stages=2), TableModel(seed=1), TableModel(seed=2), range(3)).bound is None


@pytest.mark.parametrize("rule", [Levels(r=1), Certificate()])
@pytest.mark.parametrize("seed", range(3))
def test_passes_are_the_calls_of_draft_and_target(rule: object, seed: int) -> None:
    target = TableModel(seed=seed)
    asked, draft = TableModel(seed=seed), TableModel(seed=9, agree_with=target, rate=0.8)
    options = Speculative(num_draft_stages=3, accept=rule)  # type: ignore[arg-type]
    work = run(options, asked, draft).work
    assert [asked.calls, draft.calls] == [int(work.target_passes), int(work.draft_passes)]
    assert 1 <= asked.calls <= 4
