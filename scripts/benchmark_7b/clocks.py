"""Clocks: device and wall time of single calls, several variants in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Call = Callable[[], Tensor]
MATMUL_SIZE = 8192


def summary(values: list[float]) -> dict[str, float]:
    """Milliseconds of all calls → median, tenth and ninetieth percentile."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return {"median": float(middle), "p10": float(low), "p90": float(high), "calls": len(values)}


class Clock:
    """Times one call at a time: CUDA events around it, and the wall clock until the device is idle."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __call__(self, call: Call) -> tuple[float, float]:
        """(device ms, wall ms); on a CPU both are the wall clock's."""
        if not self.cuda:
            started = time.perf_counter()
            call()
            wall = 1000 * (time.perf_counter() - started)
            return wall, wall
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        started = time.perf_counter()
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop), 1000 * (time.perf_counter() - started)


def interleaved(variants: dict[str, Call], clock: Clock, warmup: int, calls: int) -> dict[str, Any]:
    """Time all variants in turn, call by call."""
    for _ in range(warmup):
        for call in variants.values():
            call()
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in variants}
    for _ in range(calls):
        for name, call in variants.items():
            for values, value in zip(times[name], clock(call), strict=True):
                values.append(value)
    return {name: {"device_ms": summary(device), "wall_ms": summary(wall)} for name, (device, wall) in times.items()}


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What the GPU reaches on a large square product, TFLOP/s: the yardstick of the floor."""
    first, second = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=dtype) for _ in range(2))
    times = interleaved({"matmul": lambda: first @ second}, Clock(device), 10, 30)
    return 2 * MATMUL_SIZE**3 / times["matmul"]["device_ms"]["median"] / 1e9
