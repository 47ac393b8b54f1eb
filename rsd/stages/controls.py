"""Drafts that nobody trained: the floor and the ceiling that a trained one is held against, and what lies between.

`RandomDraft` knows nothing; `oracle` knows what the base model itself would do, and costs what that costs; `MovedOn`
knows what the base model had in mind last, the steps of the last chunk that were not executed, and sees nothing. What
surprises first: none of them says how sure it is, so a gate on likelihood has to be opened (threshold=-inf) to execute
what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsd.errors import SettingError
from rsd.settings import checked
from rsd.stages.base_chunk import BaseChunk, ChunkLogits
from rsd.tokenizer import ActionTokenizer
from rsd.types import CodeShape, Memory, Pass, Request


@dataclass(frozen=True)
class RandomDraft:
    """Binder and StageLogits: logits drawn from each request's seed.

    Attributes:
        code_shape: Of the tokenizer.
        device: Where logits are wanted.
        seeds: Of the requests that it is bound to.
    """

    code_shape: CodeShape
    device: torch.device
    seeds: tuple[int, ...] = ()

    def bind(self, looked: Pass, requests: Sequence[Request]) -> RandomDraft:
        return RandomDraft(self.code_shape, self.device, tuple(request.seed for request in requests))

    def of(self, rows: Tensor) -> RandomDraft:
        return RandomDraft(self.code_shape, self.device, tuple(self.seeds[row] for row in rows.tolist()))

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        """[B, T, D, stop - start, L]; what is known makes no difference."""
        levels = torch.tensor(self.code_shape.levels)[..., start:stop]  # [T, D, n]
        rows = []
        for seed in self.seeds:
            stages = [
                torch.rand(*levels.shape[:2], self.code_shape.num_levels, generator=_generator(seed, stage))
                for stage in range(start, stop)
            ]
            rows.append(torch.stack(stages, dim=2))  # [T, D, n, L]
        missing = torch.arange(self.code_shape.num_levels) >= levels[..., None]
        return torch.stack(rows).masked_fill(missing, -torch.inf).to(self.device)


@dataclass(frozen=True)
class MovedOn:
    """Binder and StageLogits: what is left of each episode's last chunk, its last action repeated behind it.

    Attributes:
        tokenizer: On its device.
        memories: Of the requests that it is bound to.
    """

    tokenizer: ActionTokenizer
    memories: tuple[Memory | None, ...] = ()

    def bind(self, looked: Pass | None, requests: Sequence[Request]) -> MovedOn:
        return MovedOn(self.tokenizer, tuple(request.memory for request in requests))

    def of(self, rows: Tensor) -> MovedOn:
        return MovedOn(self.tokenizer, tuple(self.memories[row] for row in rows.tolist()))

    def __call__(self, known: Tensor, start: int, stop: int) -> Tensor:
        """[B, T, D, stop - start, L].

        Raises:
            SettingError: there is no last chunk, or less is left of it than was executed.
        """
        chunks = torch.stack([_moved_on(memory) for memory in self.memories]).to(known.device)  # [B, T, A]
        return ChunkLogits(self.tokenizer, chunks)(known, start, stop)


def _moved_on(memory: Memory | None) -> Tensor:
    """[T, A], float32."""
    if memory is None:
        raise SettingError("draft=moved_on goes on with the last chunk, and there is none yet; use decoding=temporal")
    length, over = len(memory.chunk), memory.num_executed
    if length - over < over:
        raise SettingError(
            f"draft=moved_on goes on with the last chunk, and of {length} actions {over} are over, so "
            f"{length - over} are left where {over} are wanted; use a policy with chunk={2 * over}, num_open_loop_steps={length // 2}, and "
            "decoding.decode.max_unverified=2"
        )
    left = torch.from_numpy(memory.chunk[over:])
    return torch.cat([left, left[-1:].expand(over, -1)])


def _generator(seed: int, stage: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed + stage * 0x9E3779B97F4A7C15) % 2**63)


@checked
def refuse_training(name: str, **_: object) -> None:
    """Raise SettingError: a control has nothing to train."""
    raise SettingError(f"draft={name} is a control, and there is nothing to train; train draft=early or draft=micro")


def random(tokenizer: ActionTokenizer) -> RandomDraft:
    """The floor; conf/draft/random.yaml."""
    return RandomDraft(tokenizer.code_shape, tokenizer.quantizer.levels.device)


def oracle(tokenizer: ActionTokenizer) -> BaseChunk:
    """The ceiling; conf/draft/oracle.yaml."""
    return BaseChunk(tokenizer)


def moved_on(tokenizer: ActionTokenizer) -> MovedOn:
    """The last chunk, moved on; conf/draft/moved_on.yaml."""
    return MovedOn(tokenizer)
