"""What a training makes of its device: operations a second, and their share of what the card could do (MFU).

The operations of one forward pass are counted where torch runs them; the backward pass counts twice as much, less for
what is frozen. What is computed again for activation checkpointing is not counted, as usual for MFU. What surprises
first: the first steps are left out, and so is the time of validations; a training of fewer steps says nothing.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rsd.processes import say

LEFT_OUT = 3  # steps at the beginning
TERA = 1e12
PEAKS = {  # dense bfloat16 operations a second of a card's tensor cores, by a part of its name; NVIDIA's data sheets
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}


class CountedOperations(TorchDispatchMode):
    """Counts the floating-point operations of what runs inside of it: matrix products, convolutions, attention.

    Attributes:
        flops: So far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


def peak_flops(device: torch.device, precision: str) -> float | None:
    """What a card could do a second at this precision of Lightning's; None where it is not known."""
    if device.type != "cuda" or precision not in ("bf16-mixed", "16-mixed"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


class Throughput(Callback):
    """Prints steps and operations a second when a training ends, and its MFU where the card is known.

    Attributes:
        flops: Operations of a step and process, once they are counted.
        steps_per_s: Once the training has ended; None after too few steps.
    """

    def __init__(self) -> None:
        self.flops: float | None = None
        self.steps_per_s: float | None = None
        self._counter: CountedOperations | None = None
        self._first: tuple[int, float] | None = None  # step and time from which it is measured
        self._left_out_s, self._paused = 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if self.flops is None:
            self._counter = CountedOperations()
            self._counter.__enter__()

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Any) -> None:
        if self._counter is None:
            return
        self._counter.__exit__(None, None, None)
        weights = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        trained = sum(size for size, is_trained in weights if is_trained) / max(1, sum(size for size, _ in weights))
        self.flops = self._counter.flops * (2 + trained) * trainer.accumulate_grad_batches
        self._counter = None

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if self._first is None and trainer.global_step >= self._begun_at + LEFT_OUT:
            self._first = (trainer.global_step, self._now(trainer))

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._begun_at = trainer.global_step

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._first is not None:
            self._paused = self._now(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._first is not None and self._paused:
            self._left_out_s += self._now(trainer) - self._paused

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._first is None or self.flops is None or trainer.global_step == self._first[0]:
            return
        step, begun = self._first
        seconds = self._now(trainer) - begun - self._left_out_s
        self.steps_per_s = (trainer.global_step - step) / max(seconds, 1e-9)
        say(describe(self.steps_per_s, self.flops, trainer.world_size, *_peak_of(trainer)))

    def _now(self, trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        return time.perf_counter()


def _peak_of(trainer: Trainer) -> tuple[float | None, str]:
    device = trainer.strategy.root_device
    peak = peak_flops(device, str(trainer.precision))
    return peak, torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def describe(steps_per_s: float, flops: float, num_processes: int, peak: float | None, card: str) -> str:
    """The line that is printed.

    Args:
        flops: Operations of a step and process.
        peak: Of the card, operations a second; None where it is not known.
    """
    rate = steps_per_s * flops
    line = f"throughput: {steps_per_s:.3g} steps/s, {rate / TERA:.3g} TFLOP/s"
    if num_processes > 1:
        line += f" in each of {num_processes} processes"
    return line + (f", MFU {100 * rate / peak:.3g} % of {peak / TERA:.0f} TFLOP/s ({card})" if peak else f" ({card})")
