"""How a loaded base model is run: eagerly, as CUDA graphs, as graphs of compiled blocks, or of eight-bit ones (fp8).

At batch 1 a GPU waits longer for the next kernel of an OpenVLA to be launched than it computes. A CUDA graph launches
the kernels of a whole segment (segments.py) at once. Only action heads of one parallel pass can be captured.

What surprises first: a graph is bound to addresses and shapes. There is one graph per segment and *signature* (batch
size, prompt length, pads or none), made when the signature is first seen, which takes a fraction of a second (compiled:
minutes, once a signature and process); and each new graph is held to the eager model on its first inputs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from rsd.errors import RSDError
from rsd.models.openvla import segments
from rsd.models.openvla.compilation import compiled_twin
from rsd.models.openvla.fp8 import CAPABILITY, Fp8
from rsd.models.openvla.model import OpenVLAOFT
from rsd.models.openvla.segments import PARALLEL_HEADS, Eager, Run, Tensors, given

Capture = Callable[[Callable[[], Tensors]], Callable[[], Tensors]]

EXECUTIONS = ("eager", "captured", "compiled", "fp8")
MAX_GRAPHS = 96  # segments x prompt lengths x batch sizes; each keeps inputs and outputs, what lies between is shared
WARMUP_CALLS = 3  # libraries allocate and choose kernels in the first ones
# Largest accepted deviation from eager, in parts of an output's largest value. Capturing changes no kernel; compiling
# rounds elsewhere: at 7B shapes actions move by 0.057 in bfloat16, and bfloat16 itself moves them by 0.044
CAPTURED_LIMIT = 0.01
COMPILED_LIMITS = {torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.15}


class ExecutionError(RSDError, RuntimeError):
    """A model cannot be run in the wanted way, or its graph does not give what the model gives."""


def check_execution(
    execution: str, *, action_head: str, device: torch.device, dtype: torch.dtype | None = None
) -> None:
    """See that a model with this action head can be run so, before it is loaded. Device "meta" runs nothing.

    Raises:
        ExecutionError: the name is unknown, the action head is not one parallel pass, the device has no CUDA graphs, or
            fp8 is wanted of a card without eight-bit products or of weights that are not bfloat16.
    """
    if execution not in EXECUTIONS:
        raise ExecutionError(f"model.backbone.execution {execution!r} is unknown; expected one of {list(EXECUTIONS)}")
    if execution == "eager":
        return
    if action_head not in PARALLEL_HEADS:
        raise ExecutionError(
            f"execution {execution!r} needs an action head of one parallel pass, {' or '.join(PARALLEL_HEADS)}; "
            f"this model's is {action_head!r}: set model.backbone.execution=eager"
        )
    if device.type not in ("cuda", "meta"):
        raise ExecutionError(
            f"execution {execution!r} needs a CUDA device, got {device.type!r}; set device=cuda or "
            "model.backbone.execution=eager"
        )
    if execution == "fp8" and dtype not in (None, torch.bfloat16):
        raise ExecutionError(
            f"execution 'fp8' is held to the model in bfloat16, got dtype {str(dtype).removeprefix('torch.')}; set "
            "model.backbone.dtype=bfloat16 or model.backbone.execution=compiled"
        )
    if execution == "fp8" and device.type == "cuda":
        _check_card(device)


def _check_card(device: torch.device) -> None:
    """Raise ExecutionError unless the card multiplies in eight bits."""
    wanted = ".".join(map(str, CAPABILITY))
    if not torch.cuda.is_available():
        raise ExecutionError(
            f"execution 'fp8' needs a card of compute capability {wanted} or more, torch finds none; set "
            "model.backbone.execution=eager device=cpu"
        )
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ExecutionError(
            f"execution 'fp8' needs a card of compute capability {wanted} or more, {name} has {found[0]}.{found[1]} "
            "and no eight-bit products; set model.backbone.execution=compiled"
        )


def make_run(
    model: OpenVLAOFT, execution: str, fp8: Fp8 | None = None, selection: partial[Tensors] | None = None
) -> Run:
    """What runs the model's segments: eagerly, or as graphs.

    Args:
        model: Any that `check_execution` lets through.
        execution: One of EXECUTIONS.
        fp8: What execution="fp8" means.
        selection: The segment that keeps some of the picture tokens, where the base model has one: fp8 is held to
            bfloat16 over all segments.
    """
    weight = model.projector.fc1.weight
    check_execution(execution, action_head=model.architecture.action_head, device=weight.device, dtype=weight.dtype)
    if execution == "eager" or weight.device.type == "meta":
        return Eager(model)
    capture = CudaCapture(weight.device)
    if execution == "captured":
        return Graphs(model, capture=capture, limit=CAPTURED_LIMIT)
    if execution == "fp8":
        fp8 = fp8 or Fp8()
        twin = compiled_twin(model, fp8)
        return Quantised(model, twin=twin, capture=capture, limit=fp8.limit, selection=selection)
    return Graphs(model, twin=compiled_twin(model), capture=capture, limit=COMPILED_LIMITS[weight.dtype])


class CudaCapture:
    """Captures calls on one device. The memory between inputs and outputs is shared by all graphs that are alive."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool: Any = None  # of the graphs alive: a pool must not outlive its last graph

    def __call__(self, call: Callable[[], Tensors]) -> Callable[[], Tensors]:
        """The call as a CUDA graph: replaying it returns the same tensors every time, with new numbers in them.

        Args:
            call: Reads and writes at addresses that stay, and waits for nothing.
        """
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARMUP_CALLS):
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            if not self._alive:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = call()
        self._alive.add(graph)

        def replay() -> Tensors:
            with torch.cuda.device(self.device):
                graph.replay()
            return outputs

        return replay


