"""Observations shown to an OpenVLA, computed as far as asked: pictures, vision, layers, head, each when needed.

A pass remembers how far it has come and goes on from there. What surprises first: a part of a pass (`of`) goes on by
itself, but its work is booked in the account of the pass that it is a part of, in the rows that it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from rsd.models.openvla import segments
from rsd.models.openvla.action_heads import num_runs
from rsd.models.openvla.segments import PARALLEL_HEADS, Tensors, given
from rsd.points import HEAD, LAYER, point_name
from rsd.types import Inputs, Observation
from rsd.work import Stopwatch, Work

if TYPE_CHECKING:
    from rsd.models.openvla.base import OpenVLABase

PREPROCESS, BASE_MODEL = "preprocess", "base_model"  # parts of the clock


class OpenVLAPass:
    """See `rsd.types.Pass`.

    Args:
        base: The model.
        observations: What is looked at, or None when `inputs` are there already.
        inputs: What `base.prepare` has made of them.
        account, clock: Where work and time are booked.
        rows: This pass's rows in the account, [B], int64.

    Raises:
        ValueError: there is no row.
    """

    def __init__(
        self,
        base: OpenVLABase,
        observations: Sequence[Observation] | None,
        inputs: Inputs | None,
        *,
        account: Work,
        clock: Stopwatch,
        rows: Tensor,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("a pass of no observations; expected one or more")
        self._base, self._observations, self._inputs = base, observations, inputs
        self._account, self._clock, self._rows = account, clock, rows
        self._sequence: Tensors | None = None  # x, mask, slots, as deep as `_depth`
        self._depth = 0
        self._found: dict[str, Tensor] = {}  # points, and "chunk"

    @classmethod
    def of_observations(cls, base: OpenVLABase, observations: Sequence[Observation]) -> OpenVLAPass:
        """A first look; nothing is prepared yet."""
        return cls(base, observations, None, **_books(base, len(observations)))

    @classmethod
    def of_inputs(cls, base: OpenVLABase, inputs: Inputs) -> OpenVLAPass:
        """A look at what a loader's worker has prepared."""
        looked = cls(base, None, inputs, **_books(base, len(inputs["input_ids"])))
        looked._count("pictures_prepared", len(base.views))
        return looked

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def work(self) -> Work:
        return self._account

    @property
    def clock(self) -> Stopwatch:
        return self._clock

    def at(self, point: str) -> Tensor:
        """States at a point, [B, n, H]; runs what is missing up to there.

        Raises:
            ValueError: the model has no such point.
        """
        points = self._base.spec.points
        if point not in points:
            raise ValueError(f"the base model has no point {point!r}; it has {', '.join(points)}")
        if point not in self._found:
            with self._clock.part(BASE_MODEL), torch.no_grad():
                self._go_to(point)
        return self._found[point]

    def chunk(self) -> Tensor:
        """The model's own chunk, [B, T, A], float32."""
        if "chunk" not in self._found:
            with self._clock.part(BASE_MODEL), torch.no_grad():
                self._finish()
        return self._found["chunk"]

    def of(self, rows: Tensor) -> OpenVLAPass:
        """Some rows, [n] int64, in their order; this very pass where they are all of them, ascending.

        Raises:
            ValueError: there is no row.
        """
        keep = rows.cpu()
        if torch.equal(keep, torch.arange(len(self))):
            return self
        some = OpenVLAPass(
            self._base,
            None if self._observations is None else [self._observations[int(row)] for row in keep],
            None if self._inputs is None else {name: value[keep] for name, value in self._inputs.items()},
            account=self._account,
            clock=self._clock,
            rows=self._rows[keep],
        )
        if self._sequence is not None:
            some._sequence = {name: None if one is None else one[rows] for name, one in self._sequence.items()}
        some._depth = self._depth
        some._found = {name: value[rows] for name, value in self._found.items()}
        return some

    def _count(self, counter: str, amount: int) -> None:
        getattr(self._account, counter)[self._rows] += amount

    def _prepared(self) -> Tensors:
        """The model's inputs on its device."""
        if self._inputs is None:
            assert self._observations is not None
            with self._clock.part(PREPROCESS):
                self._inputs = self._base.prepare_live(self._observations)
            self._count("pictures_prepared", len(self._base.views))
        return self._base.on_device(self._inputs)

    def _saw(self) -> None:
        """Book one look of the vision towers."""
        self._count("vision_calls", 1)
        self._count("visual_tokens", self._base.num_visual_tokens)

    def _go_to(self, point: str) -> None:
        """Run the model up to a point, and keep its states."""
        base, model = self._base, self._base.model
        if base.action_head not in PARALLEL_HEADS:
            self._run_whole()
            return
        last = model.num_layers
        stop = last if point == HEAD else int(point.removeprefix(LAYER))
        if stop < self._depth:  # a point that was passed by; nobody asks in this order twice
            self._restart()
        if self._depth < stop:
            if self._sequence is None:
                prepared = self._prepared()
                self._sequence = base.run(partial(segments.embed, chunk_length=base.chunk_length), prepared)
                if base.selection is not None:
                    self._sequence = base.run(base.selection, {**self._sequence, **segments.told(prepared)})
                self._saw()
            inputs = self._sequence
            outputs = base.run(partial(segments.run_layers, start=self._depth, stop=stop), inputs)
            self._count("base_layers", stop - self._depth)
            self._sequence, self._depth = {**inputs, "x": outputs["x"]}, stop
            self._found[point_name(stop)] = given(outputs, "states")
        if point == HEAD:
            states: Tensors = {"states": self._found[point_name(last)]}
            self._found[point] = given(base.run(partial(segments.read_head), states), "features")

    def _restart(self) -> None:
        """Forget the sequence, so that an earlier layer can be read: costs the layers up to it again."""
        self._sequence, self._depth = None, 0

    def _finish(self) -> None:
        """Run the model to its end, and keep its chunk."""
        base = self._base
        if base.action_head not in PARALLEL_HEADS:
            self._run_whole()
            return
        source = HEAD if base.action_head == "l1" else point_name(base.model.num_layers)
        if source not in self._found:
            self._go_to(source)
        inputs: Tensors = {"features" if source == HEAD else "states": self._found[source]}
        outputs = base.run(partial(segments.read_chunk, chunk_length=base.chunk_length), inputs)
        self._found["chunk"] = given(outputs, "chunk").float()

    def _run_whole(self) -> None:
        """All points and the chunk at once, of a head that runs the language model many times."""
        base = self._base
        whole = partial(segments.run_whole, chunk_length=base.chunk_length, choose=base.choose)
        outputs = base.run(whole, self._prepared())
        self._saw()
        self._count("base_layers", base.model.num_layers * num_runs(base.model, base.chunk_length))
        self._found |= {name: value for name, value in outputs.items() if value is not None}
        self._found["chunk"] = self._found["chunk"].float()


class _Books(TypedDict):
    account: Work
    clock: Stopwatch
    rows: Tensor


def _books(base: OpenVLABase, batch: int) -> _Books:
    """Those of a first look."""
    return {"account": Work.none(batch), "clock": Stopwatch(base.device), "rows": torch.arange(batch)}
