"""Time and memory of OpenVLA-OFT at 7B shapes on one GPU, with random weights: python scripts/benchmark_7b.py --out DIR

Needs torch, transformers, safetensors, scipy and PIL only. Writes DIR/benchmark_7b.json (after every section, so that
an interrupted run keeps what it has) and DIR/benchmark_7b.md, and prints the table. About eight minutes on an H200.

What surprises first: variants take turns call by call, so that clocks and temperature treat them alike, and whatever is
timed is also compared: a captured path whose outputs differ from the eager ones on the timed inputs fails the run.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout, where the package is not installed

from rsd.models.openvla.backbone import OpenVLABackbone  # noqa: E402
from rsd.models.openvla.model import OpenVLAOFT, select  # noqa: E402
from rsd.models.openvla.processor import PrismaticImageProcessor  # noqa: E402
from rsd.models.openvla.random_weights import (  # noqa: E402
    PUBLISHED_MEANS,
    PUBLISHED_STDS,
    openvla_architecture,
    random_model,
    statistics,
    write_random_checkpoint,
)
from rsd.types import Observation  # noqa: E402

Call = Callable[[], Tensor]
PROMPT_LENGTH = 34  # ids of LIBERO-Spatial's longer instructions, BOS and 29871 included (SPEC §5)
CASES = {"1 image": (("image",), False), "2 images + proprio": (("image", "wrist_image"), True)}
MATMUL_SIZE = 8192
CAPTURED_LIMIT = 0.01  # largest accepted deviation of a captured part, in parts of its output's largest value
FUSED_FACTOR = 2.0  # the fused actions may be this many times as far from the eager ones as those are from float32's
LORA_RANK, LORA_ALPHA = 32, 16
RESULTS, TABLE = "benchmark_7b.json", "benchmark_7b.md"
SECTIONS = ("load", "forward", "caching", "lora")


class FixedText:
    """A prompt of PROMPT_LENGTH ids: random weights need no tokenizer."""

    pad_id = 32000
    example = "any"

    def encode(self, instruction: str) -> list[int]:
        return [1, *range(300, 300 + PROMPT_LENGTH - 2), 29871]

    def to_json(self) -> dict[str, Any]:
        return {"prompt_length": PROMPT_LENGTH}


def make_backbone(model: OpenVLAOFT, views: tuple[str, ...]) -> OpenVLABackbone:
    size = model.architecture.dino.image_size
    return OpenVLABackbone(
        model=model,
        processor=PrismaticImageProcessor(sizes=[size] * 2, means=PUBLISHED_MEANS, stds=PUBLISHED_STDS),
        text=FixedText(),
        norm_stats=statistics(7, 8),
        unnorm_key="random",
        views=views,
        chunk_length=8,
        center_crop=True,
        weights_sha256=lambda: "random",
    )


def random_observation(seed: int, views: tuple[str, ...]) -> Observation:
    random = np.random.default_rng(seed)
    pictures = {}
    for view in views:  # smooth, as camera pictures are
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        pictures[view] = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC))
    return Observation(pictures, random.uniform(-0.5, 0.5, 8), "any")


# --- clocks


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


def captured(call: Call) -> Call:
    """The call as a CUDA graph; replaying returns the same output tensor every time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


# --- the model in parts


def twin(model: OpenVLAOFT) -> OpenVLAOFT:
    """A second set of modules around the same weights, to be changed without touching the first."""
    memo = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo)


def run_towers_side_by_side(model: OpenVLAOFT) -> None:
    """Let DINOv2 and SigLIP share the GPU: each of their kernels is too small for it at batch 1."""
    vision = model.vision_backbone
    side = torch.cuda.Stream()

    def forward(pixel_values: Tensor, language: Tensor | None = None) -> Tensor:
        batch = len(pixel_values)
        pixels = pixel_values.reshape(-1, 6, *pixel_values.shape[2:])
        here = torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            second = vision.fused_featurizer(pixels[:, 3:])
        first = vision.featurizer(pixels[:, :3])
        here.wait_stream(side)
        return torch.cat([first, second], dim=-1).reshape(batch, -1, first.shape[-1] + second.shape[-1])

    vision.forward = forward


