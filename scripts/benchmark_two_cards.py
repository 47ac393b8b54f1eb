"""Caching and evaluation on one card and on two, taking turns: frames and chunks a second.

    python scripts/benchmark_two_cards.py --json two_cards.json                                # two GPUs, 7B shapes
    python scripts/benchmark_two_cards.py --devices cpu cpu --size tiny --json two_cards.json   # no figure of worth

Random weights: the shape counts. Caching is what scripts/cache_hidden_states.py does, with the states of a middle and
the last layer; evaluation what eval.py does, without its simulators: environments that draw nothing ask for chunks as
fast as they are answered. Both with a list in `device`. The rate of an evaluation is that between its first and its
last chunk, so that starting its workers does not count. The last line is the record that --json keeps.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]  # runs from a bare checkout, where the package is not installed

from benchmark_7b.caching import JpegFrames  # noqa: E402
from benchmark_7b.cases import TWO_VIEWS, make_base  # noqa: E402

from rsd.data.fill_cache import write_cache  # noqa: E402
from rsd.decoding import L1  # noqa: E402
from rsd.evaluation.evaluate import Recording  # noqa: E402
from rsd.evaluation.parallel import evaluate_parallel  # noqa: E402
from rsd.evaluation.plan import plan_episodes  # noqa: E402
from rsd.files import write_atomically  # noqa: E402
from rsd.models.openvla.base import OpenVLABase  # noqa: E402
from rsd.models.openvla.random_weights import openvla_architecture, random_model  # noqa: E402
from rsd.options import Options, held, new_file, reported  # noqa: E402
from rsd.points import point_names  # noqa: E402
from rsd.policy.assemble import Checkpoints, assemble  # noqa: E402
from rsd.settings import Count, Device, LoaderProcesses, Processes, require_device  # noqa: E402
from rsd.types import Chunk, Observation, Policy, Request, Step, Task  # noqa: E402

SUITE, MAX_STEPS, PICTURE = "still", 64, 256  # control steps an episode, pixels


class Still:
    """An environment in which nothing moves; its pictures are noise, drawn once."""

    def __init__(self, task_id: int) -> None:
        names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
        self.task = Task(SUITE, task_id, "any", 100, MAX_STEPS, TWO_VIEWS, 8, names, 20, (-1.0, 1.0), "still-1", {})
        self.reset_rendering_s = 0.0
        random = np.random.default_rng(task_id)
        pictures = {view: random.integers(0, 256, (PICTURE, PICTURE, 3), dtype=np.uint8) for view in TWO_VIEWS}
        self._seen = Observation(pictures, np.zeros(8), "any")

    def reset(self, init_state_id: int) -> Observation:
        return self._seen

    def step(self, action: np.ndarray, observe: bool = True) -> Step:
        return Step(self._seen if observe else None, False, False)

    def close(self) -> None:
        pass


class Timed:
    """A policy that notes when it has answered, and how many."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.num_open_loop_steps = policy, policy.num_open_loop_steps
        self.answered: list[tuple[float, int]] = []

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        chunks = self.policy.predict(requests)
        self.answered.append((time.perf_counter(), len(chunks)))
        return chunks


def frames_per_s(bases: Sequence[OpenVLABase], options: argparse.Namespace) -> float:
    """Of filling a cache."""
    layers = bases[0].model.num_layers
    frames = JpegFrames(options.frames, TWO_VIEWS)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_cache(
            bases=bases,
            frames=frames,
            directory=Path(folder) / "cache",
            points=point_names([(layers + 1) // 2, layers]),
            batch_size=options.batch_size,
            shard_bytes=32 * 10**6,
            command="",
            num_workers=options.loaders,
            report=lambda line: None,
        )
        return len(frames) / (time.perf_counter() - started)


def chunks_per_s(bases: Sequence[OpenVLABase], options: argparse.Namespace) -> float:
    """Of an evaluation, between its first answer and its last."""
    policies = [
        Timed(assemble(base=base, decoding=L1(), checkpoints=Checkpoints(), num_open_loop_steps=8, device=device))
        for base, device in zip(bases, options.devices, strict=False)
    ]
    request = {"num_tasks": options.workers, "num_init_states": 100, "tasks": None, "seed": 0, "save_videos": 0}
    with tempfile.TemporaryDirectory() as folder:
        results = list(
            evaluate_parallel(
                make_env=Still,
                policies=policies,
                max_batch=options.max_batch,
                plan=plan_episodes(**request, num_trials=options.episodes),
                done=(),
                recording=Recording(Path(folder)),
                num_workers=options.workers,
                suite=SUITE,
            )
        )
    broken = [result.error for result in results if result.error is not None]
    if broken:
        raise RuntimeError(f"{len(broken)} of {len(results)} episodes broke, the first with {broken[0]}")
    answered = sorted(one for policy in policies for one in policy.answered)
    return sum(count for _, count in answered[1:]) / (answered[-1][0] - answered[0][0])


@reported
def main() -> None:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", type=held(Device), default=["cuda:0", "cuda:1"])
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--rounds", type=held(Count), default=2, help="of one card and all, in turn")
    parser.add_argument("--frames", type=held(Count), default=768, help="of a cache")
    parser.add_argument("--batch-size", type=held(Count), default=16, help="frames a forward pass")
    parser.add_argument("--loaders", type=held(LoaderProcesses), default=16, help="processes that prepare pictures")
    parser.add_argument("--workers", type=held(Processes), default=24, help="environments")
    parser.add_argument("--episodes", type=held(Count), default=3, help="of each environment, of 8 chunks")
    parser.add_argument("--max-batch", type=held(Count), default=8, help="observations a forward pass of an evaluation")
    parser.add_argument("--json", type=new_file, required=True)
    options = parser.parse_args()
    for device in options.devices:
        require_device(device)
    cuda = options.devices[0].startswith("cuda")
    dtype = torch.bfloat16 if cuda else torch.float32
    bases = []
    for device in options.devices:
        model = random_model(openvla_architecture(size=options.size), seed=0, device=device, dtype=dtype)
        bases.append(make_base(model.requires_grad_(False), TWO_VIEWS, pictures="device" if cuda else "cpu"))
    measures = {"caching_frames_per_s": frames_per_s, "evaluation_chunks_per_s": chunks_per_s}
    rates: dict[str, dict[str, list[float]]] = {name: {"one": [], "all": []} for name in measures}
    for number in range(1 + options.rounds):  # the first one warms up
        for name, measure in measures.items():
            for arm, some in (("one", bases[:1]), ("all", bases)):
                with contextlib.redirect_stdout(io.StringIO()):
                    rate = measure(some, options)
                print(f"round {number}, {arm}: {name} {rate:.1f}", file=sys.stderr, flush=True)
                if number > 0:
                    rates[name][arm].append(rate)
    record: dict[str, Any] = {
        "devices": options.devices,
        "card": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "size": options.size,
        "weights": "random",
        "rounds": options.rounds,
        **{name: getattr(options, name) for name in ("frames", "batch_size", "loaders", "workers", "episodes")},
        "max_batch": options.max_batch,
        **rates,
        "gain": {name: median(each["all"]) / median(each["one"]) for name, each in rates.items()},
    }
    write_atomically(options.json, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
