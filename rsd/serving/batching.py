"""One policy for many threads: what waits while it predicts is predicted together in the next call.

What surprises first: nobody waits for company. A client alone gets a batch of one at once, so its actions are those of
`eval.py`; in a larger batch the last bits of a number may differ, as its shapes do, and max_batch=1 keeps them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rsd.settings import Count, checked
from rsd.types import Chunk, Policy, ReadsInstructions, Request

MAX_KNOWN = 1000  # instructions that are remembered as understood


@dataclass
class _Asked:
    requests: Sequence[Request]
    answer: Future[list[Chunk]] = field(default_factory=Future)


class Batched:
    """A policy that any thread may ask; all its calls come from one thread of its own.

    Args:
        policy: What predicts.
        max_batch: Observations in one call, where several wait.

    Attributes:
        num_open_loop_steps: The policy's.
        last_call: Of the last prediction: "batch" (observations), "wall_ms", "latency_ms" by part, and "at" (seconds
            since 1970); None before the first.
    """

    @checked
    def __init__(self, policy: Policy, *, max_batch: Count) -> None:
        self._policy, self._max_batch = policy, max_batch
        self.num_open_loop_steps = policy.num_open_loop_steps
        self._waiting: deque[_Asked] = deque()
        self._known: deque[str] = deque(maxlen=MAX_KNOWN)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self.last_call: dict[str, Any] | None = None

    def check_instructions(self, instructions: Sequence[str], where: Mapping[str, str] | None = None) -> None:
        """See `rsd.types.ReadsInstructions`; a policy that reads none understands all."""
        if isinstance(self._policy, ReadsInstructions) and (
            new := [one for one in instructions if one not in self._known]
        ):
            self._thread.submit(self._policy.check_instructions, new, where).result()
            self._known.extend(new)

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """See `rsd.types.Policy`; waits for its turn."""
        asked = _Asked(requests)
        self._waiting.append(asked)
        self._thread.submit(self._answer_waiting)  # finds nothing to do where an earlier one took this along
        return asked.answer.result()

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self._thread.shutdown()

    def _answer_waiting(self) -> None:
        batch: list[_Asked] = []
        while self._waiting and (
            not batch or sum(len(one.requests) for one in [*batch, self._waiting[0]]) <= self._max_batch
        ):
            batch.append(self._waiting.popleft())
        if batch:
            self._answer(batch)

    def _answer(self, batch: list[_Asked]) -> None:
        requests = [request for asked in batch for request in asked.requests]
        start = time.perf_counter()
        try:
            chunks = self._policy.predict(requests)
            if len(chunks) != len(requests):
                raise RuntimeError(f"the policy gave {len(chunks)} chunks for {len(requests)} observations")
        except Exception as error:  # noqa: BLE001  whatever a policy raises belongs to who asked
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                for asked in batch:  # only whose observation it was is to hear of it
                    self._answer([asked])
            return
        self.last_call = {
            "batch": len(requests),
            "wall_ms": round(1000 * (time.perf_counter() - start), 3),
            "latency_ms": {part: round(value, 3) for part, value in chunks[0].latency_ms.items()} if chunks else {},
            "at": time.time(),
        }
        for asked in batch:
            asked.answer.set_result(chunks[: len(asked.requests)])
            del chunks[: len(asked.requests)]
