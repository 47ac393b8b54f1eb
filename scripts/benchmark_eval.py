"""Episodes an hour: LIBERO's own loop beside this one, with the same policy, taking turns.

    python scripts/benchmark_eval.py experiment=released env=libero_spatial tasks=[9] --workers 1 2
    python scripts/benchmark_eval.py device=cuda … --workers 1 4 16 --max-batch 16 --json scaling.json

What precedes the options are eval.py's arguments. The reference arm is OffScreenRenderEnv with two cameras, one
environment, every step rendered and every reset compiled. Environments are built anew in every arm and round, and
workers started: that is part of the time; loading the policy, which all arms share, is not.
What surprises first: where an arm answers one observation at a time, its episodes must end as the reference's do, step
for step, or no speed is reported. In larger batches the last bits of actions differ; how many episodes that changes,
and by how much an action, is measured and printed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from rsd.commands.configured import configured_policy
from rsd.commands.error_lines import cause_of, in_one_line
from rsd.commands.settings import check_settings
from rsd.envs.reference import ReferenceEnv
from rsd.envs.suites import suite_name
from rsd.errors import SettingError
from rsd.evaluation.evaluate import Recording, evaluate
from rsd.evaluation.parallel import evaluate_parallel
from rsd.evaluation.plan import plan_episodes
from rsd.evaluation.results import episode_id
from rsd.files import write_atomically
from rsd.options import Options, held, new_file, reported
from rsd.provenance import provenance
from rsd.settings import Count, Processes
from rsd.types import Chunk, EpisodeResult, Observation, Policy, Request, Step, Task

CONF = Path(__file__).parents[1] / "conf"
REFERENCE = "reference"
NUM_KEPT = 64  # observations on which batches of different sizes are compared


class ReferenceLoop:
    """ReferenceEnv as an Env: renders every step, whoever looks."""

    def __init__(self, task: Task) -> None:
        self.env = ReferenceEnv(task.suite, task.task_id)
        self.task = dataclasses.replace(task, protocol=REFERENCE)
        self.reset_rendering_s = 0.0  # it cannot tell

    def reset(self, init_state_id: int) -> Observation:
        return self.env.reset(init_state_id)

    def step(self, action: np.ndarray, observe: bool = True) -> Step:
        return Step(*self.env.step(action))

    def close(self) -> None:
        self.env.close()


class Keeping:
    """A policy that keeps the first observations that it is shown."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.num_open_loop_steps = policy, policy.num_open_loop_steps
        self.observations: list[Observation] = []

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        self.observations += [one.observation for one in requests[: NUM_KEPT - len(self.observations)]]
        return self.policy.predict(requests)


def run_arm(cfg: DictConfig, policy: Policy, num_workers: int | None, max_batch: int) -> dict[str, Any]:
    """All planned episodes once; num_workers None is the reference loop."""
    sizes = {name: cfg.env[name] for name in ("num_tasks", "num_init_states")}
    plan = plan_episodes(**sizes, tasks=cfg.tasks, num_trials=cfg.num_trials, seed=cfg.seed, save_videos=0)
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(Path(folder))
        started = time.perf_counter()
        if num_workers is None:
            tasks = instantiate(cfg.env.tasks)
            results = list(
                evaluate(
                    make_env=lambda task_id: ReferenceLoop(tasks[task_id]),
                    policy=policy,
                    plan=plan,
                    done=(),
                    recording=recording,
                )
            )
        else:
            results = list(
                evaluate_parallel(
                    make_env=instantiate(cfg.env.make),
                    policies=[policy],
                    max_batch=max_batch,
                    plan=plan,
                    done=(),
                    recording=recording,
                    num_workers=num_workers,
                    suite=suite_name(cfg.env.suite, cfg.env.variant),
                    render_devices=cfg.render_devices,
                )
            )
        wall_s = time.perf_counter() - started
    return {"wall_s": wall_s, "results": sorted(results, key=episode_id)}


def outcomes(results: Sequence[EpisodeResult]) -> list[tuple]:
    return [(*episode_id(result), result.success, result.num_steps, result.error) for result in results]


