"""The account of a prediction: what was run for each observation, counted where it is run, and the time it took.

What surprises first: a batch shares a call, yet every row is charged for what was run for it. `visual_tokens` of a row
are its own, and a layer that a batch of four goes through counts one for each of the four.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor  # who adds up counters of finished chunks needs no torch

Counts = dict[str, int | list[int]]  # one row as JSON
STAGE_COUNTERS = ("proposed_tokens", "checked_tokens", "accepted_tokens")
HISTOGRAM = "accept_counts"


@dataclass
class Work:
    """Counters of a batch, int64; [B] each, or [B, Q] and [B, Q + 1] where a policy has Q stages, [B, 0] where none.

    Attributes:
        pictures_prepared: Pictures that went through JPEG, crop and resize.
        vision_calls: Times that the vision towers saw the observation's pictures.
        visual_tokens: Picture tokens handed to the language model.
        base_layers: Layers of the base model's language model that the observation went through.
        draft_passes, target_passes: Calls of the draft and of the target.
        early_exits: 1 where the chunk was decided before the base model's end.
        drafted_steps: Steps of the chunk that are the draft's, since they fell due before the target was finished.
        late_steps: Those of them that fell due before even the draft was known: what a robot has to wait for.
        proposed_stages: Stages that the draft proposed to a target; those behind a wrong one count too, although they
            are void, and count again when they are proposed anew.
        accepted_stages: Those of them that were accepted whole.
        proposed_tokens: Their tokens, by stage, [B, Q].
        checked_tokens: Tokens that were checked under a true prefix, [B, Q].
        accepted_tokens: Those of them that were kept, [B, Q].
        accept_counts: Histogram of the first proposal's accepted leading stages, [B, Q + 1]: one entry of a row is 1,
            all are 0 when nothing was proposed. Sum over chunks to get the run's histogram.
    """

    pictures_prepared: Tensor
    vision_calls: Tensor
    visual_tokens: Tensor
    base_layers: Tensor
    draft_passes: Tensor
    target_passes: Tensor
    early_exits: Tensor
    drafted_steps: Tensor
    late_steps: Tensor
    proposed_stages: Tensor
    accepted_stages: Tensor
    proposed_tokens: Tensor
    checked_tokens: Tensor
    accepted_tokens: Tensor
    accept_counts: Tensor

    @classmethod
    def none(cls, batch: int, num_stages: int = 0, device: torch.device | str = "cpu") -> Work:
        """Nothing done yet for `batch` rows."""
        import torch

        widths = dict.fromkeys(STAGE_COUNTERS, num_stages) | {HISTOGRAM: num_stages + 1 if num_stages else 0}
        shapes = {one.name: (batch, widths[one.name]) if one.name in widths else (batch,) for one in fields(cls)}
        return cls(**{name: torch.zeros(shape, dtype=torch.long, device=device) for name, shape in shapes.items()})

    def __len__(self) -> int:
        return len(self.base_layers)

    def __add__(self, other: Work) -> Work:
        """Row by row; counters by stage of one that has no stages are those of the other."""
        return Work(**{one.name: _sum(getattr(self, one.name), getattr(other, one.name)) for one in fields(Work)})

    def add_rows(self, rows: Tensor, other: Work) -> None:
        """Charge these rows, [n] int64, with what was done for them alone; `other` has n rows, and no stages or ours.

        Raises:
            ValueError: `other` counts another number of stages.
        """
        pairs = [(one.name, getattr(self, one.name), getattr(other, one.name)) for one in fields(Work)]
        pairs = [(name, counter, more) for name, counter, more in pairs if more.shape[-1] > 0]
        for name, counter, more in pairs:
            if more.shape[1:] != counter.shape[1:]:
                raise ValueError(f"{name} of {list(more.shape)} cannot be added to rows of {list(counter.shape)}")
        for _, counter, more in pairs:
            counter[rows.to(counter.device)] += more.to(counter.device)

    def row(self, index: int) -> Counts:
        """One observation's counters in JSON types."""
        return {one.name: getattr(self, one.name)[index].tolist() for one in fields(Work)}


def _sum(left: Tensor, right: Tensor) -> Tensor:
    right = right.to(left.device)
    if left.shape != right.shape and 0 in (left.shape[-1], right.shape[-1]):
        return left if right.shape[-1] == 0 else right
    return left + right


def add_counts(left: Mapping[str, int | list[int]], right: Mapping[str, int | list[int]]) -> Counts:
    """Sum of two rows; numbers add, lists add entry by entry, a name on one side only is kept.

    Raises:
        ValueError: a list has another length on the other side.
    """
    total: Counts = dict(left)
    for name, value in right.items():
        before = total.get(name)
        if before is None:
            total[name] = value
        elif isinstance(before, list) or isinstance(value, list):
            if not (isinstance(before, list) and isinstance(value, list) and len(before) == len(value)):
                raise ValueError(f"counter {name!r} is {value}, expected as many entries as in {before}")
            total[name] = [a + b for a, b in zip(before, value, strict=True)]
        else:
            total[name] = before + value
    return total


class Stopwatch:
    """Milliseconds by named part. A part inside another stops the outer one's clock, so that parts add up to the whole.

    It waits for the device where a part begins and ends: what a part has started is that part's time.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.elapsed_ms: dict[str, float] = {}
        self._device = device if device is not None and device.type == "cuda" else None
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Book the time of the body under `name`, less that of the parts inside it."""
        self._book()
        self._running.append(name)
        try:
            yield
        finally:
            self._book()
            self._running.pop()

    def _book(self) -> None:
        if self._device is not None:
            import torch

            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.elapsed_ms[name] = self.elapsed_ms.get(name, 0.0) + 1000 * (now - self._since)
        self._since = now
