"""What the released policy says, written down once, so that a rebuilt policy can be held to it.

    python scripts/record_policy.py --out tests/golden/released_policy.npz     # needs the simulator; two minutes
    python scripts/record_policy.py --episodes --out tests/golden/episodes.npz # what it is shown, to time it with

Recorded at commit 7eff0a3 and not meant to be made again: a change of these numbers is a change of the policy. What
surprises first: last bits depend on the processor and on the libraries. `arithmetic_id` names a machine's arithmetic;
where it is the recorded one every number has to be equal bit for bit, and close elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from rsd.commands.configured import configured_policy
from rsd.evaluation.rollout import Episode
from rsd.options import Options, new_file, reported
from rsd.policy import VLAPolicy
from rsd.queue import chunk_seed
from rsd.types import Chunk, Observation, Policy, Request, Step
from scripts.recorded import LENGTHS, SEED, numbered, restored, stored

ROOT = Path(__file__).parents[1]
SUITES = ("libero_spatial", "libero_object", "libero_goal")
EPISODE_TASK, OTHER_TASKS = 0, (1, 2, 4, 5)  # task 3 of libero_goal has words that the policy does not know
TIMED_TASKS = (0, 3, 6)
TIMED_INIT_STATE = 10  # of the episodes to time with: no threshold was chosen on it
NUM_OF_EPISODE = 4  # observations kept of each suite's episode, beside one of each other task
DECODINGS = {  # name → overrides of the configuration
    "l1": ["decoding=l1"],
    "parallel": ["decoding=parallel"],
    "depth_ar": ["decoding=depth_ar"],
    "speculative": ["decoding=speculative"],
    "speculative_base": ["decoding=speculative", "target=base"],
    "speculative_sampled": ["decoding=speculative_sampled"],
}
POINTS = ("layer.3", "head")


def arithmetic_id() -> str:
    """Name of this process's floating-point arithmetic: a hash of what some usual operations give."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 121, 256, generator=generator)
    w = torch.randn(512, 256, generator=generator)
    picture = torch.randn(1, 3, 64, 64, generator=generator)
    kernel = torch.randn(48, 3, 3, 3, generator=generator)
    heads = x.view(1, 121, 4, 64).transpose(1, 2)
    results = [
        torch.nn.functional.linear(x, w),
        torch.nn.functional.linear(x[:, :8], w),
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads),
        torch.nn.functional.conv2d(picture, kernel, stride=2, padding=1),
        torch.nn.functional.layer_norm(x, (256,)),
        torch.nn.functional.silu(x).softmax(dim=-1),
    ]
    return hashlib.sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest()[:16]


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def configured(env: str, overrides: list[str]) -> Any:
    """The resolved configuration of eval.py with the released policy."""
    return compose("eval", ["experiment=released", f"env={env}", f"paths.checkpoints={ROOT / 'released'}", *overrides])


class Watching:
    """A policy that keeps what it was shown."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.num_open_loop_steps = policy, policy.num_open_loop_steps
        self.seen: list[Observation] = []

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        self.seen += [request.observation for request in requests]
        return self._policy.predict(requests)


def episodes() -> dict[str, Any]:
    """All that `l1` is shown in an episode of some tasks of the suite whose words every part of the policy knows."""
    seen = []
    for task in TIMED_TASKS:
        cfg = configured(SUITES[0], [])
        env, policy = instantiate(cfg.env.make)(task_id=task), Watching(configured_policy(cfg, []))
        Episode(env, policy).run(init_state_id=TIMED_INIT_STATE, seed=SEED)
        env.close()
        seen.append([stored(one) for one in policy.seen])
    return {LENGTHS: np.array([len(one) for one in seen]), **numbered([one for records in seen for one in records])}


def closed_loop(suite: str) -> tuple[list[Observation], dict[str, Any]]:
    """Observations of a suite, and one episode of it: what was executed and how it ended."""
    cfg = configured(suite, [])
    make_env, policy = instantiate(cfg.env.make), Watching(configured_policy(cfg, []))
    env = make_env(task_id=EPISODE_TASK)
    executed: list[np.ndarray] = []
    step = env.step

    def noted(action: np.ndarray, observe: bool = True) -> Step:
        executed.append(np.array(action))
        return step(action, observe=observe)

    env.step = noted
    episode = Episode(env, policy)
    episode.run(init_state_id=0, seed=SEED)
    env.close()
    seen = [policy.seen[int(i)] for i in np.linspace(0, len(policy.seen) - 1, NUM_OF_EPISODE)]
    for task in OTHER_TASKS:
        env = make_env(task_id=task)
        seen.append(env.reset(task))
        env.close()
    return seen, {"success": episode.success, "num_steps": episode.num_steps, "actions": np.stack(executed)}


def answers(observations: list[Observation]) -> dict[str, np.ndarray]:
    """Chunks of every decoding, [N, T, A], and the states at the points that heads read; one observation a call."""
    result: dict[str, np.ndarray] = {}
    for name, overrides in DECODINGS.items():
        policy = configured_policy(configured(SUITES[0], overrides), [])
        chunks = [
            policy.predict([Request(observation, chunk_seed(SEED, number))])[0].actions
            for number, observation in enumerate(observations)
        ]
        result[f"chunk.{name}"] = np.stack(chunks)
    assert isinstance(policy, VLAPolicy)
    looks = [policy.base.look([one]) for one in observations]
    for point in POINTS:
        result[f"state.{point}"] = np.stack([looked.at(point)[0].numpy() for looked in looks])
    return result


@reported
def main() -> None:
    """Record observations, answers and episodes."""
    parser = Options(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=new_file, required=True, help="the .npz to write")
    parser.add_argument("--episodes", action="store_true", help="what some episodes show, and no answers")
    options = parser.parse_args()
    out = options.out
    torch.set_num_threads(1)
    if options.episodes:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            fixture = episodes()
        np.savez(out, **fixture)
        print(f"{out}: episodes of {fixture[LENGTHS].tolist()} observations, {out.stat().st_size / 1e6:.2f} MB")
        return
    fixture = {"arithmetic_id": arithmetic_id(), "suites": SUITES}
    records = []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for suite in SUITES:
            seen, episode = closed_loop(suite)
            records += [stored(one) for one in seen]
            fixture |= {f"episode.{suite}.{name}": value for name, value in episode.items()}
        fixture |= numbered(records)
        for name, value in answers([restored(record) for record in records]).items():
            if name.startswith("state."):
                fixture[f"{name}.sha256"] = np.array([digest(one) for one in value])
                value = value[:, :: max(1, value.shape[1] // 8)]  # a few positions, for machines with other arithmetic
            fixture[name] = value
    np.savez_compressed(out, **fixture)
    print(f"{out}: {len(records)} observations, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
