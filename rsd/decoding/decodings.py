"""From stage logits to a code: parallel, depth-autoregressive, and speculative decoding, as pure functions.

All three see the models as a function from the stages known so far to logits of the stages asked for. A *pass* is one
call of the target. Within a stage tokens are independent given the stages before it, therefore a corrected stage is
final, and only the stages drafted after it are void. Speculative decoding fixes at least one stage a pass and returns
what depth_ar returns: index for index at temperature 0, in distribution above.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from rsd.decoding.sampling import Noise, distribution, draw, verify
from rsd.errors import SettingError
from rsd.types import DecodingResult

DRAFT, DECISION, REPLACEMENT, TARGET = range(4)  # what a random number is for; its place is (pass, stage, one of these)


class StageLogits(Protocol):
    """A target or draft model with its features bound."""

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        """Logits of stages start..stop-1.

        Args:
            known: Indices of the first n stages, [B, T, D, n], int64. Stage q reads the first min(q, n) of them only.

        Returns:
            [B, T, D, stop - start, L]; levels that an entry does not have are -inf.
        """


def _uniform(noise: Noise | None, temperature: float, levels: Tensor, *place: int) -> Tensor | None:
    """Random numbers for the tokens of one stage, [B, T, D]; None where greedy decoding needs none.

    Raises:
        ValueError: sampling is asked for without noise.
    """
    if temperature == 0:
        return None
    if noise is None:
        raise ValueError(f"temperature {temperature} samples, and needs noise=Noise(seeds), one seed a sample")
    return noise.uniform(levels.shape[:2], *place)


def _result(indices: Tensor, target_passes: Tensor, **counts: Any) -> DecodingResult:
    """A result with zeros for everything that a decoding without a draft does not count."""
    batch, num_stages = indices.shape[0], indices.shape[-1]
    none = torch.zeros(batch, dtype=torch.long, device=indices.device)
    per_stage = torch.zeros(batch, num_stages, dtype=torch.long, device=indices.device)
    defaults = {
        "draft_passes": none,
        "proposed_stages": none,
        "accepted_stages": none,
        "accepted_tokens": (per_stage, per_stage),
        "accept_counts": torch.zeros(batch, num_stages + 1, dtype=torch.long, device=indices.device),
        "proposal": None,
    }
    return DecodingResult(indices=indices, target_passes=target_passes, **{**defaults, **counts})


def parallel(
    target: StageLogits,
    draft: StageLogits | None = None,
    *,
    levels: Tensor,
    batch_size: int,
    temperature: float = 0.0,
    noise: Noise | None = None,
) -> DecodingResult:
    """All stages from one pass, none of them knowing another. The draft is not used.

    Args:
        levels: Number of levels of every entry, [T, D, Q], int64, on the models' device.
        temperature: 0 is greedy.
        noise: Seeds of the samples; needed above temperature 0 only.
    """
    known = torch.zeros(batch_size, *levels.shape[:2], 0, dtype=torch.long, device=levels.device)
    probs = distribution(target(known, 0, levels.shape[2]), temperature)  # [B, T, D, Q, L]
    indices = torch.stack(
        [
            draw(probs[..., stage, :], _uniform(noise, temperature, levels, 0, stage, TARGET))
            for stage in range(levels.shape[2])
        ],
        dim=-1,
    )  # [B, T, D, Q]
    return _result(indices, torch.ones(batch_size, dtype=torch.long, device=levels.device))


def depth_ar(
    target: StageLogits,
    draft: StageLogits | None = None,
    *,
    levels: Tensor,
    batch_size: int,
    temperature: float = 0.0,
    noise: Noise | None = None,
) -> DecodingResult:
    """One pass a stage, each knowing all stages before it: the lossless reference. The draft is not used."""
    num_stages = levels.shape[2]
    indices = torch.zeros(batch_size, *levels.shape[:2], 0, dtype=torch.long, device=levels.device)
    for stage in range(num_stages):
        probs = distribution(target(indices, stage, stage + 1), temperature)[..., 0, :]  # [B, T, D, L]
        tokens = draw(probs, _uniform(noise, temperature, levels, stage, stage, TARGET))  # [B, T, D]
        indices = torch.cat([indices, tokens[..., None]], dim=-1)  # [B, T, D, stage + 1]
    return _result(indices, torch.full((batch_size,), num_stages, dtype=torch.long, device=levels.device))


def speculative(
    target: StageLogits,
    draft: StageLogits,
    *,
    levels: Tensor,
    batch_size: int,
    num_draft_stages: int,
    temperature: float = 0.0,
    noise: Noise | None = None,
) -> DecodingResult:
    """Draft the coarse stages, verify them in one pass, correct the first wrong one, continue.

    A pass over the drafted stages also yields the stage after them, so a draft that is always right and covers the
    first Q - 1 stages needs a single pass, and no draft needs more than Q.

    Args:
        num_draft_stages: The draft proposes up to this stage, 1..Q.

    Raises:
        ValueError: num_draft_stages is not in 1..Q.
    """
    num_stages = levels.shape[2]
    if not 1 <= num_draft_stages <= num_stages:
        raise SettingError(f"num_draft_stages {num_draft_stages}, expected 1..{num_stages}, the stages of the code")
    device = levels.device
    indices = torch.zeros(batch_size, *levels.shape[:2], num_stages, dtype=torch.long, device=device)
    final = torch.zeros(batch_size, dtype=torch.long, device=device)  # leading stages that are decided
    passes, drafts, proposed, accepted = (torch.zeros_like(final) for _ in range(4))
    kept_tokens, checked_tokens = (torch.zeros(batch_size, num_stages, dtype=torch.long, device=device) for _ in "kc")
    accept_counts = torch.zeros(batch_size, num_stages + 1, dtype=torch.long, device=device)
    tokens_per_stage = (levels > 1).flatten(0, 1)  # [T*D, Q]
    proposal: Tensor | None = None
    number = 0  # of the pass; the same for all samples that are still in work

    def uniform(stage: int, purpose: int) -> Tensor | None:
        return _uniform(noise, temperature, levels, number, stage, purpose)

    while (start := int(final.min())) < num_stages:
        draft_probs = {}
        for stage in range(start, num_draft_stages):
            needs = final <= stage  # [B]
            probs = distribution(draft(indices[..., :stage], stage, stage + 1), temperature)[..., 0, :]
            drawn = draw(probs, uniform(stage, DRAFT))
            indices[..., stage] = torch.where(needs[:, None, None], drawn, indices[..., stage])
            draft_probs[stage] = probs  # [B, T, D, L]
            drafts += needs
        if proposal is None:
            proposal = indices[..., :num_draft_stages].clone()
        proposed += (num_draft_stages - final).clamp_min(0)
        unfinished = final < num_stages
        passes += unfinished

        stop = min(num_stages, max(num_draft_stages, int(final[unfinished].max())) + 1)
        logits = target(indices[..., : stop - 1], start, stop)  # [B, T, D, stop - start, L]
        valid = unfinished  # samples for which the target has seen the true prefix so far
        for stage in range(start, stop):
            here = valid & (final == stage)  # [B]
            target_probs = distribution(logits[..., stage - start, :], temperature)  # [B, T, D, L]
            if stage < num_draft_stages:
                chances = None if temperature == 0 else (uniform(stage, DECISION), uniform(stage, REPLACEMENT))
                tokens, kept = verify(indices[..., stage], draft_probs[stage], target_probs, chances)
                whole = kept.flatten(1).all(dim=1)
                kept_tokens[:, stage] += here * (kept.flatten(1) & tokens_per_stage[:, stage]).sum(dim=1)
                checked_tokens[:, stage] += here * tokens_per_stage[:, stage].sum()
                accepted += here & whole
                valid = valid & (whole | ~here)
            else:
                tokens = draw(target_probs, uniform(stage, TARGET))
                valid = valid & ~here  # nothing was proposed past this stage
            indices[..., stage] = torch.where(here[:, None, None], tokens, indices[..., stage])
            final += here
        if start == 0:  # the first proposal; every sample has a final stage after it
            accept_counts.scatter_(1, accepted[:, None], 1)
        number += 1

    return _result(
        indices,
        passes,
        draft_passes=drafts,
        proposed_stages=proposed,
        accepted_stages=accepted,
        accepted_tokens=(kept_tokens, checked_tokens),
        accept_counts=accept_counts,
        proposal=proposal,
    )
