"""One forward pass, whole and in parts: eager, as CUDA graphs, and as graphs of compiled blocks.

What is timed is also compared. The whole pass is the object that policy and caching run (rsd.models.openvla.execution),
with its copies in and out; only the parts are captured here.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmark_7b.cases import CASES, make_base, model_inputs, sequence_length, without_proprio
from benchmark_7b.clocks import Call, Clock, interleaved, matmul_tflops
from rsd.models.openvla import segments
from rsd.models.openvla.canaries import random_observation
from rsd.models.openvla.execution import CAPTURED_LIMIT, CudaCapture, Graphs, deviation, make_run
from rsd.models.openvla.model import OpenVLAOFT, select
from rsd.models.openvla.segments import Run

COMPILED_FACTOR = 2.0  # its actions may be this many times as far from the eager ones as those are from float32's


def part_calls(model: OpenVLAOFT, inputs: dict[str, Tensor]) -> dict[str, Call]:
    """A call for each part of one forward pass, on fixed inputs, and for the whole of it."""
    last = model.llm_config.num_hidden_layers
    arguments = (inputs["input_ids"], None, inputs["action_start"], 8, inputs.get("proprio"))
    features = model.vision_backbone(inputs["pixel_values"])
    patches = model.projector(features)

    def language() -> Tensor:
        sequence = model.assemble(patches, *arguments)
        return select(model.layer_states(sequence.embeds, None, {last})[last], sequence.slots)

    states = language()
    whole: dict[str, Any] = {**inputs, "attention_mask": None, "chunk_length": 8, "layers": []}
    return {
        "vision": lambda: model.vision_backbone(inputs["pixel_values"]),
        "projector": lambda: model.projector(features),
        "llm": language,
        "head": lambda: model.action_head(states),
        "whole": lambda: model(**whole)[1],
    }


def forward_tflop(model: OpenVLAOFT, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Multiply-adds of the matrix products of one forward pass, counted by torch, in TFLOP."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = {}
    for name, call in part_calls(model, inputs).items():
        with FlopCounterMode(display=False) as counter:
            call()
        counts[name] = counter.get_total_flops() / 1e12
    return counts


def ways_of(model: OpenVLAOFT, inputs: dict[str, Tensor], executions: tuple[str, ...]) -> dict[str, dict[str, Call]]:
    """Execution → part → call; the whole pass is what `execution` means to policy and caching."""
    result = {"eager": part_calls(model, inputs)}
    for execution in executions:
        run = make_run(model, execution)
        assert isinstance(run, Graphs)
        parts = part_calls(run.twin, inputs)
        result[execution] = {name: _captured(call, model) for name, call in parts.items() if name != "whole"}
        result[execution]["whole"] = partial(_whole, run, inputs, model.num_layers)
    return result


def _whole(run: Run, inputs: dict[str, Tensor], num_layers: int) -> Tensor:
    """The segments of a pass one after the other, as policy and caching run them, to the chunk."""
    sequence = run(partial(segments.embed, chunk_length=8), {**inputs, "attention_mask": None})
    states = run(partial(segments.run_layers, start=0, stop=num_layers), sequence)["states"]
    features = run(partial(segments.read_head), {"states": states})
    return segments.given(run(partial(segments.read_chunk, chunk_length=8), features), "chunk")


def _captured(call: Call, model: OpenVLAOFT) -> Call:
    replay = CudaCapture(model.projector.fc1.weight.device)(lambda: {"result": call()})
    return lambda: replay()["result"]


@torch.no_grad()
def measure_forward(options: argparse.Namespace, model: OpenVLAOFT, device: torch.device) -> dict[str, Any]:
    """Times of all ways, their agreement with eager, and what takes them; "disagreements" lists what is too far off."""
    clock, cuda = Clock(device), device.type == "cuda"
    executions = () if not cuda else ("captured",) if options.no_compile else ("captured", "compiled")
    result: dict[str, Any] = {"matmul_tflops": matmul_tflops(device, torch.bfloat16) if cuda else None}
    exact = copy.deepcopy(model).float() if cuda else model
    for case, (views, use_proprio) in CASES.items():
        network = model if use_proprio else without_proprio(model)
        base = make_base(network, views)
        observation = [random_observation(base, 0)]
        prepare: dict[str, Call] = {"preprocess": lambda: base.prepare(observation)["pixel_values"]}  # noqa: B023
        inputs = model_inputs(base, observation)
        entry: dict[str, Any] = {"tokens": sequence_length(network, inputs), "tflop": forward_tflop(network, inputs)}
        entry["preprocess"] = interleaved(prepare, Clock(torch.device("cpu")), options.warmup, options.calls)
        ways = ways_of(network, inputs, executions)
        precise = part_calls(exact if use_proprio else without_proprio(exact), _wide(inputs))["whole"]()
        entry["bfloat16_from_float32"] = deviation(precise, ways["eager"]["whole"]())
        limits = {"compiled": COMPILED_FACTOR * entry["bfloat16_from_float32"]["max_rel"]}
        entry["agreement"] = {}
        for part in ways["eager"]:
            variants = {name: calls[part] for name, calls in ways.items()}
            entry[part] = interleaved(variants, clock, options.warmup, options.calls)
            expected = variants["eager"]().clone()  # after the timing, on the timed inputs
            others = {name: deviation(expected, call().clone()) for name, call in variants.items() if name != "eager"}
            entry["agreement"][part] = others
            for name, found in others.items():
                checked = name == "captured" or part == "whole"
                if checked and not found["max_rel"] <= limits.get(name, CAPTURED_LIMIT):
                    result.setdefault("disagreements", []).append(f"{case}, {part}, {name}: {found}")
        if result["matmul_tflops"]:
            entry["floor_ms"] = {name: 1000 * tflop / result["matmul_tflops"] for name, tflop in entry["tflop"].items()}
        if cuda:
            entry["kernels"] = {name: kernels(ways[name]["whole"]) for name in executions}
        result[case] = entry
    return result


def _wide(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}


def kernels(call: Call, count: int = 20) -> list[dict[str, Any]]:
    """The kernels that take most of one call's device time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:count]
    return [
        {"kernel": event.key[:120], "calls": event.count, "ms": event.self_device_time_total / 1000} for event in events
    ]
