"""How a loaded base model is run: eagerly, as captured CUDA graphs, or as CUDA graphs of compiled blocks.

At batch 1 a GPU waits longer for the next kernel of an OpenVLA to be launched than it computes. A CUDA graph launches
the kernels of a whole forward pass at once. Only decoders of one parallel pass can be captured.

What surprises first: a graph is bound to addresses and shapes. There is one graph per *signature* (batch size, prompt
length, pads or none, layers asked for), made when the signature is first seen, which takes a fraction of a second
(compiled: minutes, once a signature and process); and each new graph is held to the eager model on its first inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor, nn

from rsd.errors import RSDError
from rsd.models.openvla.compilation import compiled_twin
from rsd.models.openvla.model import OpenVLAOFT

Outputs = tuple[dict[int, Tensor], Tensor]  # as OpenVLAOFT.forward returns them
Inputs = dict[str, Tensor | None]
Capture = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]

EXECUTIONS = ("eager", "captured", "compiled")
CAPTURABLE = ("l1", "discrete")  # decoders that are one fixed sequence of kernels
MAX_GRAPHS = 32  # prompt lengths times batch sizes; each keeps its inputs and outputs, the memory between is shared
WARMUP_CALLS = 3  # libraries allocate and choose kernels in the first ones
# Largest accepted deviation from eager, in parts of an output's largest value. Capturing changes no kernel; compiling
# rounds elsewhere: at 7B shapes actions move by 0.057 in bfloat16, and bfloat16 itself moves them by 0.044
CAPTURED_LIMIT = 0.01
COMPILED_LIMITS = {torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.15}


class ExecutionError(RSDError, RuntimeError):
    """A model cannot be run in the wanted way, or its graph does not give what the model gives."""


def check_execution(execution: str, *, decoder: str, device: torch.device) -> None:
    """See that a model with this decoder can be run so, before it is loaded.

    Raises:
        ExecutionError: the name is unknown, the decoder is not one parallel pass, or the device has no CUDA graphs.
    """
    if execution not in EXECUTIONS:
        raise ExecutionError(f"model.backbone.execution {execution!r} is unknown; expected one of {list(EXECUTIONS)}")
    if execution == "eager":
        return
    if decoder not in CAPTURABLE:
        raise ExecutionError(
            f"execution {execution!r} needs a decoder of one parallel pass, {' or '.join(CAPTURABLE)}; this model's is "
            f"{decoder!r}: set model.backbone.execution=eager"
        )
    if device.type != "cuda":
        raise ExecutionError(
            f"execution {execution!r} needs a CUDA device, got {device.type!r}; set device=cuda or "
            "model.backbone.execution=eager"
        )


def make_forward(model: OpenVLAOFT, execution: str) -> Callable[..., Outputs]:
    """The model itself, or its graphs: what is called with the arguments of `OpenVLAOFT.forward`."""
    weight = model.projector.fc1.weight
    check_execution(execution, decoder=model.architecture.decoder, device=weight.device)
    if execution == "eager":
        return model
    capture = CudaCapture(weight.device)
    if execution == "captured":
        return GraphedForward(model, capture=capture, limit=CAPTURED_LIMIT)
    return GraphedForward(model, run=compiled_twin(model), capture=capture, limit=COMPILED_LIMITS[weight.dtype])


class CudaCapture:
    """Captures calls on one device. The memory between inputs and outputs is shared by all graphs that are alive."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool: tuple[int, int] | None = None  # of the graphs alive: a pool must not outlive its last graph

    def __call__(self, call: Callable[[], Outputs]) -> Callable[[], Outputs]:
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

        def replay() -> Outputs:
            with torch.cuda.device(self.device):
                graph.replay()
            return outputs

        return replay


def deviation(expected: Tensor, got: Tensor) -> dict[str, float]:
    """Largest difference, and the same in parts of the largest expected value."""
    largest = float((expected.float() - got.float()).abs().max())
    return {"max_abs": largest, "max_rel": largest / float(expected.float().abs().max())}


class Graph:
    """One signature's replay, and the input tensors that it reads."""

    def __init__(self, inputs: Inputs, run: Callable[[Inputs], Outputs], capture: Capture) -> None:
        self.buffers = {name: None if value is None else value.clone() for name, value in inputs.items()}
        self._replay = capture(partial(run, self.buffers))

    def __call__(self, inputs: Inputs) -> Outputs:
        """Outputs in tensors that the next call overwrites."""
        for name, buffer in self.buffers.items():
            if buffer is not None:
                buffer.copy_(inputs[name])
        return self._replay()


class GraphedForward:
    """`OpenVLAOFT.forward` from graphs: the same arguments, and results in tensors of the caller's own.

    Args:
        model: The eager model, which every new graph is compared with.
        run: What is captured, with the model's arguments; the model itself when None.
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
        run: nn.Module | None = None,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        self.model = model
        self.run = model if run is None else run
        self.capture = capture
        self.limit = limit
        self.max_graphs = max_graphs
        self.num_captured = 0
        self._graphs: dict[tuple, Graph] = {}  # the most recently used last
        self._anchor = self._weight()

    def _weight(self) -> Tensor:
        """One weight, by reference: while it is held, no other tensor can get its address."""
        return self.model.projector.fc1.weight.detach()

    @torch.inference_mode(False)  # buffers made in inference mode could not be written to outside of it
    @torch.no_grad()
    def __call__(self, *, chunk_length: int, layers: Sequence[int], **inputs: Tensor | None) -> Outputs:
        """See `OpenVLAOFT.forward`.

        Raises:
            ExecutionError: the outputs of a new graph are not the eager model's.
        """
        if self._weight().data_ptr() != self._anchor.data_ptr():  # model.to(...): graphs read the old weights
            self._graphs.clear()
            self._anchor = self._weight()
        kept = tuple(sorted({*layers, self.model.llm_config.num_hidden_layers}))
        key = (chunk_length, kept, *((name, _shape(value)) for name, value in sorted(inputs.items())))
        graph = self._graphs.pop(key, None)
        if graph is None:
            while len(self._graphs) >= self.max_graphs:
                del self._graphs[next(iter(self._graphs))]
            graph = self._captured(inputs, chunk_length=chunk_length, layers=kept)
        self._graphs[key] = graph
        states, actions = graph(inputs)
        return {layer: states[layer].clone() for layer in layers}, actions.clone()

    def _captured(self, inputs: Inputs, *, chunk_length: int, layers: Sequence[int]) -> Graph:
        """A new graph whose outputs on these inputs are the eager model's."""
        fixed = {"chunk_length": chunk_length, "layers": layers}
        graph = Graph(inputs, lambda buffers: self.run(**buffers, **fixed), self.capture)
        self.num_captured += 1
        expected, got = self.model(**inputs, **fixed), graph(inputs)
        pairs = {f"layer {layer}": (expected[0][layer], got[0][layer]) for layer in layers}
        if self.model.architecture.decoder == "l1":  # a discrete action jumps where two tokens are about as probable
            pairs["actions"] = (expected[1], got[1])
        found = {name: deviation(*pair)["max_rel"] for name, pair in pairs.items()}
        wrong = [f"{name} by {value:.3g}" for name, value in found.items() if not value <= self.limit]
        if wrong:
            raise ExecutionError(
                f"a captured forward pass differs from the eager one on the same inputs: {'; '.join(wrong)} of the "
                f"largest value, expected at most {self.limit:.3g}; set model.backbone.execution=eager"
            )
        return graph


def _shape(value: Tensor | None) -> tuple | None:
    return None if value is None else (tuple(value.shape), value.dtype)