def summarize(name: str, rounds: list[dict[str, Any]], expected: list[tuple], num_workers: int) -> dict[str, Any]:
    """Medians over the rounds, shares of the workers' time, and how many episodes ended otherwise."""
    last = rounds[-1]
    busy = {
        kind: sum(result.time_s[kind] for result in last["results"]) / (num_workers * last["wall_s"])
        for kind in ("reset", "physics", "rendering", "policy")
    }
    return {
        "arm": name,
        "episodes": len(last["results"]),
        "successes": sum(result.success for result in last["results"]),
        "wall_s": [round(one["wall_s"], 2) for one in rounds],
        "episodes_per_hour": statistics.median(3600 * len(one["results"]) / one["wall_s"] for one in rounds),
        "time_share": {**busy, "setup and waiting for work": 1 - sum(busy.values())},
        "differing_episodes": max(
            sum(a != b for a, b in zip(outcomes(one["results"]), expected, strict=True)) for one in rounds
        ),
    }


def batch_differences(policy: Policy, observations: Sequence[Observation], sizes: Sequence[int]) -> dict[str, Any]:
    """Largest difference of any action from the one that the same observation gets alone, by batch size."""
    requests = [Request(one, seed=0) for one in observations]
    alone = np.stack([policy.predict([one])[0].actions for one in requests])  # [N, T, A]
    differences = {}
    for size in sizes:
        batched = []
        for start in range(0, len(observations), size):
            batched += [chunk.actions for chunk in policy.predict(requests[start : start + size])]
        off = np.abs(np.stack(batched) - alone)
        changed = int((off.reshape(len(off), -1).max(axis=1) > 1e-3).sum())
        differences[str(size)] = {"max": float(off.max()), "chunks_off_by_1e-3": changed, "of": len(observations)}
    return differences


def show(arms: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("arm", "episodes/h", "ratio", "solved", "other outcome", "physics", "rendering", "policy", "rest"):
        table.add_column(title, justify="right")
    for arm in arms:
        share = arm["time_share"]
        rest = share["reset"] + share["setup and waiting for work"]
        table.add_row(
            arm["arm"],
            f"{arm['episodes_per_hour']:.0f}",
            f"{arm['episodes_per_hour'] / arms[0]['episodes_per_hour']:.2f}",
            f"{arm['successes']}/{arm['episodes']}",
            str(arm["differing_episodes"]),
            *(f"{100 * value:.0f} %" for value in (share["physics"], share["rendering"], share["policy"], rest)),
        )
    console.print(table)


@reported
def main() -> None:
    parser = Options(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workers", type=held(Processes), nargs="+", default=[1, 2], help="numbers of processes to try"
    )
    parser.add_argument("--max-batch", type=held(Count), default=1)
    parser.add_argument("--rounds", type=held(Count), default=2)
    parser.add_argument("--no-reference", action="store_true", help="only compare numbers of workers")
    parser.add_argument("--json", type=new_file)
    arguments, overrides = parser.parse_known_args()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("eval", overrides=overrides)
        check_settings(cfg)
        versions = instantiate(cfg.check)
        policy = Keeping(configured_policy(cfg, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(in_one_line(cause_of(error))) from error
    names = [] if arguments.no_reference else [REFERENCE]
    workers: dict[str, int | None] = dict.fromkeys(names) | {f"{n} workers": n for n in arguments.workers}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    console = Console(highlight=False, soft_wrap=True)
    for number in range(arguments.rounds):
        for name, count in workers.items():
            rounds[name].append(run_arm(cfg, policy, count, arguments.max_batch))
            console.print(f"round {number}, {name}: {rounds[name][-1]['wall_s']:.1f} s")
    first = next(iter(workers))
    expected = outcomes(rounds[first][0]["results"])
    arms = [summarize(name, rounds[name], expected, count or 1) for name, count in workers.items()]
    sizes = sorted({2, *arguments.workers} - {1})
    differences = batch_differences(policy.policy, policy.observations, sizes)
    report = {
        "arguments": [f"{name}={value}" for name, value in vars(arguments).items()] + overrides,
        "cpus": len(os.sched_getaffinity(0)),
        "versions": versions,
        "provenance": provenance(),
        "arms": arms,
        "batch_differences": differences,
    }
    single = [
        arm["differing_episodes"]
        for arm, count in zip(arms, workers.values(), strict=True)
        if count in (None, 1) or arguments.max_batch == 1
    ]
    if any(single):
        raise SystemExit(f"episodes ended otherwise than in the arm {first!r}; no speed is reported")
    if arguments.json:
        write_atomically(arguments.json, json.dumps(report, indent=1) + "\n")
    show(arms, console)
    for size, off in differences.items():
        console.print(f"batches of {size}: actions differ by at most {off['max']:.2g}", end="; ")
        console.print(f"{off['chunks_off_by_1e-3']} of {off['of']} chunks by more than 1e-3")


if __name__ == "__main__":
    main()