def deviation(expected: Tensor, got: Tensor) -> dict[str, float]:
    """Largest difference, and the same in parts of the largest expected value; of zeros alone, 0 or infinity."""
    largest, scale = float((expected.float() - got.float()).abs().max()), float(expected.float().abs().max())
    return {"max_abs": largest, "max_rel": largest / scale if scale else (math.inf if largest else 0.0)}


class Graph:
    """One signature's replay, and the input tensors that it reads."""

    def __init__(self, inputs: Tensors, run: Callable[[Tensors], Tensors], capture: Capture) -> None:
        self.buffers = {name: None if value is None else value.clone() for name, value in inputs.items()}
        self._replay = capture(partial(run, self.buffers))

    def __call__(self, inputs: Tensors) -> Tensors:
        """Tensors in tensors that the next call overwrites."""
        for name, buffer in self.buffers.items():
            value = inputs[name]
            if buffer is not None and value is not None:
                buffer.copy_(value)
        return self._replay()


class Graphs:
    """Runs segments as graphs; results are tensors of the caller's own.

    Args:
        model: The eager model, which every new graph is compared with.
        twin: What is captured; the model itself when None.
        capture: Makes a replay of a call; a `CudaCapture`.
        limit: Largest accepted deviation of an output, in parts of its largest value.
        max_graphs: Graphs kept; beyond that the one that was not used for longest goes.

    Attributes:
        num_captured: Graphs made so far; when it grows with every call, there are more signatures than max_graphs.
    """

    def __init__(
        self,
        model: OpenVLAOFT,
        *,
        capture: Capture,
        limit: float,
        twin: OpenVLAOFT | None = None,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        self.model = model
        self.twin = model if twin is None else twin
        self.capture = capture
        self.limit = limit
        self.max_graphs = max_graphs
        self.num_captured = 0
        self._graphs: dict[Hashable, Graph] = {}  # the most recently used last
        self._anchor = self._weight()

    def _weight(self) -> Tensor:
        """One weight, by reference: while it is held, no other tensor can get its address."""
        return self.model.projector.fc1.weight.detach()

    @torch.inference_mode(False)  # buffers made in inference mode could not be written to outside of it
    @torch.no_grad()
    def __call__(self, segment: partial[Tensors], inputs: Tensors) -> Tensors:
        """See `segments.Run`.

        Raises:
            ExecutionError: the outputs of a new graph are not the eager model's.
        """
        if self._weight().data_ptr() != self._anchor.data_ptr():  # model.to(...): graphs read the old weights
            self._graphs.clear()
            self._anchor = self._weight()
        shapes = ((name, _shape(value)) for name, value in sorted(inputs.items()))
        key = (segment.func.__name__, *sorted(segment.keywords.items()), *shapes)
        graph = self._graphs.pop(key, None)
        if graph is None:
            while len(self._graphs) >= self.max_graphs:
                del self._graphs[next(iter(self._graphs))]
            graph = self._captured(segment, inputs)
        self._graphs[key] = graph
        return {name: None if value is None else value.clone() for name, value in graph(inputs).items()}

    def _captured(self, segment: partial[Tensors], inputs: Tensors) -> Graph:
        """A new graph whose outputs on these inputs are the eager model's."""
        graph = Graph(inputs, lambda buffers: segment(self.twin, buffers), self.capture)
        self.num_captured += 1
        expected, got = segment(self.model, inputs), graph(inputs)
        wrong = []
        for name, value in expected.items():
            other = got[name]
            if value is None or other is None or not value.is_floating_point() or self._jumps(name):
                continue
            found = deviation(value, other)["max_rel"]
            if not found <= self.limit:
                wrong.append(f"{name} by {found:.3g}")
        if wrong:
            raise ExecutionError(
                f"a captured {segment.func.__name__} {segment.keywords} differs from the eager one on the same inputs: "
                f"{'; '.join(wrong)} of the largest value, expected at most {self.limit:.3g}; set "
                "model.backbone.execution=eager"
            )
        return graph

    def _jumps(self, name: str) -> bool:
        """Whether an output is one of tokens: it jumps where two of them are about as probable."""
        return name == "chunk" and self.model.architecture.action_head != "l1"


class Quantised(Graphs):
    """Graphs of a model in eight bits. Not only each graph is held to the bfloat16 model, the whole is, too.

    Once, on the first real observation: one whose pictures have more than one colour (those of the canaries have not).

    Attributes:
        deviation: What `deviation` found then, of the chunk, or of the last states where the chunk is made of tokens;
            None before.
    """

    def __init__(
        self,
        model: OpenVLAOFT,
        *,
        selection: partial[Tensors] | None = None,
        report: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.deviation: dict[str, float] | None = None
        self._selection, self._report = selection, report or _to_stderr

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, segment: partial[Tensors], inputs: Tensors) -> Tensors:
        """See `segments.Run`.

        Raises:
            ExecutionError: a new graph, or the whole on the first real observation, is too far from the model.
        """
        pixels = inputs.get("pixel_values")
        if self.deviation is None and pixels is not None and bool((pixels.amax((2, 3)) > pixels.amin((2, 3))).any()):
            self._hold(segment, inputs)
        return super().__call__(segment, inputs)

    def _hold(self, first: partial[Tensors], inputs: Tensors) -> None:
        """Compare what both models make of these inputs, say how far they are apart, and refuse what is too far."""
        whole = [_outcome(model, first, self._selection, inputs) for model in (self.model, self.twin)]
        found = deviation(*whole)
        what = "the chunk" if self.model.architecture.action_head == "l1" else "the last states"
        said = (
            f"moves {what} of the first real observation by {found['max_abs']:.3g}, {found['max_rel']:.3g} of the "
            f"largest value of the bfloat16 model"
        )
        if not found["max_rel"] <= self.limit:
            raise ExecutionError(
                f"execution 'fp8' {said}, expected at most {self.limit:.3g}; keep more layers in sixteen bits "
                "(model.backbone.fp8.keep), raise model.backbone.fp8.limit, or set model.backbone.execution=compiled"
            )
        self.deviation = found
        self._report(f"execution=fp8 {said} (limit {self.limit:.3g})")


def _outcome(model: OpenVLAOFT, first: partial[Tensors], selection: partial[Tensors] | None, inputs: Tensors) -> Tensor:
    """All segments one after the other, without graphs: the chunk of an L1 head, the last states of a discrete one."""
    sequence = first(model, inputs)
    if selection is not None:
        sequence = selection(model, {**sequence, **segments.told(inputs)})
    states = segments.run_layers(model, sequence, start=0, stop=model.num_layers)
    if model.architecture.action_head != "l1":
        return given(states, "states")
    features = segments.read_head(model, states)
    return given(segments.read_chunk(model, features, chunk_length=first.keywords["chunk_length"]), "chunk")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _shape(value: Tensor | None) -> tuple[tuple[int, ...], torch.dtype] | None:
    return None if value is None else (tuple(value.shape), value.dtype)