def compile_blocks(model: OpenVLAOFT) -> None:
    """Compile each kind of block once: norms, rotations and activations melt into fewer kernels."""
    torch._dynamo.config.recompile_limit = 64
    blocks = [*model.vision_backbone.featurizer.blocks, *model.vision_backbone.fused_featurizer.blocks]
    for block in [*blocks, *model.language_model.model.layers]:
        block.compile(dynamic=False)


def part_calls(model: OpenVLAOFT, inputs: dict[str, Tensor]) -> dict[str, Call]:
    """A call for each part of one forward pass, on fixed inputs, and for the whole of it."""
    last = model.llm_config.num_hidden_layers
    arguments = (inputs["input_ids"], None, inputs["action_start"], 8, inputs.get("proprio"))
    features = model.vision_backbone(inputs["pixel_values"])
    patches = model.projector(features)

    def language() -> Tensor:
        sequence = model.assemble(patches, *arguments)
        return select(model.decoder_states(sequence.embeds, None, {last})[last], sequence.slots)

    states = language()
    whole = {**inputs, "attention_mask": None, "chunk_length": 8, "layers": []}
    return {
        "vision": lambda: model.vision_backbone(inputs["pixel_values"]),
        "projector": lambda: model.projector(features),
        "llm": language,
        "head": lambda: model.action_head(states),
        "whole": lambda: model(**whole)[1],
    }


