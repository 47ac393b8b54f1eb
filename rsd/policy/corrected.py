"""A policy whose late chunks are corrected when they come: async=corrected.

New chunks are those of the policy inside. What surprises first: the correction has eyes of its own, which see neither
the base model nor its chunk's picture, and what it costs is counted as "corrections" and not as the base model's work.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rsd.checkpoint import CheckpointError
from rsd.clock import Clock
from rsd.points import HEAD
from rsd.policy.assemble import load_eyes
from rsd.policy.contract import IOContract, PolicyError
from rsd.policy.policy import VLAPolicy
from rsd.queue import NO_DELAY, Queue
from rsd.stages.correction import KIND, PRODUCE, CorrectionHead, load_correction, moved_on
from rsd.stages.files import EYES
from rsd.types import BaseModel, Chunk, InstructionError, Memory, Request

CORRECTIONS = "corrections"  # counter of work


class CorrectedPolicy:
    """A policy, and the correction of its chunks; see `rsd.types.Corrects`.

    Args:
        policy: Makes the chunks.
        eyes: The correction's own base model.
        head: Says what to add.
        delay: Control steps that it was loaded for.
    """

    def __init__(self, policy: VLAPolicy, eyes: BaseModel, head: CorrectionHead, *, delay: int) -> None:
        self.policy, self.eyes, self.head, self.delay = policy, eyes, head, delay
        self.num_open_loop_steps = policy.num_open_loop_steps

    @property
    def contract(self) -> IOContract:
        """What this policy needs and gives."""
        return self.policy.contract

    def check_instructions(self, instructions: Sequence[str], where: Mapping[str, str] | None = None) -> None:
        """See `rsd.types.ReadsInstructions`; the eyes have words of their own.

        Raises:
            InstructionError: the policy, or its correction, does not understand one.
        """
        self.policy.check_instructions(instructions, where)
        try:
            self.eyes.check_instructions(instructions, where)  # type: ignore[attr-defined]
        except InstructionError as error:
            raise InstructionError(
                f"the correction was trained on data without these tasks; train it on some with {PRODUCE}, or use "
                f"async=naive or async=none; of its own small base model: {error}"
            ) from None

    def check_delay(self, delay: int) -> None:
        """See `rsd.types.Corrects`.

        Raises:
            PolicyError: it was loaded for another one.
        """
        if delay != self.delay:
            raise PolicyError(f"the correction was loaded for delay={self.delay}, and the clock has delay={delay}")

    def queue(self, seed: int = 0, clock: Clock = NO_DELAY) -> Queue:
        """See `VLAPolicy.queue`."""
        clock.check(self.policy.base.spec.chunk_length)
        if clock.corrects and clock.delay:
            self.check_delay(clock.delay)
        return Queue(self, seed=seed, limits=self.policy.base.spec.space.limits, clock=clock)

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """One answer a request: a chunk, or what is left of one, corrected.

        Raises:
            PolicyError: the models produced a value that is not finite.
        """
        asked = [request for request in requests if not request.corrects]
        late = [request for request in requests if request.corrects]
        chunks, corrected = iter(self.policy.predict(asked)), iter(self._correct(late) if late else [])
        return [next(corrected if request.corrects else chunks) for request in requests]

    @torch.inference_mode()
    def _correct(self, requests: Sequence[Request]) -> list[Chunk]:
        start = time.perf_counter()
        memories = [_memory(request) for request in requests]
        device = self.policy.device
        # at the size of its pictures nothing is left of a JPEG round trip
        seen = [dataclasses.replace(request.observation, stored=True) for request in requests]
        states = self.eyes.look(seen).at(HEAD).float()  # [B, T, H]
        chunks = torch.stack([torch.from_numpy(memory.chunk) for memory in memories]).to(device)  # [B, T, A]
        delay = torch.tensor([memory.num_executed for memory in memories], device=device)
        left = moved_on(chunks, delay)
        added = self.head(states, left, delay)
        if not bool(added.isfinite().all()):
            raise PolicyError(f"the correction produced NaN or infinite actions; train it again with {PRODUCE}")
        actions = self.policy.to_robot(left + added)  # [B, T, A]
        total = 1000 * (time.perf_counter() - start)
        num_left = [len(memory.chunk) - memory.num_executed for memory in memories]
        return [
            Chunk(
                actions=actions[row, :count],
                num_steps=count,
                work={CORRECTIONS: 1},
                latency_ms={KIND: total, "total": total},
                model_ms=total / len(requests),
            )
            for row, count in enumerate(num_left)
        ]


def _memory(request: Request) -> Memory:
    memory = request.memory
    if memory is None or not 0 < memory.num_executed < len(memory.chunk):
        raise PolicyError("a request that corrects needs the memory of a chunk of which something is over and left")
    return memory


def load_corrected(policy: VLAPolicy, folder: Path, *, delay: int) -> CorrectedPolicy:
    """A policy with its correction.

    Args:
        folder: Of the correction, as phase=correction exports it.
        delay: Control steps that chunks are late.

    Raises:
        CheckpointError: it is missing, damaged, or was made for another Space, base model, chunk or delay.
    """
    folder, spec, device = Path(folder), policy.base.spec, policy.device
    eyes = load_eyes(folder, spec, device=str(device), kind=KIND, produce=PRODUCE, run_as=policy.base)
    if eyes is None:
        missing = folder / EYES if folder.is_dir() else folder
        raise CheckpointError(
            f"no correction: {missing} does not exist; make it with: {PRODUCE}, or use async=naive or async=none"
        )
    head = load_correction(folder, base=spec, eyes=eyes.spec, delay=delay)
    return CorrectedPolicy(policy, eyes, head.to(device), delay=delay)
