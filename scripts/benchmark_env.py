"""How fast is LiberoEnv beside LIBERO's own OffScreenRenderEnv? Same process, same actions, rounds taken in turn.

    python scripts/benchmark_env.py --suite libero_spatial --task-id 4 --rounds 5 --json benchmark_env.json

Both run an open-loop policy with two cameras: the reference renders every step, LiberoEnv the last one of each chunk.
The pictures that a policy would see, proprio and the simulator's state are compared bit for bit on the very steps that
are timed; the script fails when they differ. Other load on the machine slows both arms: read the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import numpy as np

from rsd.envs.libero import LiberoEnv
from rsd.envs.reference import ReferenceEnv
from rsd.files import write_atomically
from rsd.options import Options, held, new_file, reported
from rsd.settings import ChunkLength, Count, Natural, Side
from rsd.types import Observation


@reported
def main() -> int:
    arguments = parse_arguments()
    started = time.perf_counter()
    env = LiberoEnv(suite=arguments.suite, task_id=arguments.task_id, max_steps=220, image_size=arguments.image_size)
    build_s = time.perf_counter() - started
    reference = ReferenceEnv(arguments.suite, arguments.task_id, image_size=arguments.image_size)
    rounds = [run_round(env, reference, number, arguments) for number in range(arguments.rounds)]
    env.close()
    reference.close()
    summary = summarize(rounds)
    device = {"machine": platform.machine(), "cpus": len(os.sched_getaffinity(0)), **env.task.versions}
    print_table(summary, arguments, device, build_s)
    if arguments.json:
        report = {"arguments": vars(arguments) | {"json": str(arguments.json)}, "device": device, "build_s": build_s}
        write_atomically(arguments.json, json.dumps(report | {"median": summary, "rounds": rounds}, indent=2) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = Options(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--task-id", type=held(Natural), default=4)
    parser.add_argument(
        "--rounds", type=held(Count), default=5, help="each round resets both and runs the same actions"
    )
    parser.add_argument("--chunks", type=held(Count), default=4, help="action chunks a round")
    parser.add_argument("--chunk", type=held(ChunkLength), default=8, help="steps executed open loop")
    parser.add_argument("--image-size", type=held(Side), default=256)
    parser.add_argument("--json", type=new_file, help="also write everything to this file")
    return parser.parse_args()


def run_round(env: LiberoEnv, reference: ReferenceEnv, number: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One reset and `chunks` chunks of each, chunk by chunk in turn; seconds by part."""
    random = np.random.default_rng(number)
    init_state_id = number % env.task.num_init_states
    seconds = {}
    expected, seconds["reference_reset_s"] = timed(lambda: reference.reset(init_state_id))
    seen, seconds["rsd_reset_s"] = timed(lambda: env.reset(init_state_id))
    require_equal(seen, expected, f"round {number}, reset")
    seconds |= {"reference_steps_s": 0.0, "rsd_steps_s": 0.0}
    for chunk in range(arguments.chunks):
        actions = random.uniform(-0.5, 0.5, (arguments.chunk, 7))
        actions[:, -1] = np.sign(actions[0, -1])
        expected, elapsed = timed(lambda actions=actions: [reference.step(action)[0] for action in actions][-1])
        seconds["reference_steps_s"] += elapsed
        last = len(actions) - 1
        seen, elapsed = timed(
            lambda actions=actions, last=last: [
                env.step(action, observe=number == last).observation for number, action in enumerate(actions)
            ][-1]
        )
        seconds["rsd_steps_s"] += elapsed
        require_equal(seen, expected, f"round {number}, chunk {chunk}")
        if not np.array_equal(env.simulator.get_sim_state(), reference.env.get_sim_state()):
            raise AssertionError(f"round {number}, chunk {chunk}: the physics differs")
    steps = arguments.chunks * arguments.chunk
    return seconds | {"steps": steps}


def timed(call: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def require_equal(seen: Observation, expected: Observation, where: str) -> None:
    equal = all(np.array_equal(seen.images[view], expected.images[view]) for view in expected.images)
    if not (equal and np.array_equal(seen.proprio, expected.proprio)):
        raise AssertionError(f"{where}: the observation differs from OffScreenRenderEnv's; no speed is reported")


def summarize(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds."""

    def median(value: Any) -> float:
        return statistics.median(value(one) for one in rounds)

    return {
        "reference_steps_per_s": median(lambda one: one["steps"] / one["reference_steps_s"]),
        "rsd_steps_per_s": median(lambda one: one["steps"] / one["rsd_steps_s"]),
        "ratio_steps": median(lambda one: one["reference_steps_s"] / one["rsd_steps_s"]),
        "reference_reset_s": median(lambda one: one["reference_reset_s"]),
        "rsd_reset_s": median(lambda one: one["rsd_reset_s"]),
        "ratio_reset": median(lambda one: one["reference_reset_s"] / one["rsd_reset_s"]),
    }


def print_table(summary: dict[str, float], arguments: argparse.Namespace, device: dict, build_s: float) -> None:
    steps = arguments.rounds * arguments.chunks * arguments.chunk
    print(f"{arguments.suite} task {arguments.task_id}, 2 cameras, {arguments.image_size} x {arguments.image_size}")
    print(f"{arguments.chunk} steps open loop, {arguments.rounds} rounds, {steps} steps each; medians")
    print(", ".join(f"{name} {value}" for name, value in device.items()) + f", LiberoEnv builds in {build_s:.1f} s")
    print(f"{'':14}{'OffScreenRenderEnv':>20}{'LiberoEnv':>12}{'ratio':>8}")
    for label, name in (("steps/s", "steps_per_s"), ("reset, s", "reset_s")):
        ratio = summary["ratio_steps" if name == "steps_per_s" else "ratio_reset"]
        print(f"{label:14}{summary[f'reference_{name}']:20.2f}{summary[f'rsd_{name}']:12.2f}{ratio:7.1f}x")
    print("pictures, proprio and physics are equal, bit for bit")


if __name__ == "__main__":
    raise SystemExit(main())
