"""A base model and a way of decoding what it sees.

    requests → base.look → Pass (lazy) ─ target, draft ◄─ decoding asks, and stops when it knows enough
             → Code → tokenizer.decode → Space.to_robot → chunks

What surprises first: `predict` runs no model. It hands the decoding two models that run what they are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rsd.clock import Clock
from rsd.decoding import Anytime, Decoding, Noise
from rsd.decoding.anytime import check_anytime
from rsd.decoding.horizon import check_horizon
from rsd.decoding.past import Past
from rsd.policy.contract import IOContract, PolicyError
from rsd.queue import NO_DELAY, Queue
from rsd.stages import Absent, Binder
from rsd.tokenizer import ActionTokenizer
from rsd.types import IN_NUMBERS, BaseModel, Chunk, Code, Memory, Pass, ReadsInstructions, Request
from rsd.work import Counts


@dataclass(frozen=True)
class Tokens:
    """What a decoding that asks somebody needs beside the base model; a role that it does not ask may be `Absent`.

    Where the draft says numbers, and nobody else is asked, there is no tokenizer.
    """

    tokenizer: ActionTokenizer | None
    target: Binder
    draft: Binder


NOBODY = Absent("target"), Absent("draft")


class VLAPolicy:
    """A policy of a base model, see `rsd.types.Policy`.

    Args:
        base: The base model.
        decoding: How chunks are made.
        tokens: Tokenizer, target and draft; None where the base model's own chunk is executed.
        num_open_loop_steps: Actions of a chunk to execute, 1..T.
        device: Where the models are.

    Raises:
        PolicyError: the tokenizer's chunk is not the base model's, or num_open_loop_steps is out of range.
        SettingError: the decoding executes more steps than a chunk has, or has a budget that lets it execute none of
            the target's.
    """

    def __init__(
        self,
        *,
        base: BaseModel,
        decoding: Decoding,
        tokens: Tokens | None,
        num_open_loop_steps: int,
        device: torch.device,
    ) -> None:
        spec = base.spec
        if type(num_open_loop_steps) is not int or not 1 <= num_open_loop_steps <= spec.chunk_length:
            raise PolicyError(f"num_open_loop_steps {num_open_loop_steps}, expected 1..{spec.chunk_length}")
        check_horizon(decoding, spec.chunk_length)
        check_anytime(decoding, spec.chunk_length, num_open_loop_steps)
        self.base, self.decoding, self.tokens = base, decoding, tokens
        self.num_open_loop_steps = num_open_loop_steps
        self.device = device
        self._levels = torch.zeros(spec.chunk_length, 0, 0, dtype=torch.long, device=device)  # [T, D, Q]
        self._tokenizer = None if tokens is None else tokens.tokenizer
        if self._tokenizer is not None:
            code = self._tokenizer.code_shape
            if (code.chunk_length, code.action_dim) != (spec.chunk_length, spec.action_dim):
                raise PolicyError(
                    f"the tokenizer's chunk is {(code.chunk_length, code.action_dim)}, the base model's "
                    f"({spec.chunk_length}, {spec.action_dim}); set chunk to the length that both were trained with"
                )
            self._levels = torch.tensor(code.levels, device=device)
            bounds = [self._tokenizer.action_bound(depth).amax(dim=0) for depth in range(1, code.num_stages + 1)]
            self._bounds = torch.stack(
                [torch.zeros_like(bounds[0]), *bounds]
            )  # [Q + 1, A]  nothing is left out of l1's

    @property
    def contract(self) -> IOContract:
        """What this policy needs and gives."""
        spec = self.base.spec
        return IOContract(
            views=spec.views,
            proprio_dim=spec.proprio_dim,
            action_dim=spec.action_dim,
            chunk_length=spec.chunk_length,
            decoding=type(self.decoding).__name__,
            action_head=spec.action_head,
            unnorm_key=spec.space.name,
            visual_tokens=spec.visual_tokens,
        )

    def queue(self, seed: int = 0, clock: Clock = NO_DELAY) -> Queue:
        """The actions of one episode, one by one: `policy.queue(seed=0).next(observation)`.

        Raises:
            DelayError: the clock leaves nothing of a chunk.
            PolicyError: it is one that corrects.
        """
        clock.check(self.base.spec.chunk_length)
        if clock.corrects and clock.delay:
            raise PolicyError("async=corrected needs the policy's correction; see rsd.policy.load_corrected")
        return Queue(self, seed=seed, limits=self.base.spec.space.limits, clock=clock)

    def check_instructions(self, instructions: Sequence[str], where: Mapping[str, str] | None = None) -> None:
        """See `rsd.types.ReadsInstructions`."""
        if isinstance(self.base, ReadsInstructions):
            self.base.check_instructions(instructions, where)

    @torch.inference_mode()
    def predict(self, requests: Sequence[Request], act: Callable[[np.ndarray], None] | None = None) -> list[Chunk]:
        """One chunk a request, all from one pass of the base model; of no requests, none.

        Args:
            act: With `Anytime`, told what to execute until the chunks are there, robot commands [B, T, A], before the
                target is asked anything: a robot begins with it, and goes on with the chunk that is returned.

        Raises:
            PolicyError: the models produced a value that is not finite.
            NotFiniteError: a part said NaN where the decoding reads numbers.
        """
        if not requests:
            return []
        if any(request.corrects for request in requests):
            raise PolicyError("a request that corrects came to a policy without a correction")
        start = time.perf_counter()
        looked = self.base.look([request.observation for request in requests])
        clock = looked.clock
        roles = NOBODY if self.tokens is None else (self.tokens.target, self.tokens.draft)
        target, draft = (role.bind(looked, requests) for role in roles)
        with clock.part("acceptance"):  # what the decoding takes beside the models that it asks
            noise = Noise([request.seed for request in requests], self.device)
            past = Past.remembered([request.memory for request in requests], self.device)
            if act is not None and isinstance(self.decoding, Anytime):
                first = self.decoding.first(draft, self._levels, noise)
                act(self.to_robot(self._decode(first.code, looked)))
                code = self.decoding.rest(first, target, draft, self._levels, noise, past)
            else:
                code = self.decoding.run(target, draft, self._levels, noise, past)
        normalized = self._decode(code, looked)  # [B, T, A]
        if code.ahead is not None:
            normalized = self._with_first_steps(code, looked, normalized, start)
        with clock.part("unnormalize"):
            actions = self.to_robot(normalized)
        stages = code.depth.clamp_min(0)  # [B]  IN_NUMBERS is none
        if self._tokenizer is not None:
            code.bound = self._bound(code, stages)
        work = looked.work + code.work
        num_steps = [self.num_open_loop_steps] * len(requests)
        if code.num_steps is not None:
            num_steps = [count or self.num_open_loop_steps for count in code.num_steps.tolist()]
        latency_ms = {**clock.elapsed_ms, "total": 1000 * (time.perf_counter() - start)}
        return [
            Chunk(
                actions=held(actions[row], num_steps[row]),
                num_steps=num_steps[row],
                work=work.row(row),
                latency_ms=dict(latency_ms),
                model_ms=latency_ms["total"] / len(requests),
                depth=None if self._tokenizer is None else int(stages[row]),
                bound=None if code.bound is None else _certified(code.bound[row]),
                memory=Memory(
                    normalized[row].float().cpu().numpy(), num_unverified=_unverified(request.memory, work.row(row))
                ),
                draft_actions=self._proposal(code, row) if request.explain else None,
            )
            for row, request in enumerate(requests)
        ]

    def _decode(self, code: Code, looked: Pass) -> Tensor:
        """Chunks of the code, or the base model's own where it says so; model space, [B, T, A]."""
        parts: dict[int, Tensor] = {}
        for depth in sorted(set(code.depth.tolist())):
            rows = (code.depth == depth).nonzero()[:, 0]
            if depth == 0:
                parts[depth] = _finite(looked.of(rows).chunk(), "the base model")
            elif depth == IN_NUMBERS:
                assert code.chunk is not None
                parts[depth] = _finite(code.chunk[rows], "the draft")
            elif self._tokenizer is None:
                raise PolicyError(f"decoding {type(self.decoding).__name__} gave tokens, and there is no tokenizer")
            else:
                with looked.clock.part("tokenizer"):
                    indices = code.indices[..., :depth]
                    own = indices if len(rows) == len(looked) else indices[rows]
                    parts[depth] = _finite(self._tokenizer.decode(own), "the tokenizer")
        if len(parts) == 1:
            return next(iter(parts.values()))
        first = next(iter(parts.values()))
        chunks = first.new_empty(len(looked), *first.shape[1:])
        for depth, part in parts.items():
            chunks[code.depth == depth] = part
        return chunks

    def _with_first_steps(self, code: Code, looked: Pass, rest: Tensor, start: float) -> Tensor:
        """The chunk [B, T, A], with the draft's steps where it was not known in time; they are charged to `code`."""
        assert code.ahead is not None
        elapsed_ms, draft_ms = (1000 * (one - start) for one in (time.perf_counter(), code.ahead.ready_s))
        drafted, late = code.ahead.steps(rest.shape[1], elapsed_ms, draft_ms)  # [B] each
        code.work.drafted_steps += drafted
        code.work.late_steps += late
        is_drafted = torch.arange(rest.shape[1], device=rest.device) < drafted[:, None]  # [B, T]
        return torch.where(is_drafted[..., None], self._decode(code.ahead.code, looked), rest)

    def _bound(self, code: Code, stages: Tensor) -> Tensor:
        """`Code.bound` of every row, [B, A]: what the decoding says, else what is beyond its stages [B] can make."""
        bound = self._bounds[stages]  # the tail bound
        if code.bound is not None:
            bound = torch.where(code.bound.isnan(), bound, code.bound)
        if code.ahead is not None:
            drafted = self._bounds[code.ahead.code.depth].where(code.work.drafted_steps[:, None] > 0, 0.0)
            bound = torch.maximum(bound, drafted)
        return bound

    def to_robot(self, normalized: Tensor) -> np.ndarray:
        """Model space [..., T, A] → robot commands, float64."""
        space = self.base.spec.space
        actions = space.to_robot(normalized.float().cpu().numpy())
        if not np.isfinite(actions).all():
            raise PolicyError(f"the statistics {space.name!r} produced NaN or infinite actions; check their bounds")
        return actions

    def _proposal(self, code: Code, row: int) -> np.ndarray | None:
        """What the draft's first proposal alone decodes to, [T, A]; for people, and not part of the time."""
        if code.proposal is None or self._tokenizer is None:
            return None
        decoded = self._tokenizer.decode(code.proposal[row : row + 1])
        return self.to_robot(_finite(decoded, "the tokenizer"))[0]


def _finite(actions: Tensor, part: str) -> Tensor:
    """Normalised actions of this part of the policy, checked."""
    if not bool(actions.isfinite().all()):
        raise PolicyError(f"{part} produced NaN or infinite actions; check its weights and dtype")
    return actions


def _certified(bound: Tensor) -> np.ndarray | None:
    """A row's bound [A]; None where it is infinite."""
    return bound.float().cpu().numpy() if bool(bound.isfinite().all()) else None


def held(actions: np.ndarray, num_steps: int) -> np.ndarray:
    """Actions [T, A], with the last one repeated where more are to be executed: [max(T, num_steps), A]."""
    more = max(0, num_steps - len(actions))
    return np.concatenate([actions, np.repeat(actions[-1:], more, axis=0)]) if more else actions


def _unverified(memory: Memory | None, work: Counts) -> int:
    """Chunks in a row, the new one the last, that were decided before the base model's end."""
    if not work["early_exits"]:
        return 0
    return 1 + (0 if memory is None else memory.num_unverified)