def deviation(expected: Tensor, got: Tensor) -> dict[str, float]:
    largest = float((expected.float() - got.float()).abs().max())
    return {"max_abs": largest, "max_rel": largest / float(expected.float().abs().max())}


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What the GPU reaches on a large square product, TFLOP/s: the yardstick of the floor."""
    first, second = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=dtype) for _ in range(2))
    times = interleaved({"matmul": lambda: first @ second}, Clock(device), 10, 30)
    return 2 * MATMUL_SIZE**3 / times["matmul"]["device_ms"]["median"] / 1e9


def forward_tflop(model: OpenVLAOFT, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Multiply-adds of the matrix products of one forward pass, counted by torch, in TFLOP."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = {}
    for name, call in part_calls(model, inputs).items():
        with FlopCounterMode(display=False) as counter:
            call()
        counts[name] = counter.get_total_flops() / 1e12
    return counts


# --- sections


@torch.inference_mode()
def measure_forward(options: argparse.Namespace, model: OpenVLAOFT, device: torch.device) -> dict[str, Any]:
    clock, cuda = Clock(device), device.type == "cuda"
    result: dict[str, Any] = {"matmul_tflops": matmul_tflops(device, torch.bfloat16) if cuda else None}
    exact = copy.deepcopy(model).float() if cuda else model
    fused = None
    if cuda and not options.no_compile:
        fused = twin(model)
        compile_blocks(fused)
        run_towers_side_by_side(fused)
    for case, (views, use_proprio) in CASES.items():
        network = model if use_proprio else without_proprio(model)
        backbone = make_backbone(network, views)
        observation = [random_observation(0, views)]
        prepare: dict[str, Call] = {"preprocess": lambda: backbone.prepare(observation)["pixel_values"]}  # noqa: B023
        prepared = backbone.prepare(observation)
        dtype = model.projector.fc1.weight.dtype
        inputs = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in prepared.items()
            if name != "attention_mask"
        }
        entry: dict[str, Any] = {"tokens": sequence_length(network, inputs), "tflop": forward_tflop(network, inputs)}
        entry["preprocess"] = interleaved(prepare, Clock(torch.device("cpu")), options.warmup, options.calls)
        ways = {"eager": part_calls(network, inputs)}
        if cuda:
            ways["captured"] = {name: captured(call) for name, call in ways["eager"].items()}
        if fused is not None:
            quick = fused if use_proprio else without_proprio(fused)
            ways["fused"] = {name: captured(call) for name, call in part_calls(quick, inputs).items()}
        entry["agreement"] = {}
        for part in ways["eager"]:
            variants = {name: calls[part] for name, calls in ways.items()}
            entry[part] = interleaved(variants, clock, options.warmup, options.calls)
            expected = variants["eager"]().clone()  # after the timing, on the timed inputs
            others = {name: deviation(expected, call().clone()) for name, call in variants.items() if name != "eager"}
            entry["agreement"][part] = others
            limits = {"captured": CAPTURED_LIMIT}
            if part == "whole":
                precise = exact if use_proprio else without_proprio(exact)
                wide = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
                rounding = deviation(part_calls(precise, wide)["whole"](), expected)
                entry["bfloat16_from_float32"] = rounding
                limits["fused"] = FUSED_FACTOR * rounding["max_rel"]
            for name, found in others.items():
                if name in limits and not found["max_rel"] <= limits[name]:
                    result.setdefault("disagreements", []).append(f"{case}, {part}, {name}: {found}")
        if result["matmul_tflops"]:
            entry["floor_ms"] = {name: 1000 * tflop / result["matmul_tflops"] for name, tflop in entry["tflop"].items()}
        if cuda:
            best = "fused" if fused is not None else "captured"
            entry["kernels"] = {name: kernels(ways[name]["whole"]) for name in ("captured", best)}
        result[case] = entry
    return result


def without_proprio(model: OpenVLAOFT) -> OpenVLAOFT:
    """The same modules and weights for a model that has no proprio token."""
    import dataclasses

    bare = copy.copy(model)
    bare.architecture = dataclasses.replace(model.architecture, proprio_dim=None)
    return bare


def sequence_length(model: OpenVLAOFT, inputs: dict[str, Tensor]) -> int:
    images = inputs["pixel_values"].shape[1] // model.architecture.channels_per_image
    return inputs["input_ids"].shape[1] + images * model.architecture.num_patches + ("proprio" in inputs)


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


LOAD = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from rsd.models.openvla import load_backbone

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

device = sys.argv[3]
torch.zeros(1, device=device)
before, started = status("VmRSS:"), time.perf_counter()
backbone = load_backbone(checkpoint=sys.argv[2], unnorm_key="libero_spatial", views=["image", "wrist_image"],
                         use_proprio=True, chunk_length=8, device=device, dtype="bfloat16", canaries=False)
seconds, peak = time.perf_counter() - started, status("VmHWM:") - before
from rsd.models.openvla.canaries import check_canaries
started = time.perf_counter()
found = [canary.found for canary in check_canaries(backbone)]
gpu = torch.cuda.max_memory_allocated() if device == "cuda" else None
print(json.dumps({"load_s": seconds, "host_peak_bytes": peak, "canaries_s": time.perf_counter() - started,
                  "canaries": found, "gpu_bytes": gpu}))
"""


def measure_load(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Write a random checkpoint, load it in a fresh process; files are in the page cache by then."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        directory = Path(scratch) / "checkpoint"
        started = time.perf_counter()
        write_random_checkpoint(
            directory, architecture=openvla_architecture(size=options.size), device=device.type, shard_bytes=5 * 10**9
        )
        written_s = time.perf_counter() - started
        if device.type == "cuda":
            torch.cuda.empty_cache()
        files = sorted(directory.glob("model*.safetensors"))
        command = [sys.executable, "-c", LOAD, str(ROOT), str(directory), device.type]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(f"loading failed: {process.stderr[-2000:]}")
        record = json.loads(process.stdout.splitlines()[-1])
        sizes = {"largest_shard_bytes": max(path.stat().st_size for path in files), "num_shards": len(files)}
        return {**record, **sizes, "write_s": written_s, "page_cache": "warm"}


class JpegFrames:
    """What FrameDataset promises, from JPEG bytes in memory: decoding and preparing cost what they cost there."""

    name = "random"

    def __init__(self, number: int, views: tuple[str, ...]) -> None:
        import io

        self.episodes = [0]
        self.number, self.pictures = number, []
        for seed in range(16):
            stored = {}
            for view, picture in random_observation(seed, views).images.items():
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, format="JPEG", quality=95)
                stored[view] = buffer.getvalue()
            self.pictures.append(stored)

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, row: int) -> dict[str, Any]:
        import io

        stored = self.pictures[row % len(self.pictures)].items()
        pictures = {view: np.asarray(Image.open(io.BytesIO(data))) for view, data in stored}
        observation = Observation(pictures, np.zeros(8), "any")
        return {"observation": observation, "actions": np.zeros((8, 7), np.float32), "episode": 0, "step": row}

    def content_id(self) -> str:
        return f"random-{self.number}"


def measure_caching(options: argparse.Namespace, model: OpenVLAOFT, device: torch.device) -> dict[str, Any]:
    """Frames/s of write_cache against those of the batched forward alone, layers and batch alike."""
    from rsd.data.fill_cache import cache_content, write_cache

    views = CASES["2 images + proprio"][0]
    backbone = make_backbone(model, views)
    layers = sorted({(model.llm_config.num_hidden_layers + 1) // 2, model.llm_config.num_hidden_layers})
    batch, frames = options.batch_size, JpegFrames(options.frames, views)
    inputs = backbone.prepare([frames[row]["observation"] for row in range(batch)])
    inputs = {name: value.to(device) for name, value in inputs.items()}
    alone = interleaved({"forward": lambda: backbone.forward(inputs, layers).actions}, Clock(device), 3, 10)
    alone_fps = 1000 * batch / alone["forward"]["wall_ms"]["median"]
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        content = cache_content(
            fingerprint=backbone.fingerprint(), frames=frames, layers=layers, chunk_length=8, unnorm_key="random"
        )
        started = time.perf_counter()
        write_cache(
            backbone=backbone,
            frames=frames,
            directory=Path(scratch) / "cache",
            content=content,
            batch_size=batch,
            shard_bytes=128 * 10**6,
            command="",
            num_workers=options.workers,
            report=lambda line: None,
        )
        seconds = time.perf_counter() - started
    fps = len(frames) / seconds
    record = {"batch_size": batch, "workers": options.workers, "frames": len(frames), "layers": layers}
    return record | {"forward_frames_per_s": alone_fps, "caching_frames_per_s": fps, "share": fps / alone_fps}


class LowRank(nn.Module):
    """A frozen linear layer and its adapter, the arithmetic of peft's LoRA without dropout: W x + b + (α / r) B A x."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        place = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Parameter(torch.randn(LORA_RANK, base.in_features, **place) / LORA_RANK)
        self.up = nn.Parameter(torch.zeros(base.out_features, LORA_RANK, **place))

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return self.base(x) + low * (LORA_ALPHA / LORA_RANK)


def add_adapters(model: OpenVLAOFT) -> list[nn.Parameter]:
    """Adapters on every linear layer of towers, projector and language model but lm_head; heads are trained whole."""
    model.requires_grad_(False)
    whole = ("action_head", "proprio_projector")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not name.startswith(whole) and not name.endswith("lm_head"):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, LowRank(module))
    for part in whole:
        getattr(model, part).requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def measure_lora(options: argparse.Namespace, model: OpenVLAOFT, device: torch.device) -> dict[str, Any]:
    """One optimizer step of the OFT recipe at batch 1 and 8. Changes the model: the last section."""
    views = CASES["2 images + proprio"][0]
    backbone = make_backbone(model, views)
    parameters = add_adapters(model)
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    result: dict[str, Any] = {"trained_parameters": sum(parameter.numel() for parameter in parameters)}
    for batch in (1, 8):
        prepared = backbone.prepare([random_observation(seed, views) for seed in range(batch)])
        dtype = model.projector.fc2.base.weight.dtype
        inputs = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in prepared.items()
            if name != "attention_mask"
        }
        target = torch.zeros(batch, 8, 7, device=device, dtype=dtype)

        def step(inputs: dict[str, Tensor] = inputs, target: Tensor = target) -> Tensor:
            predicted = model(**inputs, attention_mask=None, chunk_length=8, layers=[])[1]
            loss = (predicted - target).abs().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times = interleaved({"step": step}, Clock(device), 3, max(2, options.calls // 20))
        if not torch.isfinite(step()):
            raise RuntimeError("the loss of the LoRA step is not finite")
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        result[f"batch {batch}"] = {**times["step"], "gpu_bytes": memory}
    return result


# --- report


def table(results: dict[str, Any]) -> str:
    """What people read: medians of the device time, in ms."""
    lines = [f"{results['device']}, torch {results['torch']}, {results['size']} shapes, random weights", ""]
    forward = results.get("forward", {})
    for case in CASES:
        if case not in forward:
            continue
        entry = forward[case]
        parts = [name for name in ("vision", "projector", "llm", "head", "whole") if name in entry]
        ways = list(entry["whole"])
        head = ["part", *(f"{way} ms" for way in ways), "floor ms", "best / floor"]
        lines += [f"**{case}** ({entry['tokens']} tokens)", "", " | ".join(head), " | ".join("---" for _ in head)]
        preprocess = entry["preprocess"]["preprocess"]["wall_ms"]["median"]
        lines.append(" | ".join(["preprocess (CPU)", f"{preprocess:.2f}", *[""] * (len(head) - 2)]))
        for part in parts:
            medians = [entry[part][way]["device_ms"]["median"] for way in ways]
            floor = entry.get("floor_ms", {}).get(part)
            ratio = [f"{floor:.2f}", f"{min(medians) / floor:.2f}"] if floor else ["", ""]
            lines.append(" | ".join([part, *(f"{value:.2f}" for value in medians), *ratio]))
        lines.append("")
    for section in ("load", "caching", "lora"):
        if section in results:
            lines += [f"**{section}**", "", "```", json.dumps(results[section], indent=1), "```", ""]
    lines += [f"FAILED {name}: {error.splitlines()[-1]}" for name, error in results["errors"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--frames", type=int, default=640, help="of the caching section")
    parser.add_argument("--batch-size", type=int, default=16, help="of the caching section")
    parser.add_argument("--workers", type=int, default=12, help="processes that prepare pictures")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for 15 GB that are deleted again")
    parser.add_argument("--no-compile", action="store_true", help="leave the fused variant out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "size": options.size,
        "command": sys.argv,
        "errors": {},
        "seconds": {},
    }
    model: OpenVLAOFT | None = None
    for section in SECTIONS:
        if section not in options.sections:
            continue
        started = time.perf_counter()
        try:
            if section == "load":
                results[section] = measure_load(options, device)
            else:
                if model is None:
                    dtype = torch.bfloat16 if cuda else torch.float32
                    model = random_model(openvla_architecture(size=options.size), seed=0, device=device, dtype=dtype)
                    model.requires_grad_(False)
                measure = {"forward": measure_forward, "caching": measure_caching, "lora": measure_lora}[section]
                results[section] = measure(options, model, device)
        except Exception:  # noqa: BLE001  the other sections are still worth their time; the run fails all the same
            results["errors"][section] = traceback.format_exc()
        results["seconds"][section] = time.perf_counter() - started
        (options.out / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
        print(f"{section}: {results['seconds'][section]:.0f} s", file=sys.stderr, flush=True)
    text = table(results)
    (options.out / TABLE).write_text(text)
    print(text)
    wrong = results.get("forward", {}).get("disagreements", [])
    for line in wrong:
        print(f"outputs differ: {line}", file=sys.stderr)
    for error in results["errors"].values():
        print(error, file=sys.stderr)
    return 1 if wrong or results["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
